"""Where a repair's clean images come from."""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cgd.errors import InputError

CGD = "cgd"
TRUE = "true"


@dataclass(frozen=True)
class Clean:
    """Samples of the untrusted data that a repair takes as clean.

    Attributes:
        part: `cgd`, the likely clean part of a scan; or `true`, what is really neither poison nor
            cover: a reference that a defender does not have.
        share: how many are drawn at random, as a share of all the data; None for all of them.
    """

    part: str
    share: float | None = None

    def draw(self, rows: NDArray[np.int64], n: int, seed: int) -> NDArray[np.int64]:
        """Draw from the rows of the part.

        Args:
            rows: int64, of the part.
            n: number of all samples.
            seed: fixes the draw.

        Returns:
            Row numbers, ascending.

        Raises:
            InputError: the part has fewer.
        """
        if self.share is None:
            return rows
        count = round(self.share * n)
        if count > len(rows):
            raise InputError(
                f"clean {self.part}:{100 * self.share:g}%: {count} samples are asked for, but the "
                f"part has {len(rows)}; ask for less"
            )
        return np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))


def read_clean(text: str) -> Clean | None:
    """Read `cgd`, `cgd:5%`, `true` or `true:5%`; None for anything else.

    Raises:
        InputError: the share cannot be read, or is none.

    >>> read_clean("true:5%")
    Clean(part='true', share=0.05)
    """
    found = re.fullmatch(rf"({CGD}|{TRUE})(?::(\d+(?:\.\d*)?)%)?", text)
    if not found and text.partition(":")[0] in (CGD, TRUE):
        raise InputError(f"clean {text}: use {CGD}, {CGD}:5%, {TRUE} or {TRUE}:5%")
    if not found:
        return None
    share = float(found[2]) / 100 if found[2] else None
    if share is not None and not 0 < share <= 1:
        raise InputError(f"clean {text}: the share must be above 0 and at most 100 %")
    return Clean(found[1], share)
