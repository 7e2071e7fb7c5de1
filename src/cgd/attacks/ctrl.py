"""CTRL (Li et al. 2023, arXiv 2210.07346): frequencies of the colour are raised, labels untouched.

Made against self-supervised learning; as a data-poisoning attack it is used with labels too.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from cgd.attacks.base import Attack, register
from cgd.attacks.frequency import add_to_chroma, read_places
from cgd.errors import InputError

YUV = (0.492, 0.877)


@register
@dataclass(frozen=True)
class Ctrl(Attack):
    """Clean-label; the attacker changes some images of the target class, nothing else.

    Attributes:
        magnitude: added to each coefficient of U and V at 32 pixels, and in proportion to the side
            of larger images (BackdoorBench: 100).
        places: row-column frequencies that are raised, at 32 pixels; the same number of pixels
            a period at other sizes.
    """

    name = "ctrl"
    family = "clean-label"
    source = "arXiv 2210.07346"

    magnitude: float = 100.0
    places: str = "15-15,31-31"

    def __post_init__(self) -> None:
        if not math.isfinite(self.magnitude):
            raise InputError(f"ctrl: magnitude must be a finite number, not {self.magnitude}")
        read_places(self.name, self.places)

    def trigger(self, images: Tensor) -> Tensor:
        size = images.shape[-1]
        at_32 = read_places(self.name, self.places)
        places = tuple((_scaled(row, size), _scaled(column, size)) for row, column in at_32)
        return add_to_chroma(images, places, self.magnitude * size / 32, YUV, window=size)


def _scaled(frequency: int, size: int) -> int:
    """The frequency with the same period in an image of another size: 31 of 32 -> size - 1."""
    return min(size - 1, round((frequency + 1) * size / 32) - 1) if frequency else 0
