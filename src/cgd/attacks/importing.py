"""Poisoned data that others made, with what is known of it, in the form of our own."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgd.attacks.backdoorbench import Record
from cgd.attacks.base import Family
from cgd.attacks.manifest import IMPORTED, Manifest
from cgd.data.dataset import ImageData, content_keys, copied, taken
from cgd.data.decode import Unusable, decode_square, quiet_pillow
from cgd.errors import InputError

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Imported:
    """Poisoned data from elsewhere.

    Attributes:
        data: images and labels as a victim gets them.
        manifest: which of its rows are poisoned.
        clean: the same images before the attack, uint8 [n, 3, size, size]; None if not known.
    """

    data: ImageData
    manifest: Manifest
    clean: Tensor | None


def import_listed(
    data: ImageData,
    *,
    rows: Rows | None = None,
    labels: Rows | None = None,
    clean: ImageData | None = None,
    family: Family | None = None,
    seed: int = 0,
) -> Imported:
    """Take over data of which the user says what is poisoned.

    Args:
        data: the images, with the labels that a victim gets, or those before the attack if
            `labels` are given.
        rows: positions of the poisoned samples in `data`; default: those whose label changed.
        labels: int64 [n], the labels that a victim gets, if these are not in `data`.
        clean: the data before the attack, row for row; with neither this nor `labels`, it is not
            known what the poisoned samples were.
        family: default: clean-image where `labels` are given; otherwise dirty-label where labels
            changed, clean-label where none did, and `unknown` without `clean`.
        seed: noted in the manifest.

    Raises:
        InputError: nothing tells the poisoned samples, or `clean` has other rows or classes.
    """
    if clean is not None:
        _check_same_rows(data, clean)
    before = None
    if clean is not None:
        before = clean.labels.numpy()
    elif labels is not None or family == "clean-label":
        before = data.labels.numpy()
    given = data.labels.numpy() if labels is None else labels
    if rows is None:
        if labels is None:
            raise InputError(f"{data.source}: say what is poisoned, with --index or --labels")
        rows = np.flatnonzero(given != before)
        if not len(rows):
            raise InputError(f"{data.source}: --labels changes no label; so nothing is poisoned")
    guess = "unknown" if before is None else _family(given, before, rows)
    guess = guess if labels is None else "clean-image"
    manifest = _manifest(given, before, rows, [], family or guess, seed)
    poisoned = replace(
        data,
        labels=torch.from_numpy(given.copy()),
        index=np.arange(len(data)),
        originals=None,
    )
    return Imported(poisoned, manifest, None if clean is None else clean.images)


def _check_same_rows(data: ImageData, clean: ImageData) -> None:
    if len(clean) != len(data):
        raise InputError(
            f"{clean.source}: {len(clean)} images, but {data.source} has {len(data)}; "
            "--clean must be the same samples before the attack"
        )
    if clean.classes != data.classes:
        raise InputError(f"{clean.source}: has other classes than {data.source}")
    if differing := set(clean.index.tolist()) ^ set(data.index.tolist()):
        raise InputError(
            f"{clean.source}: row {min(differing)} could be used here or in {data.source}, but not "
            "in both; repair the image, or remove it from both"
        )


def import_record(record: Record, clean: ImageData, target: int, *, seed: int = 0) -> Imported:
    """Put the images and labels of a BackdoorBench record into the clean data that it builds on.

    Samples that were changed and kept their label, though it is not the attacker's, are cover.

    Args:
        record: the record.
        clean: its training data before the attack, at the size wanted.
        target: the label that all changed images got, where the record does not say it.
        seed: noted in the manifest.

    Raises:
        InputError: the clean data has other rows, labels or classes than the record, or an image
            cannot be used.
    """
    place = {int(row): at for at, row in enumerate(clean.index)}
    after = dict.fromkeys(record.places, target) if record.after is None else record.after
    _check_fit(record, clean, place, after)
    rows = sorted(after)
    at = np.array([place[row] for row in rows], dtype=np.int64)
    images, labels = copied(clean.images), clean.labels.numpy().copy()
    images[torch.from_numpy(at)] = _decode(record, rows, clean.size)
    labels[at] = [after[row] for row in rows]
    cover = [] if record.after is None else _cover(labels, clean.labels.numpy(), at)
    poison = np.setdiff1d(at, cover)
    family = _family(labels, clean.labels.numpy(), poison)
    manifest = _manifest(labels, clean.labels.numpy(), poison, cover, family, seed)
    data = replace(clean, images=images, labels=torch.from_numpy(labels), originals=None)
    before = clean.images
    if record.order is not None:
        order = np.array([place[int(row)] for row in record.order], dtype=np.int64)
        data, before, manifest = data.subset(order), taken(before, order), manifest.in_order(order)
        manifest = replace(manifest, rate=len(manifest.poison) / len(order))
        if not manifest.poison:
            raise InputError(f"{record.images.source}: no poisoned sample is in the training data")
    data = replace(data, index=np.arange(len(data)), keys=content_keys(data.images))
    return Imported(data, manifest, before)


def _check_fit(
    record: Record, clean: ImageData, place: dict[int, int], after: dict[int, int]
) -> None:
    source, classes = record.images.source, len(clean.classes)
    order = [] if record.order is None else record.order.tolist()
    for row in (*after, *order):
        if row not in place:
            raise InputError(f"{source}: row {row} is not in --clean {clean.source}")
    for row, label in after.items():
        if record.before[row] != int(clean.labels[place[row]]):
            raise InputError(
                f"{source}: row {row} was of class {record.before[row]}, but in --clean "
                f"{clean.source} it is of class {int(clean.labels[place[row]])}; name the very "
                "data that the record was made from, in its order"
            )
        if not 0 <= label < classes:
            raise InputError(f"{source}: row {row} gets class {label}; there are {classes}")


def _decode(record: Record, rows: list[int], size: int) -> Tensor:
    """Decode the changed images of some rows: uint8 [n, 3, size, size]."""
    images = torch.empty(len(rows), 3, size, size, dtype=torch.uint8)
    with quiet_pillow():
        for i, row in enumerate(rows):
            (stored,) = record.images.read([record.places[row]])
            try:
                if stored.problem:
                    raise Unusable(stored.problem)
                pixels, _ = decode_square(stored.content, size)
            except Unusable as error:
                raise InputError(f"{record.images.source}/{stored.path}: {error}") from error
            images[i] = torch.from_numpy(pixels)
    return images


def _cover(given: Rows, before: Rows, rows: Rows) -> list[int]:
    """Those of the changed rows that kept a label that is not the attacker's."""
    kept = given[rows] == before[rows]
    goals = np.unique(given[rows][~kept])
    if not len(goals):
        return []
    # With one goal for all, an image of that class that kept its label is as poisoned as the rest.
    own = len(goals) == 1
    return [int(row) for row in rows[kept] if not (own and given[row] == goals[0])]


def _family(given: Rows, before: Rows, poison: Rows) -> Family:
    changed = bool((given != before)[poison].any())
    return "dirty-label" if changed else "clean-label"


def _manifest(
    given: Rows, before: Rows | None, poison: Rows, cover: list[int], family: str, seed: int
) -> Manifest:
    """Write down what is known; the target is the label that most of the poison got."""
    changed = poison if before is None else poison[given[poison] != before[poison]]
    target = int(np.bincount(given[changed if len(changed) else poison]).argmax())
    return Manifest(
        attack=IMPORTED,
        family=family,
        parameters={},
        rate=len(poison) / len(given),
        target=target,
        seed=seed,
        poison=poison.tolist(),
        cover=cover,
        original_labels=[] if before is None else before[poison].tolist(),
    )
