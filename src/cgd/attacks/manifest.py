"""The ground truth of a poisoned data set, which only evaluation may read."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgd.errors import InputError
from cgd.files import read_json

IMPORTED = "imported"
"""Stands in place of an attack's name where the poisoned data came from elsewhere."""


@dataclass(frozen=True)
class Manifest:
    """What was done to a data set: the ground truth that only evaluation may read.

    Attributes:
        attack: name of the attack, or `imported`.
        family: dirty-label, clean-label or clean-image.
        parameters: the attack's parameters.
        rate: poisoned share of all samples that was asked for.
        target: the attacker's class.
        seed: drew the samples.
        poison: rows of the poisoned samples in the poisoned data set, ascending.
        cover: rows of samples that carry the trigger with their true label.
        original_labels: labels of the `poison` samples before the attack; none where these are not
            known.
    """

    attack: str
    family: str
    parameters: dict[str, Any]
    rate: float
    target: int
    seed: int
    poison: list[int]
    cover: list[int] = field(default_factory=list)
    original_labels: list[int] = field(default_factory=list)

    def in_order(self, order: NDArray[np.int64]) -> "Manifest":
        """Return the same truth for data in another order.

        Args:
            order: int64 [m], the row of this manifest that each new row holds; rows may be missing.
        """
        original = dict(zip(self.poison, self.original_labels, strict=False))
        poison, cover = (
            np.flatnonzero(np.isin(order, x)).tolist() for x in (self.poison, self.cover)
        )
        labels = [original[int(order[row])] for row in poison] if self.knows_labels else []
        return replace(self, poison=poison, cover=cover, original_labels=labels)

    @property
    def knows_labels(self) -> bool:
        """Whether the labels before the attack are known."""
        return len(self.original_labels) == len(self.poison)

    def poison_rows(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of the poisoned samples in data whose source rows are `index`."""
        return np.flatnonzero(np.isin(index, self.poison))


def read_manifest(folder: Path) -> Manifest:
    """Read the ground truth of a poisoned data set. For evaluation only.

    Raises:
        InputError: `poison.json` is missing or malformed.
    """
    path = folder / "poison.json"
    if not path.is_file():
        raise InputError(f"{path}: no such file; name a run folder of cgd attack")
    record = read_json(path)
    try:
        manifest = Manifest(**record)
    except TypeError as error:
        raise InputError(f"{path}: not a poison manifest ({error})") from error
    if not _is_sound(manifest):
        raise InputError(f"{path}: damaged; run `cgd attack` again")
    return manifest


def _is_sound(manifest: Manifest) -> bool:
    numbers = (manifest.poison, manifest.cover, manifest.original_labels, [manifest.target])
    imported = manifest.attack == IMPORTED
    return (
        isinstance(manifest.attack, str)
        and isinstance(manifest.parameters, dict)
        and all(isinstance(values, list) for values in numbers)
        and all(type(value) is int and value >= 0 for values in numbers for value in values)
        and (manifest.knows_labels or (imported and not manifest.original_labels))
    )
