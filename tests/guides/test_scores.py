"""Scores from files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cgd.errors import InputError
from cgd.guides import open_guide

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(12, 2)).astype(np.float32)


def columns(scores: np.ndarray = SCORES, **more: object) -> pa.Table:
    return pa.table({"cat": scores[:, 0], "dog": scores[:, 1], **more})


def write(path: Path, table: pa.Table) -> str:
    pq.write_table(table, path)
    return f"scores:{path}"


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f8", "<i4"])
def test_npy(noise_data, tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "s.npy", (10 * SCORES).astype(dtype))
    logits = open_guide(f"scores:{tmp_path / 's.npy'}").logits(noise_data())
    assert logits.dtype == torch.float32
    assert np.array_equal(logits.numpy(), (10 * SCORES).astype(dtype).astype(np.float32))


@pytest.mark.parametrize(
    "table",
    [
        columns(),
        columns().select(["dog", "cat"]),
        columns(other=["x"] * 12),
        pa.table({"scores": SCORES.tolist()}),
        pa.table({"scores": pa.FixedSizeListArray.from_arrays(SCORES.ravel(), 2)}),
    ],
)
def test_parquet(noise_data, tmp_path: Path, table: pa.Table) -> None:
    logits = open_guide(write(tmp_path / "s.parquet", table)).logits(noise_data())
    assert np.allclose(logits.numpy(), SCORES)


def test_rows_are_matched_by_index(noise_data, tmp_path: Path) -> None:
    order = RNG.permutation(12)
    spec = write(tmp_path / "s.parquet", columns(SCORES[order], index=order))
    part = noise_data().subset(np.array([7, 2, 5]))
    assert np.array_equal(open_guide(spec).logits(part).numpy(), SCORES[[7, 2, 5]])


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (SCORES[:11], "11 rows, but memory has 12"),
        (np.ones((12, 3)), "3 classes, but memory has 2"),
        (np.ones(12), "not an array"),
        (np.ones((12, 2, 1)), "not an array"),
        (SCORES.astype(complex), "not an array"),
        (SCORES > 0, "not an array"),
        (np.full((12, 2), np.nan), "NaN or infinite"),
        (np.full((12, 2), np.inf), "NaN or infinite"),
        (np.full((12, 2), 1e300), "NaN or infinite"),
    ],
)
def test_bad_arrays(noise_data, tmp_path: Path, array: np.ndarray, words: str) -> None:
    np.save(tmp_path / "s.npy", array)
    with pytest.raises(InputError, match=words):
        open_guide(f"scores:{tmp_path / 's.npy'}").logits(noise_data())


def _pickled(path: Path) -> None:
    np.save(path, np.array([[{}, {}]], dtype=object), allow_pickle=True)


def _garbage(path: Path) -> None:
    path.write_bytes(b"nothing of the kind")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=SCORES)


def _lying_header(path: Path) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 2), }\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


@pytest.mark.parametrize("make", [_pickled, _garbage, _empty, _archive, _lying_header])
def test_hostile_npy(noise_data, tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "s.npy")
    with pytest.raises(InputError, match=r"s\.npy: not an? "):
        open_guide(f"scores:{tmp_path / 's.npy'}").logits(noise_data())


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (columns().select(["cat"]), "no column 'dog'"),
        (columns(SCORES[:5]), "5 rows, but memory has 12"),
        (pa.table({"cat": ["a"] * 12, "dog": ["b"] * 12}), "a number in every row"),
        (pa.table({"cat": [None, *range(11)], "dog": range(12)}), "a number in every row"),
        (pa.table({"scores": [[1.0], [1.0, 2.0]]}), "different lengths"),
        (pa.table({"scores": [[1.0, 2.0], None]}), "one list of numbers"),
        (pa.table({"scores": [1.0, 2.0]}), "one list of numbers"),
        (pa.table({"scores": [[1.0, 2.0, 3.0]] * 12}), "3 classes, but memory has 2"),
        (columns(index=[0] * 12), "a row twice"),
        (columns(index=range(1, 13)), "no scores for 1 images"),
        (columns(index=["a"] * 12), "a row number in every row"),
        (columns(SCORES * np.inf), "NaN or infinite"),
    ],
)
def test_bad_tables(noise_data, tmp_path: Path, table: pa.Table, words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_guide(write(tmp_path / "s.parquet", table)).logits(noise_data())


def test_bad_files(noise_data, tmp_path: Path) -> None:
    _garbage(tmp_path / "s.parquet")
    with pytest.raises(InputError, match="not a Parquet file"):
        open_guide(f"scores:{tmp_path / 's.parquet'}").logits(noise_data())
    with pytest.raises(InputError, match="no such file"):
        open_guide(f"scores:{tmp_path / 'missing.npy'}")
    with pytest.raises(InputError, match=r"\.npy or a \.parquet"):
        open_guide(f"scores:{tmp_path / 's.pkl'}")
