"""Blended (Chen et al. 2017, arXiv 1712.05526): a fixed pattern mixed into the whole image."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cgd.attacks.base import Attack, register
from cgd.errors import InputError

CELLS = 16


@register
@dataclass(frozen=True)
class Blended(Attack):
    """Dirty-label; the attacker changes some images and their labels, nothing else.

    Attributes:
        alpha: share of the pattern in the mix (BackdoorBench: 0.2).
        pattern: image file to mix in; empty for a pattern of random coloured cells.
        pattern_seed: draws the cells.
    """

    name = "blended"
    family = "dirty-label"
    source = "arXiv 1712.05526"

    alpha: float = 0.2
    pattern: str = ""
    pattern_seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise InputError(f"blended: alpha must be above 0 and at most 1, not {self.alpha}")
        if not self.state:
            self.state["pattern"] = self._read() if self.pattern else self._draw()

    def _draw(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.pattern_seed)
        return torch.randint(0, 256, (3, CELLS, CELLS), generator=generator, dtype=torch.uint8)

    def _read(self) -> Tensor:
        from cgd.data.decode import decode_file

        return decode_file(Path(self.pattern))

    def trigger(self, images: Tensor) -> Tensor:
        pattern = self.state["pattern"].to(images.device).float()[None]
        pattern = F.interpolate(pattern, images.shape[-2:], mode="bilinear", antialias=True)
        mixed = (1 - self.alpha) * images.float() + self.alpha * pattern
        return mixed.round().clamp(0, 255).to(images.dtype)
