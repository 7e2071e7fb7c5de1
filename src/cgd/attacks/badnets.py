"""BadNets (Gu et al. 2017, arXiv 1708.06733): a small white patch in the lower right corner."""

from dataclasses import dataclass

from torch import Tensor

from cgd.attacks.base import Attack, register
from cgd.errors import InputError


@register
@dataclass(frozen=True)
class BadNets(Attack):
    """Dirty-label; the attacker changes some images and their labels, nothing else.

    Attributes:
        patch: side of the patch in pixels at 32 px, scaled with the image (BackdoorBench: 3).
    """

    name = "badnets"
    family = "dirty-label"
    source = "arXiv 1708.06733"

    patch: int = 3

    def __post_init__(self) -> None:
        if self.patch < 1:
            raise InputError(f"badnets: patch must be at least 1 pixel, not {self.patch}")

    def trigger(self, images: Tensor) -> Tensor:
        size = images.shape[-1]
        side = max(1, round(self.patch * size / 32))
        if side > size:
            raise InputError(f"badnets: a patch of {side} pixels does not fit {size}-pixel images")
        triggered = images.clone()
        triggered[..., size - side :, size - side :] = 255
        return triggered
