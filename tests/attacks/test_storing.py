"""Poisoned data as class folders: what is written is what is read."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cgd.attacks import make_attack, poison, read_manifest, read_poisoned, write_poisoned
from cgd.attacks.manifest import Manifest
from cgd.data import load
from cgd.data.dataset import ImageData, from_arrays
from cgd.data.folder import list_folder
from cgd.errors import InputError
from cgd.files import write_tensors

CLASSES: list[tuple[str, ...]] = [
    ("airplane", "bird", "cat", "truck"),
    ("truck", "cat", "bird", "airplane"),
    ("..", "../../up", "/etc/passwd", "a\\b\x00c"),
    ("Cat", "cat", "CAT ", " cat"),
    ("", ".hidden", "ünder", "x" * 500),
    ("test", "train", "val", "valid"),
    ("same", "same", "same", "same"),
    tuple(str(number) for number in range(12)),
]


def noise(classes: tuple[str, ...], n: int = 60) -> ImageData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 8, 8), generator=generator).to(torch.uint8)
    labels = torch.randint(0, len(classes), (n,), generator=generator)
    labels[: len(classes)] = torch.arange(len(classes))
    return from_arrays(images, labels, classes)


@pytest.mark.parametrize("classes", CLASSES, ids=lambda names: ascii(names[0]))
def test_class_folders_come_back_as_they_were(tmp_path: Path, classes: tuple[str, ...]) -> None:
    data, attack = noise(classes), make_attack("badnets", patch=16)
    poisoned, manifest = poison(data, attack, rate=0.2, target=2)
    manifest = replace(manifest, cover=[row for row in range(60) if row not in manifest.poison][:5])
    out = tmp_path / "out"
    write_poisoned(out, poisoned, attack, manifest, form="folder")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.name for path in out.iterdir()} == {"data", "classes.json", "poison.json"}
    assert len(list((out / "data").iterdir())) == len(classes)
    assert {path.parent.parent for path in out.rglob("*.png")} == {out / "data"}

    read, truth = load(out), read_manifest(out)
    assert not read.skipped
    assert read.classes == tuple(name.replace("\x00", "?") for name in classes)
    assert [int(Path(path).stem) for path in read.paths] == list(range(60))
    # Every image is there once, with its label.
    there = {image.numpy().tobytes(): i for i, image in enumerate(poisoned.images)}
    order = [there[image.numpy().tobytes()] for image in read.images]
    assert sorted(there.values()) == sorted(set(order))
    assert torch.equal(read.labels, poisoned.labels[order])
    # And the truth says the same of the same images.
    white = (read.images[..., 4:, 4:] == 255).flatten(1).all(1).nonzero()[:, 0].tolist()
    assert truth.poison == white
    assert (read.labels[white] == truth.target).all()
    assert sorted(order[row] for row in truth.cover) == manifest.cover
    originals = dict(zip(manifest.poison, manifest.original_labels, strict=True))
    assert sorted(truth.original_labels) == sorted(originals.values())
    assert len(truth.cover) == 5


def test_sorted_class_names_are_folder_names(tmp_path: Path) -> None:
    attack = make_attack("badnets")
    poisoned, manifest = poison(noise(CLASSES[0]), attack)
    write_poisoned(tmp_path, poisoned, attack, manifest, form="folder")
    assert list_folder(tmp_path / "data").classes == CLASSES[0]


def test_original_labels_follow_their_samples(tmp_path: Path) -> None:
    attack = make_attack("badnets", patch=1)
    data = noise(CLASSES[1])
    poisoned, manifest = poison(data, attack, rate=0.3, target=1)
    write_poisoned(tmp_path, poisoned, attack, manifest, form="folder")
    read, truth = load(tmp_path), read_manifest(tmp_path)
    top_rows = [image[:, :4].numpy().tobytes() for image in data.images]
    labels = dict(zip(top_rows, data.labels.tolist(), strict=True))
    found = [labels[read.images[row][:, :4].numpy().tobytes()] for row in truth.poison]
    assert truth.original_labels == found


def test_writing_again_replaces_what_was_there(tmp_path: Path) -> None:
    attack = make_attack("badnets")
    for n in (60, 40):
        poisoned, manifest = poison(noise(CLASSES[0], n), attack)
        write_poisoned(tmp_path, poisoned, attack, manifest, form="folder")
        assert len(load(tmp_path)) == n
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("names", [["a"], {}, None, [1, 2, 3, 4], "abcd"], ids=str)
def test_foreign_class_names_are_refused(tmp_path: Path, names: Any) -> None:
    attack = make_attack("badnets")
    poisoned, manifest = poison(noise(CLASSES[0]), attack)
    write_poisoned(tmp_path, poisoned, attack, manifest, form="folder")
    (tmp_path / "classes.json").write_text(json.dumps(names))
    with pytest.raises(InputError, match=r"classes\.json: not the names of the 4 class folders"):
        load(tmp_path)


def test_truth_in_another_order() -> None:
    made = Manifest("x", "dirty-label", {}, 0.1, 0, 0, [1, 4], [2], [5, 6])
    other = made.in_order(np.array([4, 3, 2, 1, 0]))
    assert (other.poison, other.original_labels, other.cover) == ([0, 3], [6, 5], [2])
    part = made.in_order(np.array([4, 0, 4]))
    assert (part.poison, part.original_labels, part.cover) == ([0, 2], [6, 6], [])


@pytest.mark.parametrize("name", ["blended", "adaptive-blend", "adaptive-patch", "wanet"])
def test_a_trigger_of_another_attack_is_refused(tmp_path: Path, name: str) -> None:
    data, attack = noise(CLASSES[0]), make_attack(name)
    poisoned, manifest = poison(data, attack, rate=0.1)
    write_poisoned(tmp_path, poisoned, attack, manifest)
    write_tensors(tmp_path / "trigger.safetensors", {"other": torch.zeros(1)})
    with pytest.raises(InputError, match=r"not in trigger\.safetensors"):
        read_poisoned(tmp_path)[0].trigger(data.images)
