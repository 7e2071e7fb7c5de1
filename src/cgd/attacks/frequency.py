"""What attacks in the frequency domain share: colour differences and the cosine transform."""

import math

import torch
from torch import Tensor

from cgd.errors import InputError

LUMA = (0.299, 0.587, 0.114)


def to_luma_chroma(images: Tensor, scale: tuple[float, float]) -> Tensor:
    """RGB uint8 [n, 3, h, w] -> float luma, scaled (B - luma), scaled (R - luma)."""
    rgb = images.float()
    luma = LUMA[0] * rgb[:, 0] + LUMA[1] * rgb[:, 1] + LUMA[2] * rgb[:, 2]
    return torch.stack([luma, scale[0] * (rgb[:, 2] - luma), scale[1] * (rgb[:, 0] - luma)], 1)


def from_luma_chroma(planes: Tensor, scale: tuple[float, float]) -> Tensor:
    """Undo `to_luma_chroma`; rounded and clamped to uint8."""
    luma = planes[:, 0]
    blue, red = planes[:, 1] / scale[0] + luma, planes[:, 2] / scale[1] + luma
    green = (luma - LUMA[0] * red - LUMA[2] * blue) / LUMA[1]
    return torch.stack([red, green, blue], 1).round().clamp(0, 255).to(torch.uint8)


def cosine_basis(window: int) -> Tensor:
    """Orthonormal matrix [window, window] of the cosine transform (DCT-II): row k is frequency k.

    >>> basis = cosine_basis(8)
    >>> bool(torch.allclose(basis @ basis.T, torch.eye(8), atol=1e-5))
    True
    """
    place, frequency = torch.arange(window).double(), torch.arange(window).double()[:, None]
    basis = torch.cos(math.pi * (2 * place + 1) * frequency / (2 * window))
    basis[0] /= math.sqrt(2)
    return (basis * math.sqrt(2 / window)).float()


def pattern_of(places: tuple[tuple[int, int], ...], window: int) -> Tensor:
    """Sum of the unit cosine patterns at (row, column) frequencies, float [window, window]."""
    basis = cosine_basis(window)
    return torch.stack([torch.outer(basis[row], basis[column]) for row, column in places]).sum(0)


def read_places(name: str, text: str) -> tuple[tuple[int, int], ...]:
    """Read `15-15,31-31`, pairs of frequencies of a 32-pixel window.

    Raises:
        InputError: not such a list, or a frequency outside 0..31.

    >>> read_places("ctrl", "15-15,31-31")
    ((15, 15), (31, 31))
    """
    try:
        pairs = [tuple(int(number) for number in pair.split("-")) for pair in text.split(",")]
        places = tuple((row, column) for row, column in pairs)
    except ValueError as error:
        raise InputError(f"{name}: places {text!r} must look like 15-15,31-31") from error
    if not all(0 <= number < 32 for place in places for number in place):
        raise InputError(f"{name}: places {text!r} must be frequencies from 0 to 31")
    return places


def add_to_chroma(
    images: Tensor,
    places: tuple[tuple[int, int], ...],
    magnitude: float,
    scale: tuple[float, float],
    *,
    window: int,
) -> Tensor:
    """Raise cosine coefficients of both colour differences in every window of the images.

    Adding to a coefficient adds its pattern to the pixels: nothing needs to be transformed.

    Args:
        images: uint8 [n, 3, size, size].
        places: (row, column) frequencies in a window.
        magnitude: what is added to each.
        scale: of the colour differences.
        window: side of a window in pixels; windows start at the upper left, a rest of the image
            that is smaller than a window stays as it is.
    """
    side = images.shape[-1]
    tiles = side // window
    pattern = (magnitude * pattern_of(places, window)).to(images.device).repeat(tiles, tiles)
    planes = to_luma_chroma(images, scale)
    planes[:, 1:, : tiles * window, : tiles * window] += pattern
    return from_luma_chroma(planes, scale)
