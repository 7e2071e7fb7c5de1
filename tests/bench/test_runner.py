"""A tiny suite from data to cells: what is stored, what is shared, and what is resumed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cgd.bench import Suite, render, run_suite, write_cells
from cgd.bench import runner as bench
from cgd.bench.tables import read_cells
from cgd.data import ImageData, load, write_parquet
from cgd.errors import InputError
from cgd.evaluation import evaluate
from cgd.models import load_model
from cgd.presets import PRESETS
from cgd.training import predict

CPU = torch.device("cpu")
DataMaker = Callable[..., ImageData]
SUITE = Suite(
    name="tiny",
    question="Does it run?",
    protocol="small",
    dataset="toy",
    train="toy/train.parquet",
    test="toy/test.parquet",
    defended=100,
    trusted=50,
    guide_epochs=2,
    model="tiny_resnet",
    epochs=1,
    flip=True,
    attacks=("badnets",),
    rates=(0.1,),
    defenses=("default",),
    seeds=(1,),
)
KEYS = ["badnets-0.1-1", "none-0-1"]


@pytest.fixture(scope="module", autouse=True)
def _brief_repairs() -> Any:
    preset = PRESETS["default"]
    brief = replace(preset.unlearning, rounds=1, steps=2, clean_batch=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "default", replace(preset, unlearning=brief))
        yield


@pytest.fixture(scope="module")
def world(toy_data: DataMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the data sets, and under `out` the finished suite."""
    folder = tmp_path_factory.mktemp("bench")
    write_parquet(toy_data(160, tint=20), folder / "toy" / "train.parquet")
    write_parquet(toy_data(60, seed=1, tint=20), folder / "toy" / "test.parquet")
    run(folder)
    return folder


def run(folder: Path, suite: Suite = SUITE) -> list[dict[str, Any]]:
    return run_suite(suite, folder, folder / "out", CPU)


def cell_of(cells: list[dict[str, Any]], attack: str, defense: str) -> dict[str, Any]:
    (cell,) = [c for c in cells if (c["attack"], c["defense"]) == (attack, defense)]
    return cell


def test_every_scene_has_an_undefended_and_a_defended_cell(world: Path) -> None:
    names = sorted(path.name for path in (world / "out" / "cells").iterdir())
    assert names == [f"{key}-{defense}.json" for key in KEYS for defense in ("default", "none")]
    for cell in run(world):
        assert (cell["protocol"], cell["dataset"], cell["model"]) == (
            "small", "toy", "tiny_resnet",
        )  # fmt: skip
        assert cell["seed"] == 1
        assert cell["seconds"] > 0
        assert cell["rate"] == (0.1 if cell["attack"] == "badnets" else 0)


def test_numbers_that_do_not_apply_are_absent(world: Path) -> None:
    cells = run(world)
    poison = ("asr", "ra", "asr_floor", "ra_ceiling")
    for defense in ("none", "default"):
        assert all(cell_of(cells, "none", defense)[name] is None for name in poison)
        assert all(cell_of(cells, "badnets", defense)[name] is not None for name in poison)
        assert "auroc" not in cell_of(cells, "none", defense)
    assert "auroc" not in cell_of(cells, "badnets", "none")
    assert 0 <= cell_of(cells, "badnets", "default")["auroc"] <= 1


def test_undefended_cells_are_their_victims_and_the_clean_model_sets_the_floor(
    world: Path,
) -> None:
    cells, test = run(world), load(world / "toy" / "test.parquet")
    attack = bench.attacks.make_attack("badnets")
    victim, clean = (load_model(world / "out" / "work" / f"{key}-victim") for key in KEYS)
    found, floor = (evaluate(model, test, attack, device=CPU) for model in (victim, clean))
    cell = cell_of(cells, "badnets", "none")
    assert (cell["ca"], cell["asr"], cell["ra"]) == (found.ca, found.asr, found.ra)
    assert cell["passes"] == 1
    for defense in ("none", "default"):
        cell = cell_of(cells, "badnets", defense)
        assert (cell["asr_floor"], cell["ra_ceiling"]) == (floor.asr, floor.ra)
    assert cell_of(cells, "none", "none")["ca"] == floor.ca


