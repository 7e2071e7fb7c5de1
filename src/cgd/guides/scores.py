"""`scores:FILE.npy|.parquet`: class scores that were computed elsewhere.

The file holds logits: a NumPy array [n, classes], or a Parquet table with one column per class,
called like the class, or with one list column `scores`. A Parquet column `index` says to which row
of the source each score belongs; without it, the rows must be those of the data, in order.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgd.data.dataset import ImageData
from cgd.errors import InputError
from cgd.guides.base import Guide, Request, check_classes, register

Scores = NDArray[np.float32]


class ScoresGuide:
    """Class scores from a file."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path

    def logits(self, data: ImageData) -> Tensor:
        """See `cgd.guides.Guide`."""
        if self.path.suffix == ".npy":
            scores = _read_npy(self.path)
            check_classes(self.name, scores.shape[1], data)
            index = None
        else:
            table = _read_parquet(self.path)
            scores = _table_scores(self.path, table, data)
            check_classes(self.name, scores.shape[1], data)
            index = _table_index(self.path, table)
        if not np.isfinite(scores).all():
            raise InputError(f"{self.path}: holds NaN or infinite scores; give finite logits")
        return torch.from_numpy(_rows_of(self.path, scores, index, data))


def _rows_of(
    path: Path, scores: Scores, index: NDArray[np.int64] | None, data: ImageData
) -> Scores:
    """Pick the rows of `data`."""
    if index is None:
        if len(scores) != len(data):
            raise InputError(
                f"{path}: {len(scores)} rows, but {data.source} has {len(data)} usable images; "
                "give one row an image, or a Parquet file with a column `index`"
            )
        return scores
    rows = {int(source_row): row for row, source_row in enumerate(index)}
    if len(rows) != len(index):
        raise InputError(f"{path}: column `index` holds a row twice; give each once")
    missing = [int(wanted) for wanted in data.index if int(wanted) not in rows]
    if missing:
        raise InputError(
            f"{path}: no scores for {len(missing)} images of {data.source}, among them row "
            f"{missing[0]}; score all of them"
        )
    return scores[[rows[int(wanted)] for wanted in data.index]]


def _read_npy(path: Path) -> Scores:
    try:
        # Mapped, so that a header that lies about the size costs nothing; never unpickled.
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a NumPy array of numbers ({error})") from error
    if not isinstance(stored, np.ndarray) or stored.ndim != 2 or stored.dtype.kind not in "fiu":
        raise InputError(f"{path}: not an array [n, classes] of real numbers")
    return _as_float32(stored)


def _read_parquet(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a Parquet file that can be read ({reason})") from error


def _table_scores(path: Path, table: pa.Table, data: ImageData) -> Scores:
    """Take the scores [n, classes] out of a table."""
    names = table.column_names
    if "scores" in names and "scores" not in data.classes:
        return _list_column(path, table["scores"].combine_chunks())
    missing = [name for name in data.classes if names.count(name) != 1]
    if missing:
        raise InputError(
            f"{path}: no column {missing[0]!r}; name one column after each class, or use one list "
            "column `scores`"
        )
    return np.stack([_numbers(path, name, table[name]) for name in data.classes], axis=1)


def _list_column(path: Path, column: Any) -> Scores:
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(kind(column.type) for kind in kinds) or column.null_count:
        raise InputError(f"{path}: column 'scores' needs one list of numbers a row")
    lengths = set(column.value_lengths().to_pylist())
    if len(lengths) > 1:
        raise InputError(f"{path}: lists of different lengths in column 'scores'")
    values = _numbers(path, "scores", column.flatten())
    return values.reshape(len(column), lengths.pop() if lengths else 0)


def _numbers(path: Path, name: str, column: Any) -> Scores:
    numeric = pa.types.is_floating(column.type) or pa.types.is_integer(column.type)
    if not numeric or column.null_count:
        raise InputError(f"{path}: column {name!r} needs a number in every row")
    return _as_float32(column.to_numpy())


def _as_float32(values: NDArray[Any]) -> Scores:
    # What is too large becomes infinite, which is refused later.
    with np.errstate(over="ignore"):
        return np.array(values, dtype=np.float32)


def _table_index(path: Path, table: pa.Table) -> NDArray[np.int64] | None:
    if "index" not in table.column_names:
        return None
    column = table["index"]
    if not pa.types.is_integer(column.type) or column.null_count:
        raise InputError(f"{path}: column 'index' needs a row number in every row")
    return np.asarray(column.to_numpy(), dtype=np.int64)


@register("scores:FILE.npy|.parquet", lambda rest: [Path(rest).expanduser()])
def open_scores(request: Request) -> Guide:
    """Name a file of scores; it is read when the data is there.

    Raises:
        InputError: no such file, or another kind of file.
    """
    path = Path(request.rest).expanduser()
    if path.suffix not in (".npy", ".parquet"):
        raise InputError(f"guide {request.name}: scores come in a .npy or a .parquet file")
    if not path.is_file():
        raise InputError(f"{path}: no such file; name a file of class scores")
    return ScoresGuide(request.name, path)
