"""Pictures as self-made PNG data URIs and SVG paths; nothing of a source file's bytes remains."""

import base64
import io

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

LONGEST_SIDE = 64


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """Encode uint8 pixels [h, w, 3 or 4] as a PNG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def thumbnail(image: Tensor) -> str:
    """Encode one uint8 image [3, size, size], shrunk to at most 64 pixels, as a PNG data URI."""
    if image.shape[-1] > LONGEST_SIDE:
        shrunk = F.interpolate(image[None].float(), size=LONGEST_SIDE, mode="area")[0]
        image = shrunk.round().to(torch.uint8)
    return data_uri(image.permute(1, 2, 0).contiguous().numpy())


def dots(x: NDArray[np.float64], y: NDArray[np.float64], side: int) -> str:
    """Return an SVG path of one dot a point; x and y in [0, 1], y upwards.

    >>> dots(np.array([0.0, 1.0]), np.array([0.0, 0.5]), 100)
    'M0 100h0M100 50h0'
    """
    columns, rows = np.rint(x * side).astype(int), np.rint((1 - y) * side).astype(int)
    return "".join(f"M{a} {b}h0" for a, b in zip(columns.tolist(), rows.tolist(), strict=True))


def density(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    colour: tuple[int, int, int],
    *,
    bins: int,
    full: float,
) -> str:
    """Return a 2-D histogram as a PNG data URI; denser cells are more opaque.

    Args:
        x: float64 [n] in [0, 1].
        y: float64 [n] in [0, 1], upwards.
        colour: RGB, 0..255.
        bins: cells along each axis.
        full: samples in a cell from which it is opaque.
    """
    counts, _, _ = np.histogram2d(1 - y, x, bins=bins, range=((0, 1), (0, 1)))
    pixels = np.zeros((bins, bins, 4), dtype=np.uint8)
    pixels[..., :3] = colour
    opacity = 0.08 + 0.92 * np.minimum(1, counts / full)
    pixels[..., 3] = np.rint(255 * np.where(counts > 0, opacity, 0))
    return data_uri(pixels)
