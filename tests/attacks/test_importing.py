"""Poisoned data that others made."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cgd.attacks import read_manifest, read_poisoned, write_poisoned
from cgd.attacks.backdoorbench import read_record
from cgd.attacks.importing import Imported, import_listed, import_record
from cgd.data import load
from cgd.data.dataset import ImageData
from cgd.errors import InputError

RecordMaker = Callable[..., Path]
ImagesMaker = Callable[..., Tensor]
DataMaker = Callable[..., ImageData]

# The class of row r of the noise data is r % 4.


@pytest.fixture
def data(noise_data: DataMaker) -> ImageData:
    return noise_data(20)


def taken(record: Path, clean: ImageData) -> Imported:
    return import_record(read_record(str(record)), clean, 0)


def test_samples_that_are_named_are_the_poison(data: ImageData) -> None:
    made = import_listed(data, rows=np.array([2, 6, 7]), seed=3)
    truth = made.manifest
    assert (truth.attack, truth.family, truth.seed) == ("imported", "unknown", 3)
    assert (truth.poison, truth.original_labels, truth.target) == ([2, 6, 7], [], 2)
    assert truth.rate == 3 / 20
    assert torch.equal(made.data.labels, data.labels)
    assert made.clean is None
    named = import_listed(data, rows=np.array([2]), family="clean-image")
    assert named.manifest.family == "clean-image"
    assert not named.manifest.knows_labels
    kept = import_listed(data, rows=np.array([2, 7]), family="clean-label").manifest
    assert (kept.family, kept.original_labels) == ("clean-label", [2, 3])


def test_samples_whose_label_changed_are_the_poison(data: ImageData) -> None:
    labels = data.labels.numpy().copy()
    labels[[4, 12, 13]] = [1, 1, 3]
    made = import_listed(data, labels=labels)
    truth = made.manifest
    assert truth.family == "clean-image"
    assert (truth.poison, truth.target) == ([4, 12, 13], 1)
    assert truth.original_labels == [0, 0, 1]
    assert made.data.labels.tolist() == labels.tolist()
    assert torch.equal(made.data.images, data.images)


def test_the_clean_data_tells_the_labels_before(data: ImageData, noise_data: DataMaker) -> None:
    poisoned = noise_data(20)
    poisoned.labels[[4, 5]] = 3
    made = import_listed(poisoned, rows=np.array([4, 5, 7]), clean=data)
    assert made.manifest.family == "dirty-label"
    assert made.manifest.original_labels == [0, 1, 3]
    assert made.manifest.target == 3
    assert made.clean is data.images


def test_what_tells_nothing_is_refused(data: ImageData, noise_data: DataMaker) -> None:
    with pytest.raises(InputError, match="say what is poisoned, with --index or --labels"):
        import_listed(data)
    with pytest.raises(InputError, match="changes no label"):
        import_listed(data, labels=data.labels.numpy())
    with pytest.raises(InputError, match="24 images, but memory has 20"):
        import_listed(data, rows=np.array([1]), clean=noise_data(24))
    with pytest.raises(InputError, match="other classes"):
        import_listed(data, rows=np.array([1]), clean=noise_data(20, 5))


def test_clean_data_with_other_rows_is_refused(data: ImageData) -> None:
    """As many images, but each has another one that could not be used."""
    poisoned, clean = (data.subset(np.delete(np.arange(20), row)) for row in (12, 7))
    with pytest.raises(InputError, match="row 7 could be used here or in memory, but not in both"):
        import_listed(poisoned, rows=np.array([1]), clean=clean)


def test_a_record_is_put_into_the_clean_data(
    tmp_path: Path, data: ImageData, make_record: RecordMaker, noise_images: ImagesMaker
) -> None:
    """Rows 3, 6, 13 get class 1, as 9 has already; 14 is changed and keeps its label: cover."""
    rows = [3, 6, 9, 13, 14]
    images = dict(zip(rows, noise_images(5, 8, seed=9), strict=True))
    before = {row: row % 4 for row in rows}
    after = {3: 1, 6: 1, 9: 1, 13: 1, 14: 2}
    record = read_record(str(make_record(tmp_path / "record", images, before, after, 20)))
    made = import_record(record, data, 0, seed=5)
    truth = made.manifest
    assert (truth.poison, truth.cover, truth.target) == ([3, 6, 9, 13], [14], 1)
    assert (truth.family, truth.seed, truth.rate) == ("dirty-label", 5, 0.2)
    assert truth.original_labels == [3, 2, 1, 1]
    for row in range(20):
        assert torch.equal(made.data.images[row], images.get(row, data.images[row]))
        assert made.data.labels[row] == after.get(row, row % 4)
    assert made.clean is data.images

    out = tmp_path / "out"
    write_poisoned(out, made.data, None, truth)
    assert {path.name for path in out.iterdir()} == {"data.parquet", "poison.json"}
    assert load(out).fingerprint == made.data.fingerprint or load(out).labels.equal(
        made.data.labels
    )
    assert torch.equal(load(out).images, made.data.images)
    assert read_manifest(out) == truth
    with pytest.raises(InputError, match="imported poison; its trigger is not known"):
        read_poisoned(out)


def test_images_alone_get_the_target(
    tmp_path: Path, data: ImageData, make_record: RecordMaker, noise_images: ImagesMaker
) -> None:
    images = dict(zip((3, 6), noise_images(2, 8, seed=9), strict=True))
    record = read_record(str(make_record(tmp_path, images, {3: 3, 6: 2}, None, 20)))
    made = import_record(record, data, 2)
    assert (made.manifest.family, made.manifest.target) == ("dirty-label", 2)
    assert (made.manifest.poison, made.manifest.cover) == ([3, 6], [])
    assert made.data.labels[[3, 6]].tolist() == [2, 2]


def test_a_record_that_changes_no_label_is_clean_label(
    tmp_path: Path, data: ImageData, make_record: RecordMaker, noise_images: ImagesMaker
) -> None:
    labels = {2: 2, 6: 2}
    images = dict(zip(labels, noise_images(2, 8, seed=9), strict=True))
    made = import_record(
        read_record(str(make_record(tmp_path, images, labels, labels, 20))), data, 0
    )
    assert (made.manifest.family, made.manifest.target) == ("clean-label", 2)
    assert (made.manifest.poison, made.manifest.cover) == ([2, 6], [])


def test_of_many_goals_what_kept_its_label_is_cover(
    tmp_path: Path, data: ImageData, make_record: RecordMaker, noise_images: ImagesMaker
) -> None:
    before, after = {1: 1, 2: 2, 3: 3}, {1: 2, 2: 3, 3: 3}
    images = dict(zip(before, noise_images(3, 8, seed=9), strict=True))
    made = import_record(
        read_record(str(make_record(tmp_path, images, before, after, 20))), data, 0
    )
    assert (made.manifest.poison, made.manifest.cover) == ([1, 2], [3])


def test_the_training_data_may_be_in_another_order(
    tmp_path: Path, data: ImageData, make_record: RecordMaker, noise_images: ImagesMaker
) -> None:
    images = dict(zip((3, 6), noise_images(2, 8, seed=9), strict=True))
    order = [6, 0, 1, 3, 6]
    folder = make_record(tmp_path, images, {3: 3, 6: 2}, {3: 0, 6: 0}, 20, order=order)
    made = import_record(read_record(str(folder)), data, 0)
    assert made.manifest.poison == [0, 3, 4]
    assert made.manifest.original_labels == [2, 3, 2]
    assert made.manifest.rate == 3 / 5
    assert made.data.labels.tolist() == [0, 0, 1, 0, 0]
    assert made.data.index.tolist() == list(range(5))
    assert torch.equal(made.data.images[3], images[3])
    assert made.clean is not None
    assert torch.equal(made.clean, data.images[order])


def test_rows_count_in_the_source_of_the_clean_data(
    tmp_path: Path, data: ImageData, make_record: RecordMaker, noise_images: ImagesMaker
) -> None:
    """Where an image of the clean data was skipped, the rows after it are still found."""
    part = data.subset(np.array([0, 1, 2, 5, 6, 7]))
    image = noise_images(1, 8, seed=9)[0]
    folder = make_record(tmp_path, {6: image}, {6: 2}, {6: 0}, 20, changes=None)
    (folder / "attack_result.pt").unlink()
    made = import_record(read_record(str(folder)), part, 0)
    assert made.manifest.poison == [4]
    assert torch.equal(made.data.images[4], image)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({3: 2}, {3: 0}, "row 3 was of class 2, but in --clean memory it is of class 3"),
        ({30: 2}, {30: 0}, "row 30 is not in --clean memory"),
        ({3: 3}, {3: 4}, "row 3 gets class 4; there are 4"),
        ({3: 3}, {3: -1}, "row 3 gets class -1"),
    ],
    ids=str,
)
def test_a_record_of_other_data_is_refused(
    tmp_path: Path,
    data: ImageData,
    make_record: RecordMaker,
    noise_images: ImagesMaker,
    before: dict[int, int],
    after: dict[int, int],
    message: str,
) -> None:
    images = dict.fromkeys(before, noise_images(1, 8)[0])
    record = read_record(str(make_record(tmp_path, images, before, after, 40)))
    with pytest.raises(InputError, match=message):
        import_record(record, data, 0)


def test_a_damaged_image_is_refused(
    tmp_path: Path, data: ImageData, make_record: RecordMaker, noise_images: ImagesMaker
) -> None:
    make_record(tmp_path, {3: noise_images(1, 8)[0]}, {3: 3}, {3: 0}, 20)
    (tmp_path / "bd_train_dataset" / "3" / "3.png").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"3/3\.png: not an image"):
        import_record(read_record(str(tmp_path)), data, 0)
