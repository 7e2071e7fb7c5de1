"""Lists that a user names: the labels of a data set, or which of its samples are poisoned.

Formats are `.npy`, `.json` (a list), and `.csv` or `.txt` (one value a line). Nothing is unpickled.

Rows count in the source, as `ImageData.index` does, so that they mean the same samples where some
images could not be used. A list with a value a sample may have one for these images, too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgd.data.dataset import ImageData
from cgd.errors import InputError
from cgd.files import read_json
from cgd.text import plain

MAX_BYTES = 256 * 2**20
FORMATS = (".npy", ".json", ".csv", ".txt")

Values = NDArray[np.int64] | NDArray[np.bool_] | NDArray[np.float64] | list[str]
"""One value a sample; or [n, m] floats, m scores a sample."""


def read_labels(path: Path, data: ImageData) -> NDArray[np.int64]:
    """Read a label for each sample: class numbers, class names, or scores of all classes (`.npy`,
    `.json`), the largest of which counts.

    Text is taken for names where all of it is names, else for numbers.

    Args:
        path: the file.
        data: the samples, as loaded.

    Returns:
        int64 [n], values in [0, len(data.classes)).

    Raises:
        InputError: the file cannot be read, has another length, or names no class.
    """
    values, classes = _read(path), data.classes
    whole = len(values) != len(data)
    if whole and len(values) != _source_rows(data):
        raise InputError(
            f"{path}: {len(values)} labels for {len(data)} images; one for each is needed"
        )
    if isinstance(values, np.ndarray) and values.ndim == 2:
        values = _best(path, values, len(classes))
    labels = _class_numbers(path, values, classes)
    _check_range(path, labels, len(classes), "label", "classes")
    return labels[data.index] if whole else labels


def read_rows(path: Path, data: ImageData) -> NDArray[np.int64]:
    """Read which samples are meant: row numbers, a mask of truth values, or paths.

    Args:
        path: the file.
        data: the samples, as loaded.

    Returns:
        Positions in the data: int64 [m], ascending, without doubles.

    Raises:
        InputError: the file cannot be read, names no sample, one that is not there, or one that
            could not be used.
    """
    values = _read(path)
    if isinstance(values, np.ndarray) and values.ndim == 2:
        raise InputError(f"{path}: expected one value a sample, not {list(values.shape)}")
    if isinstance(values, np.ndarray) and values.dtype == np.bool_:
        rows = _marked(path, values, data)
    else:
        rows = _row_numbers(path, values, data)
    if not len(rows):
        raise InputError(f"{path}: names no sample; at least one must be poisoned")
    return _positions(path, rows, data)


def _source_rows(data: ImageData) -> int:
    return len(data) + sum(entry.row is not None for entry in data.skipped)


def _positions(path: Path, rows: NDArray[np.int64], data: ImageData) -> NDArray[np.int64]:
    """Positions in the data of rows of its source: int64 [m], ascending, without doubles."""
    _check_range(path, rows, _source_rows(data), "row", "images")
    named = set(rows.tolist())
    for entry in data.skipped:
        if entry.row in named:
            raise InputError(
                f"{path}: names row {entry.row}, but {plain(entry.path)!r} could not be used "
                f"({plain(entry.reason)}); repair the image, or leave it out of the list"
            )
    return np.flatnonzero(np.isin(data.index, rows))


def _best(path: Path, scores: NDArray[Any], classes: int) -> NDArray[np.int64]:
    if scores.shape[1] != classes:
        raise InputError(
            f"{path}: {scores.shape[1]} scores a sample, but the data has {classes} classes"
        )
    if np.isnan(scores).any():
        raise InputError(f"{path}: has scores that are no numbers")
    best: NDArray[np.int64] = scores.argmax(1)
    return best


def _class_numbers(path: Path, values: Values, classes: Sequence[str]) -> NDArray[np.int64]:
    if isinstance(values, np.ndarray):
        if values.dtype == np.bool_ and len(classes) != 2:
            raise InputError(f"{path}: holds truth values; expected class numbers or names")
        return values.astype(np.int64)
    numbers = {name: number for number, name in enumerate(classes)}
    unknown = [line for line, value in enumerate(values) if value not in numbers]
    if not unknown:
        if len(numbers) < len(classes):
            raise InputError(f"{path}: several classes have the same name; use class numbers")
        return np.array([numbers[value] for value in values], dtype=np.int64)
    found = _as_numbers(values)
    if found is None:
        raise InputError(
            f"{path}: value {unknown[0] + 1} is {plain(values[unknown[0]], 60)!r}, "
            f"no class of the data ({', '.join(plain(name, 30) for name in classes[:5])}, ...)"
        )
    return found


def _marked(path: Path, mask: NDArray[Any], data: ImageData) -> NDArray[np.int64]:
    marked = np.flatnonzero(mask)
    if len(mask) == len(data):
        return data.index[marked]
    if len(mask) != _source_rows(data):
        raise InputError(f"{path}: a mask of {len(mask)} values for {len(data)} images")
    return marked


def _row_numbers(path: Path, values: Values, data: ImageData) -> NDArray[np.int64]:
    if isinstance(values, np.ndarray):
        return values.astype(np.int64)
    found = _as_numbers(values)
    if found is not None:
        return found
    places: dict[str, list[int]] = {}
    for row, name in zip(data.index.tolist(), data.paths, strict=True):
        places.setdefault(name, []).append(row)
    rows = []
    for value in values:
        there = places.get(value.removeprefix("./"), [])
        if len(there) != 1:
            fault = "several images have" if there else "no image has"
            raise InputError(f"{path}: {fault} the path {plain(value)!r}; use row numbers")
        rows += there
    return np.array(rows, dtype=np.int64)


def _check_range(path: Path, values: NDArray[np.int64], end: int, kind: str, of: str) -> None:
    outside = (values < 0) | (values >= end)
    if outside.any():
        at = int(np.argmax(outside))
        raise InputError(
            f"{path}: value {at + 1} is {kind} {values[at]}; the {of} are 0 to {end - 1}"
        )


def _as_numbers(values: Sequence[str]) -> NDArray[np.int64] | None:
    """Whole numbers of at most 18 digits, or None if one is something else."""
    if not all(value.isdecimal() and value.isascii() and len(value) < 19 for value in values):
        return None
    return np.array([int(value) for value in values], dtype=np.int64)


def _read(path: Path) -> Values:
    """Read a file as numbers, truth values, or text."""
    if path.suffix not in FORMATS:
        raise InputError(f"{path}: unknown kind of file; use {', '.join(FORMATS)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path}: larger than {MAX_BYTES // 2**20} MiB; not a list of samples")
    if path.suffix == ".npy":
        return _from_numpy(path)
    return _from_json(path) if path.suffix == ".json" else _from_text(path)


def _from_numpy(path: Path) -> Values:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # damaged headers make numpy raise nearly anything
        raise InputError(
            f"{path}: not a plain .npy array; save numbers, truth values or text, not objects"
        ) from error
    if isinstance(array, np.ndarray) and array.ndim == 2 and array.dtype.kind in "iuf":
        return np.array(array, dtype=np.float64)
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "iubU":
        raise InputError(f"{path}: expected one row of whole numbers, truth values or text")
    if array.dtype.kind == "U":
        return [str(value) for value in array]
    if array.dtype.kind == "b":
        return np.array(array, dtype=np.bool_)
    return np.array(array).astype(np.int64)  # what is too large becomes negative, and is refused


def _from_json(path: Path) -> Values:
    values = read_json(path)
    kinds = {type(value) for value in values} if isinstance(values, list) else set()
    if kinds == {list}:
        return _scores(path, values)
    if kinds <= {str} and isinstance(values, list):
        return values
    if kinds == {bool}:
        return np.array(values, dtype=np.bool_)
    if kinds == {int} and all(abs(value) < 2**63 for value in values):
        return np.array(values, dtype=np.int64)
    raise InputError(f"{path}: expected one list of whole numbers, of true and false, or of texts")


def _scores(path: Path, rows: list[list[Any]]) -> NDArray[np.float64]:
    try:
        return np.array(rows, dtype=np.float64).reshape(len(rows), -1)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{path}: expected as many numbers for each sample") from error


def _from_text(path: Path) -> Values:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from error
    values = [line.strip() for line in lines]
    while values and not values[-1]:
        values.pop()
    return values
