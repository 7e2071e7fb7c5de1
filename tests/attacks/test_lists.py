"""Lists of labels and of samples, as users and hostile files give them."""

import json
import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cgd.attacks import lists
from cgd.attacks.lists import read_labels, read_rows
from cgd.data import ImageData, Skipped, from_arrays
from cgd.errors import InputError

CLASSES = ("cat", "dog", "a b, c")


def samples(n: int = 5, classes: Sequence[str] = CLASSES) -> ImageData:
    """Black images: cat/0.png, cat/1.png, ..."""
    images, labels = torch.zeros(n, 3, 1, 1, dtype=torch.uint8), torch.zeros(n)
    paths = [f"cat/{i}.png" for i in range(n)]
    return replace(from_arrays(images, labels, classes), paths=paths)


def damaged() -> ImageData:
    """Five usable ones of seven: rows 1 and 5 could not be read, and a link has no row."""
    skipped = (Skipped("up", "link"), Skipped("cat/1.png", "empty", 1), Skipped("5.png", "cut", 5))
    return replace(samples(7).subset(np.array([0, 2, 3, 4, 6])), skipped=skipped)


def store(path: Path, values: Any) -> Path:
    if path.suffix == ".npy":
        np.save(path, np.asarray(values))
    elif path.suffix == ".json":
        path.write_text(json.dumps(values))
    else:
        path.write_text("".join(f"{value}\n" for value in values))
    return path


@pytest.mark.parametrize("suffix", [".npy", ".json", ".csv", ".txt"])
@pytest.mark.parametrize("values", [[0, 2, 1, 0], ["cat", "a b, c", "dog", "cat"]], ids=str)
def test_labels_are_numbers_or_names(tmp_path: Path, suffix: str, values: list[Any]) -> None:
    path = store(tmp_path / f"labels{suffix}", values)
    labels = read_labels(path, samples(4))
    assert labels.dtype == np.int64
    assert labels.tolist() == [0, 2, 1, 0]


@pytest.mark.parametrize("suffix", [".npy", ".json", ".csv", ".txt"])
@pytest.mark.parametrize("values", [[3, 1, 3], ["cat/3.png", "./cat/1.png"]], ids=str)
def test_rows_are_numbers_or_paths(tmp_path: Path, suffix: str, values: list[Any]) -> None:
    path = store(tmp_path / f"rows{suffix}", values)
    assert read_rows(path, samples()).tolist() == [1, 3]


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_the_largest_of_some_scores_is_the_label(tmp_path: Path, suffix: str) -> None:
    path = store(tmp_path / f"scores{suffix}", [[0.5, 2.0, 1.0], [3.0, 0.0, -1.0]])
    assert read_labels(path, samples(2)).tolist() == [1, 0]
    with pytest.raises(InputError, match="expected one value a sample"):
        read_rows(path, samples(2))
    with pytest.raises(InputError, match="3 scores a sample, but the data has 2 classes"):
        read_labels(path, samples(2, CLASSES[:2]))
    store(path, [[0.5, math.nan, 1.0]])
    with pytest.raises(InputError, match="scores that are no numbers"):
        read_labels(path, samples(1))


@pytest.mark.parametrize("rows", [[[1, 2, 3], [1, 2]], [[{}], [1]], [["a"], ["b"]]], ids=str)
def test_ragged_scores_are_refused(tmp_path: Path, rows: Any) -> None:
    path = store(tmp_path / "scores.json", rows)
    with pytest.raises(InputError, match="as many numbers for each sample"):
        read_labels(path, samples(2))


@pytest.mark.parametrize("kind", ["u1", "i2", ">i4", "<i8", "u8"])
def test_any_kind_of_whole_number_will_do(tmp_path: Path, kind: str) -> None:
    np.save(tmp_path / "list.npy", np.array([1, 0, 2], dtype=kind))
    assert read_labels(tmp_path / "list.npy", samples(3)).tolist() == [1, 0, 2]
    assert read_rows(tmp_path / "list.npy", samples()).tolist() == [0, 1, 2]


