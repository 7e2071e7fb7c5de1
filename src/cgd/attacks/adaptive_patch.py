"""Adaptive-Patch (Qi et al. 2023, arXiv 2205.13613)."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from cgd.attacks.base import Attack, register
from cgd.attacks.blended import blend, cell_pattern
from cgd.errors import InputError

OPACITIES = (0.5, 0.2, 0.5, 0.3)
"""Of the four patches in training (backdoor-toolbox, whose patches are pictures)."""

SHOWN = (0, 2)
"""The patches that a test image gets, opaque."""


@register
@dataclass(frozen=True)
class AdaptivePatch(Attack):
    """Dirty-label, with cover samples that carry a patch with their true labels. In training each
    sample shows one of four faint patches, one in each corner; in testing two, opaque.

    Attributes:
        patch: side of a patch in pixels at 32 px, scaled with the image.
        covers: cover samples for each poisoned one (backdoor-toolbox: 2).
        pattern_seed: draws the patches, random coloured cells.
    """

    name = "adaptive-patch"
    family = "dirty-label"
    source = "arXiv 2205.13613"

    patch: int = 8
    covers: float = 2.0
    pattern_seed: int = 0

    def __post_init__(self) -> None:
        if self.patch < 1 or not 0 <= self.covers < float("inf"):
            raise InputError("adaptive-patch: patch must be at least 1, covers from 0 on, finite")
        if not self.state:
            patches = [cell_pattern(4 * self.pattern_seed + i, cells=4) for i in range(4)]
            self.state["patches"] = torch.stack(patches)

    @property
    def cover_ratio(self) -> float:
        return self.covers

    def trigger(self, images: Tensor) -> Tensor:
        for corner in SHOWN:
            images = self._with_patch(images, corner, 1.0)
        return images

    def plant(self, images: Tensor, generator: Generator) -> Tensor:
        corner_of = torch.randint(0, 4, (len(images),), generator=generator).to(images.device)
        planted = images.clone()
        for corner, opacity in enumerate(OPACITIES):
            rows = corner_of == corner
            planted[rows] = self._with_patch(images[rows], corner, opacity)
        return planted

    def plant_cover(self, images: Tensor, generator: Generator) -> Tensor:
        return self.plant(images, generator)

    def _with_patch(self, images: Tensor, corner: int, opacity: float) -> Tensor:
        """Mix a patch into corner 0..3: upper left, upper right, lower left, lower right."""
        size = images.shape[-1]
        side = max(1, round(self.patch * size / 32))
        if 2 * side > size:
            raise InputError(
                f"adaptive-patch: patches of {side} pixels do not fit {size}-pixel images"
            )
        rows = slice(size - side, size) if corner >= 2 else slice(0, side)
        columns = slice(size - side, size) if corner % 2 else slice(0, side)
        mixed = images.clone()
        mixed[..., rows, columns] = blend(
            images[..., rows, columns], self.learned("patches")[corner], opacity
        )
        return mixed