def test_the_guide_learns_from_images_that_are_not_defended(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[ImageData] = []
    model = bench._model

    def spy(folder: Path, suite: Suite, data: ImageData, *rest: Any) -> Any:
        trained.append(data)
        return model(folder, suite, data, *rest)

    monkeypatch.setattr(bench, "_model", spy)
    suite = replace(SUITE, attacks=())
    cells = run_suite(suite, world, tmp_path, CPU)
    trusted, defended = trained[:2]
    assert (len(trusted), len(defended)) == (50, 100)
    assert not set(trusted.index) & set(defended.index)
    guide = load_model(tmp_path / "work" / "guide")
    guessed = predict(guide, defended.images, device=CPU).argmax(1)
    right = 100 * float((guessed == defended.labels).float().mean())
    assert cells[0]["guide_accuracy"] == pytest.approx(right, abs=1e-3)


def test_stored_cells_stay_as_they_are(world: Path) -> None:
    path = world / "out" / "cells" / "none-0-1-default.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"ca": 12.5}))
    try:
        assert cell_of(run(world), "none", "default")["ca"] == 12.5
    finally:
        path.write_text(json.dumps(stored))


def test_a_missing_cell_is_made_again_from_what_cells_share(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = world / "out" / "cells" / "badnets-0.1-1-default.json"
    before = json.loads(path.read_text())
    path.unlink()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(bench, "train", refuse)
    monkeypatch.setattr("cgd.suspect.train", refuse)
    assert len(run(world)) == 4
    after = json.loads(path.read_text())
    for record in (before, after):  # unlearning is timed anew
        del record["seconds"], record["seconds_unlearning"]
    assert after == before


def test_the_table_can_be_made_again_from_the_stored_records(world: Path) -> None:
    cells = run(world)
    write_cells(world / "cells.parquet", cells)
    table = render(read_cells(world / "cells.parquet"))
    assert table == render(cells)
    assert table.count("\n") == 2 + 4


def test_an_attack_without_room_is_refused(world: Path, tmp_path: Path) -> None:
    guide = f"classifier:{world / 'out' / 'work' / 'guide'}"
    suite = replace(SUITE, attacks=("sig",), rates=(0.9,), guide=guide, defenses=())
    with pytest.raises(InputError, match=r"sig: .*lower the rate"):
        run_suite(suite, world, tmp_path, CPU)


def test_another_guide_is_named_in_the_cells(world: Path, tmp_path: Path) -> None:
    guide = f"classifier:{world / 'out' / 'work' / 'guide'}"
    suite = replace(SUITE, attacks=(), guide=guide)
    cells = run_suite(suite, world, tmp_path, CPU)
    assert [cell["guide"] for cell in cells] == [guide, guide]
    assert cells[0]["guide_accuracy"] == cell_of(run(world), "none", "none")["guide_accuracy"]


def test_a_grid_of_attacks_alone_follows_from_the_seed_and_needs_no_guide(
    world: Path, tmp_path: Path
) -> None:
    suite = replace(SUITE, defenses=(), trusted=0)
    first = cell_of(run(world), "badnets", "none")
    again = cell_of(run_suite(suite, world, tmp_path, CPU), "badnets", "none")
    assert not (tmp_path / "work" / "guide").exists()
    assert (again["guide"], again["guide_accuracy"]) == ("none", None)
    numbers = ("ca", "asr", "ra", "asr_floor", "ra_ceiling", "psnr", "ssim")
    np.testing.assert_array_equal([again[x] for x in numbers], [first[x] for x in numbers])


def test_attacks_have_their_own_rates_settings_and_control_of_the_training(
    world: Path, tmp_path: Path
) -> None:
    entries = ("bpp@0.2 levels=2", "bpp@0.2 levels=2 per-batch", "badnets patch=4")
    suite = replace(SUITE, attacks=entries, defenses=(), trusted=0, target=2)
    cells = run_suite(suite, world, tmp_path, CPU)
    found = {(cell["attack"], cell["rate"]): cell for cell in cells}
    assert set(found) == {
        ("none", 0.0),
        ("bpp levels=2", 0.2),
        ("bpp levels=2 per-batch", 0.2),
        ("badnets patch=4", 0.1),
    }
    static, controlled = (found[f"bpp levels=2{mode}", 0.2] for mode in ("", " per-batch"))
    assert static["psnr"] == controlled["psnr"]
    weights = [
        (tmp_path / "work" / f"bpp-levels=2{mode}-0.2-1-victim" / "model.safetensors").read_bytes()
        for mode in ("", "-per-batch")
    ]
    assert weights[0] != weights[1]
