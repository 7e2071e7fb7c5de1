"""Records of BackdoorBench, sound and hostile."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cgd.attacks.backdoorbench import is_record, read_record
from cgd.errors import InputError

RecordMaker = Callable[..., Path]
ImagesMaker = Callable[..., Tensor]

BEFORE = {2: 1, 5: 3, 11: 0}
AFTER = {2: 0, 5: 0, 11: 0}


@pytest.fixture
def record(tmp_path: Path, make_record: RecordMaker, noise_images: ImagesMaker) -> Path:
    images = dict(zip(BEFORE, noise_images(3, 8), strict=True))
    return make_record(tmp_path / "record", images, BEFORE, AFTER, 20)


def test_a_record_says_who_was_changed_and_how(record: Path) -> None:
    for source in (record, record / "attack_result.pt"):
        assert is_record(str(source))
        read = read_record(str(source))
        assert read.before == BEFORE
        assert read.after == AFTER
        assert read.order is None
        assert sorted(read.places) == [2, 5, 11]
        assert len(read.images) == 3


def test_images_alone_are_a_record(record: Path) -> None:
    (record / "attack_result.pt").unlink()
    read = read_record(str(record))
    assert read.before == BEFORE
    assert read.after is None


@pytest.mark.parametrize("source", ["nowhere", "", "a\0b", "torchvision:MNIST", "x" * 5000])
def test_other_sources_are_no_records(source: str) -> None:
    assert not is_record(source)


def test_another_order_of_the_training_data_is_read(
    tmp_path: Path, make_record: RecordMaker, noise_images: ImagesMaker
) -> None:
    make_record(tmp_path, {2: noise_images(1, 8)[0]}, {2: 1}, {2: 0}, 20, order=[4, 2, 2])
    order = read_record(str(tmp_path)).order
    assert order is not None
    assert order.tolist() == [4, 2, 2]


@pytest.mark.parametrize(
    "indicator",
    [
        np.array([0, 0, 1, 0], dtype=np.int32),
        np.array([False, False, True, False]),
        np.array([0, 0, 1, 0], dtype=">f4"),
        [0, 0, 1, 0],
    ],
    ids=str,
)
def test_numbers_of_any_kind_are_read(
    tmp_path: Path, make_record: RecordMaker, noise_images: ImagesMaker, indicator: Any
) -> None:
    images = {row: noise_images(1, 8)[0] for row in (1, 2)}
    labels = {1: 0, 2: np.int64(3)}
    changes = {"poison_indicator": indicator}
    make_record(tmp_path, images, labels, labels, 4, changes=changes)
    assert read_record(str(tmp_path)).after == {2: 3}


@pytest.mark.parametrize(
    "name", ["1/x.png", "1/2.jpg", "one/2.png", "1/a/2.png", "1/-2.png", "1/ 2.png"]
)
def test_oddly_named_images_are_refused(record: Path, name: str) -> None:
    path = record / "bd_train_dataset" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((record / "bd_train_dataset" / "1" / "2.png").read_bytes())
    with pytest.raises(InputError, match=r"not named LABEL/ROW\.png"):
        read_record(str(record))


def test_a_row_that_is_there_twice_is_refused(record: Path) -> None:
    content = (record / "bd_train_dataset" / "1" / "2.png").read_bytes()
    (record / "bd_train_dataset" / "3" / "2.png").write_bytes(content)
    with pytest.raises(InputError, match="row 2 is there twice"):
        read_record(str(record))


def test_a_missing_image_is_refused(record: Path) -> None:
    (record / "bd_train_dataset" / "3" / "5.png").unlink()
    with pytest.raises(InputError, match=r"no image of row 5, which attack_result\.pt names"):
        read_record(str(record))


def test_a_result_without_images_is_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "attack_result.pt")
    with pytest.raises(InputError, match="no bd_train_dataset folder"):
        read_record(str(tmp_path))


class Evil:
    def __init__(self, call: tuple[Any, ...]) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def evil(path: Path) -> list[Any]:
    from numpy._core.multiarray import _reconstruct, scalar

    return [
        Evil((os.system, (f"touch {path}",))),
        np.array([Evil((os.system, (f"touch {path}",)))], dtype=object),
        np.array(["text"]),
        np.array([(1, 2)], dtype=[("a", "i4"), ("b", "i4")]),
        Evil((scalar, (np.dtype("i8"), b"short"))),
        Evil((_reconstruct, (np.ndarray, (0,), b"b"), (1, (9,), np.dtype("i8"), False, b"short"))),
        Evil((_reconstruct, (np.ndarray, (0,), b"b"), (1, (-1,), np.dtype("i8"), False, b""))),
        Evil((np.dtype, ("V99", False, True))),
        Path("x"),
    ]


@pytest.mark.parametrize("number", range(9))
def test_objects_are_refused_and_not_run(
    tmp_path: Path, make_record: RecordMaker, noise_images: ImagesMaker, number: int
) -> None:
    changes = {"getitem_all": evil(tmp_path / "ran")[number]}
    make_record(tmp_path, {2: noise_images(1, 8)[0]}, {2: 1}, {2: 0}, 20, changes=changes)
    with pytest.raises(InputError, match=r"cannot be read safely.*--target.*--index"):
        read_record(str(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"poison_indicator": np.zeros(20)},
        {"poison_indicator": np.ones(20)},
        {"poison_indicator": "1"},
        {"poison_indicator": np.zeros((2, 2))},
        {"original_index_array": None},
        {"original_index_array": np.array([-1])},
        {"original_index_array": np.array([np.nan])},
        {"bd_data_container": {"data_dict": {}}},
        {"bd_data_container": {"data_dict": {2: None}}},
        {"bd_data_container": {"data_dict": {2: {"other_info": []}}}},
        {"bd_data_container": {"data_dict": [2]}},
        {"bd_data_container": None},
    ],
    ids=str,
)
def test_a_result_that_says_something_else_is_refused(
    tmp_path: Path, make_record: RecordMaker, noise_images: ImagesMaker, changes: dict[str, Any]
) -> None:
    make_record(tmp_path, {2: noise_images(1, 8)[0]}, {2: 1}, {2: 0}, 20, changes=changes)
    with pytest.raises(InputError, match=r"attack_result\.pt"):
        read_record(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"x" * 100, None])
def test_a_damaged_result_is_refused(record: Path, content: bytes | None) -> None:
    path = record / "attack_result.pt"
    path.write_bytes(path.read_bytes()[:500] if content is None else content)
    with pytest.raises(InputError, match="cannot be read safely"):
        read_record(str(record))


@pytest.mark.parametrize(
    "content", [{}, [], 3, {"bd_train": None}, {"bd_train": {"x": 1}}], ids=str
)
def test_another_result_is_refused(record: Path, content: Any) -> None:
    torch.save(content, record / "attack_result.pt")
    with pytest.raises(InputError, match="not a BackdoorBench 2 result"):
        read_record(str(record))