def test_numbers_beyond_64_bits_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "list.npy", np.array([2**64 - 1], dtype=np.uint64))
    with pytest.raises(InputError, match="the classes are 0 to 2"):
        read_labels(tmp_path / "list.npy", samples(1))


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_rows_can_be_a_mask(tmp_path: Path, suffix: str) -> None:
    path = store(tmp_path / f"rows{suffix}", [False, True, False, True, False])
    assert read_rows(path, samples()).tolist() == [1, 3]
    with pytest.raises(InputError, match=r"a mask of 5 values for 6 images"):
        read_rows(path, samples(6))


def test_rows_count_in_the_source_where_images_were_skipped(tmp_path: Path) -> None:
    mask = [row in (3, 6) for row in range(7)]
    usable = [position in (2, 4) for position in range(5)]
    paths = ["cat/3.png", "cat/6.png"]
    for number, values in enumerate(([6, 3], mask, usable, paths)):
        path = store(tmp_path / f"{number}.json", values)
        assert read_rows(path, damaged()).tolist() == [2, 4]


@pytest.mark.parametrize("values", [[6, 5], [row == 5 for row in range(7)]], ids=str)
def test_a_row_that_was_skipped_is_refused(tmp_path: Path, values: list[Any]) -> None:
    path = store(tmp_path / "rows.json", values)
    with pytest.raises(InputError, match=r"names row 5, but '5\.png' could not be used \(cut\)"):
        read_rows(path, damaged())


def test_only_rows_of_the_source_are_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="value 1 is row 7; the images are 0 to 6"):
        read_rows(store(tmp_path / "rows.json", [7]), damaged())
    with pytest.raises(InputError, match="a mask of 6 values for 5 images"):
        read_rows(store(tmp_path / "rows.json", [True] * 6), damaged())


def test_labels_are_for_all_rows_or_for_the_usable_images(tmp_path: Path) -> None:
    for values in ([0, 2, 1, 2, 0, 2, 1], ["cat", "a b, c", "dog", "a b, c", "cat", "cat", "dog"]):
        path = store(tmp_path / "labels.json", values)
        assert read_labels(path, damaged()).tolist() == [0, 1, 2, 0, 1]
    path = store(tmp_path / "scores.json", np.eye(3)[[0, 2, 1, 2, 0, 2, 1]].tolist())
    assert read_labels(path, damaged()).tolist() == [0, 1, 2, 0, 1]
    path = store(tmp_path / "labels.json", [0, 1, 2, 0, 1])
    assert read_labels(path, damaged()).tolist() == [0, 1, 2, 0, 1]
    with pytest.raises(InputError, match="6 labels for 5 images"):
        read_labels(store(tmp_path / "labels.json", [0] * 6), damaged())


def test_numbered_class_names_are_names_first(tmp_path: Path) -> None:
    path = store(tmp_path / "labels.csv", [10, 2, 1])
    assert read_labels(path, samples(3, ("1", "10", "2"))).tolist() == [1, 2, 0]
    path = store(tmp_path / "labels.json", [0, 2, 1])
    assert read_labels(path, samples(3, ("1", "10", "2"))).tolist() == [0, 2, 1]


