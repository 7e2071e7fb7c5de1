"""Records of BackdoorBench (SCLBD/BackdoorBench, version 2), as files that may be hostile.

A record folder holds `bd_train_dataset/<label before>/<row>.png`, an image for each changed
sample, and `attack_result.pt`, which says what labels these got. The paths in that file are not
used, and nothing in it is run: NumPy's numbers, of which it is full, are rebuilt here from their
bytes, and every other pickled object is refused.
"""

import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cgd.data.folder import list_folder
from cgd.data.listing import Listing
from cgd.errors import InputError
from cgd.text import plain

IMAGES = "bd_train_dataset"
RESULT = "attack_result.pt"
REMEDY = "put it aside and name the class with --target, or use --index with a list of the samples"

Numbers = NDArray[Any]


@dataclass(frozen=True)
class Record:
    """What a record says of the training data, in rows of the clean data.

    Attributes:
        images: the changed images, listed.
        places: row -> place in `images`.
        before: row -> label before the attack, as the folders of the images say.
        after: row -> label given, for the rows that were changed; None where there is no
            `attack_result.pt`.
        order: rows that the training data consists of, where it is not all of them in order.
    """

    images: Listing
    places: dict[int, int]
    before: dict[int, int]
    after: dict[int, int] | None
    order: NDArray[np.int64] | None


def is_record(source: str) -> bool:
    """Whether this is a record folder, or the `attack_result.pt` in one."""
    path = Path(source)
    try:
        return path.name == RESULT or (path / IMAGES).is_dir() or (path / RESULT).is_file()
    except (OSError, ValueError):
        return False


def read_record(source: str) -> Record:
    """Read a record.

    Raises:
        InputError: images are missing, oddly named or twice there, or the result file cannot be
            read safely or says something else than the images.
    """
    folder = Path(source).parent if Path(source).name == RESULT else Path(source)
    if not (folder / IMAGES).is_dir():
        raise InputError(f"{folder}: no {IMAGES} folder with the changed images there")
    images = list_folder(folder / IMAGES)
    places, before = _named_by_row(images)
    if Path(source).name != RESULT and not (folder / RESULT).exists():
        return Record(images, places, before, None, None)
    after, order = _read_result(folder / RESULT)
    lacking = [row for row in after if row not in places]
    if lacking:
        raise InputError(f"{folder / IMAGES}: no image of row {lacking[0]}, which {RESULT} names")
    return Record(images, places, before, after, order)


def _named_by_row(images: Listing) -> tuple[dict[int, int], dict[int, int]]:
    places: dict[int, int] = {}
    before: dict[int, int] = {}
    # Listed paths are `<folder>/<file>`; reading the images is left for when they are needed.
    for place, stored in enumerate(images.read(range(len(images)))):
        name = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,12})\.png", stored.path)
        if not name:
            raise InputError(
                f"{images.source}: {plain(stored.path)!r} is not named LABEL/ROW.png, as "
                "BackdoorBench names images"
            )
        label, row = int(name[1]), int(name[2])
        if row in places:
            raise InputError(f"{images.source}: row {row} is there twice")
        places[row], before[row] = place, label
    if not places:
        raise InputError(f"{images.source}: holds no images")
    return places, before


def _read_result(path: Path) -> tuple[dict[int, int], NDArray[np.int64] | None]:
    """Read which rows were changed, with their new labels, and the order of the training data."""
    state = _load(path)
    try:
        state = state["bd_train"]
        entries = state["bd_data_container"]["data_dict"]
        labels = {int(row): int(entry["other_info"][0]) for row, entry in entries.items()}
        changed = np.flatnonzero(_plain(state["poison_indicator"]))
        order = _plain(state["original_index_array"], "iu").astype(np.int64)
        after = {int(row): labels[int(row)] for row in changed}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{path}: not a BackdoorBench 2 result with a poisoned training set; {REMEDY}"
        ) from error
    if not after or min(after) < 0 or order.ndim != 1 or not len(order) or order.min() < 0:
        raise InputError(f"{path}: names no poisoned training sample; {REMEDY}")
    return after, None if np.array_equal(order, np.arange(len(order))) else order


def _plain(values: Any, kinds: str = "iubf") -> Numbers:
    """One row of numbers, from an array that was read or a list."""
    array = values.values if isinstance(values, _Array) else np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in kinds:
        raise ValueError("not a row of numbers")
    return array


def _load(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    known: list[Any] = [(_Array, "numpy.ndarray"), (_Kind, "numpy.dtype")]
    for core in ("numpy.core.multiarray", "numpy._core.multiarray"):
        known += [(_new_array, f"{core}._reconstruct"), (_scalar, f"{core}.scalar")]
    try:
        with torch.serialization.safe_globals(known):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make torch raise nearly anything
        raise InputError(
            f"{path}: cannot be read safely (it is damaged, or holds pickled objects); {REMEDY}"
        ) from error


# What stands in for NumPy when numbers are unpickled: no code of NumPy sees the file's values
# except `np.frombuffer`, with one of the types below.


class _Kind:
    """Stands in for `numpy.dtype`."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"):
            raise ValueError("not a type of numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] == ">":
            self.dtype = self.dtype.newbyteorder(">")


class _Array:
    """Stands in for `numpy.ndarray`."""

    values: Numbers = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, raw = state
        values = np.frombuffer(raw, kind.dtype)
        sound = all(type(n) is int and n >= 0 for n in shape) and prod(shape) == values.size
        if fortran or not sound:
            raise ValueError("not a plain array")
        self.values = values.reshape(shape)


def _new_array(*_: object) -> _Array:
    return _Array()


def _scalar(kind: _Kind, raw: bytes) -> int | float:
    return np.frombuffer(raw, kind.dtype, count=1)[0].item()  # type: ignore[no-any-return]
