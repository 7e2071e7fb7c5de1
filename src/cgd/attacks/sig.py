"""SIG (Barni et al. 2019, arXiv 1902.11237): a faint vertical sine grating, labels untouched."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cgd.attacks.base import Attack, register
from cgd.errors import InputError


@register
@dataclass(frozen=True)
class Sig(Attack):
    """Clean-label; the attacker changes some images of the target class, nothing else.

    Attributes:
        delta: amplitude, of 255 (BackdoorBench: 40).
        frequency: periods across the image (paper and BackdoorBench: 6).
    """

    name = "sig"
    family = "clean-label"
    source = "arXiv 1902.11237"

    delta: float = 40.0
    frequency: float = 6.0

    def __post_init__(self) -> None:
        for name, value in self.parameters().items():
            if not math.isfinite(value):
                raise InputError(f"sig: {name} must be a finite number, not {value}")

    def trigger(self, images: Tensor) -> Tensor:
        return add_grating(images, self.delta, self.frequency)


def add_grating(images: Tensor, amplitude: float, frequency: float) -> Tensor:
    """Add a vertical sine grating, `frequency` periods across, to uint8 [n, 3, size, size]."""
    width = images.shape[-1]
    column = torch.arange(width, device=images.device)
    wave = amplitude * torch.sin(2 * math.pi * frequency * column / width)
    return (images.float() + wave).round().clamp(0, 255).to(images.dtype)