def test_byte_order_mark_windows_lines_and_a_last_empty_line(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes("\ufeffcat\r\ndog\r\n\r\n".encode())
    assert read_labels(path, samples(2)).tolist() == [0, 1]


@pytest.mark.parametrize("suffix", [".npy", ".json", ".csv"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 1], "2 labels for 3 images"),
        ([0, 1, 2, 0], "4 labels for 3 images"),
        ([0, 1, 3], "value 3 is label 3; the classes are 0 to 2"),
        (["cat", "cow", "dog"], "value 2 is 'cow', no class of the data"),
    ],
    ids=str,
)
def test_labels_that_do_not_fit_are_refused(
    tmp_path: Path, suffix: str, values: list[Any], message: str
) -> None:
    path = store(tmp_path / f"labels{suffix}", values)
    with pytest.raises(InputError, match=message) as caught:
        read_labels(path, samples(3))
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("suffix", [".npy", ".json", ".csv"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 5], "value 2 is row 5; the images are 0 to 4"),
        (["cat/9.png"], "no image has the path 'cat/9.png'"),
    ],
    ids=str,
)
def test_rows_that_are_not_there_are_refused(
    tmp_path: Path, suffix: str, values: list[Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_rows(store(tmp_path / f"rows{suffix}", values), samples())


@pytest.mark.parametrize(("suffix", "values"), [(".npy", [-1]), (".json", [-1]), (".csv", [-1])])
def test_negative_rows_are_refused(tmp_path: Path, suffix: str, values: list[int]) -> None:
    with pytest.raises(InputError, match=r"row -1|the path '-1'"):
        read_rows(store(tmp_path / f"rows{suffix}", values), samples())


@pytest.mark.parametrize(("name", "text"), [("r.json", "[]"), ("r.csv", ""), ("r.txt", "\n\n")])
def test_an_empty_list_of_rows_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match="names no sample"):
        read_rows(tmp_path / name, samples())


def test_a_path_of_several_images_is_refused(tmp_path: Path) -> None:
    path = store(tmp_path / "rows.txt", ["a.png"])
    with pytest.raises(InputError, match=r"several images have the path 'a\.png'; use row numbers"):
        read_rows(path, replace(samples(2), paths=["a.png", "a.png"]))


def test_names_of_several_classes_are_refused(tmp_path: Path) -> None:
    path = store(tmp_path / "labels.csv", ["cat", "cat"])
    with pytest.raises(InputError, match="several classes have the same name"):
        read_labels(path, samples(2, ("cat", "cat")))


def matrix(path: Path) -> None:
    np.save(path, np.zeros((3, 2), dtype=np.int64))


def decimals(path: Path) -> None:
    np.save(path, np.zeros(3))


def archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, np.zeros(3, dtype=np.int64))


def cut(path: Path) -> None:
    np.save(path, np.zeros(1000, dtype=np.int64))
    path.write_bytes(path.read_bytes()[:500])


def huge_claim(path: Path) -> None:
    np.save(path, np.zeros(3, dtype=np.int64))
    path.write_bytes(path.read_bytes().replace(b"(3,), }         ", b"(999999999999,),}"[:16]))


@pytest.mark.parametrize(
    "make", [matrix, decimals, archive, cut, huge_claim, Path.touch, Path.mkdir]
)
def test_other_arrays_are_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "list.npy"
    make(path)
    for read in (read_labels, read_rows):
        with pytest.raises(InputError, match=r"list\.npy"):
            read(path, samples(3))


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    np.save(tmp_path / "objects.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    (tmp_path / "bare.npy").write_bytes(pickle.dumps(Evil()))
    for name in ("objects.npy", "bare.npy"):
        with pytest.raises(InputError, match="not objects"):
            read_rows(tmp_path / name, samples(1))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "3",
        "[1, true]",
        '[1, "cat"]',
        "[1.5]",
        "[null]",
        "[[1]]",
        "[1e400]",
        "[",
        f"[{2**64}]",
    ],
)
def test_other_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(text)
    for read in (read_labels, read_rows):
        with pytest.raises(InputError, match=r"list\.json"):
            read(path, samples(1))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as text"):
        read_labels(path, samples(1))


@pytest.mark.parametrize(
    ("name", "message"),
    [("list.npz", "use .npy, .json"), ("list.pkl", "unknown kind"), ("none.csv", "no such file")],
)
def test_other_files_are_refused(tmp_path: Path, name: str, message: str) -> None:
    if name.startswith("list"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=message):
        read_labels(tmp_path / name, samples(1))


def test_large_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "MAX_BYTES", 2**20)
    path = tmp_path / "list.txt"
    path.write_bytes(b"0\n" * 2**20)
    with pytest.raises(InputError, match="larger than 1 MiB"):
        read_rows(path, samples(1))


def test_hostile_values_are_shown_escaped(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps(["cow\x1b[2J\n" + "x" * 500]))
    with pytest.raises(InputError) as caught:
        read_labels(path, samples(1))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
