"""Stored cells as Parquet, and the tables that are made of them."""

from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pyarrow.parquet as pq
import pytest

from cgd.bench import render, write_cells
from cgd.bench.tables import read_cells

CELL = {
    "dataset": "cifar10",
    "model": "tiny_resnet",
    "attack": "badnets",
    "rate": 0.05,
    "defense": "none",
    "seed": 0,
    "passes": 12.0,
}


def cell(**values: Any) -> dict[str, Any]:
    return {**CELL, "ca": 90.0, "asr": 5.0, "ra": 80.0, "seconds": 7.0, **values}


def rows_of(table: str) -> list[dict[str, str]]:
    lines = [[entry.strip() for entry in line.strip("|").split("|")] for line in table.splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.5], "0.500"),
        ([0.8765], "0.876"),
        ([1.0], "1.000"),
        ([None], ""),
        ([None, 0.5], "0.500"),
        ([0.8, 0.9], f"{mean([0.8, 0.9]):.3f} ± {stdev([0.8, 0.9]):.3f}"),
        ([0.90, None, 0.93, 0.96], f"0.930 ± {stdev([0.90, 0.93, 0.96]):.3f}"),
        ([0.9, 0.95, 1.0], "0.950 ± 0.050"),
    ],
)
def test_means_and_spreads_are_over_the_seeds_that_have_a_value(
    values: list[float | None], expected: str
) -> None:
    cells = [cell(defense="default", seed=seed, auroc=value) for seed, value in enumerate(values)]
    (row,) = rows_of(render(cells))
    assert row["AUROC"] == expected
    assert row["seeds"] == str(len(values))


def test_draws_of_a_guide_are_one_row() -> None:
    guides = ["stand-in images=500 draw=1", "stand-in images=500 draw=12", "stand-in images=500"]
    cells = [
        cell(defense="verdict", guide=guide, auroc=0.5 + place / 10)
        for place, guide in enumerate(guides)
    ]
    rows = rows_of(render(cells))
    assert [row["guide"] for row in rows] == [
        "stand-in images=500",
        "stand-in images=500 drawn anew",
    ]
    assert [row["runs"] for row in rows] == ["1", "2"]
    assert rows[1]["AUROC"].startswith("0.550")


def test_a_row_is_an_attack_at_a_rate_under_a_defense_benign_and_undefended_first() -> None:
    keys = [("none", 0.0), ("badnets", 0.01), ("sig", 0.01), ("badnets", 0.1)]
    expected = [
        (attack, f"{100 * rate:g} %", defense)
        for attack, rate in keys
        for defense in ("none", "default", "released")
    ]
    cells = [
        cell(attack=attack, rate=rate, defense=defense, seed=seed, ca=50.0 + len(defense))
        for attack, rate in reversed(keys)
        for defense in ("released", "default", "none")
        for seed in (1, 0)
    ]
    rows = rows_of(render(cells))
    assert [(row["attack"], row["rate"], row["defence"]) for row in rows] == expected
    for row in rows:
        assert row["seeds"] == "2"
        assert row["CA"] == f"{50 + len(row['defence'])}.0 ± 0.0"


def test_the_change_of_ca_is_against_the_undefended_model_of_the_same_seed() -> None:
    cells = [cell(defense="none", seed=seed, ca=80.0 + 10 * seed) for seed in (0, 1)]
    cells += [cell(defense="default", seed=0, ca=79.0), cell(defense="default", seed=1, ca=92.0)]
    cells += [cell(defense="default", attack="sig", ca=50.0)]
    undefended, defended, alone = rows_of(render(cells))
    assert undefended["change"] == ""
    assert defended["change"] == f"0.5 ± {stdev([-1, 2]):.1f}"
    assert alone["change"] == ""


def test_where_nothing_was_defended_the_table_is_about_the_attacks() -> None:
    cells = [cell(defense="none", ca=70.0, ca_clean=74.5, psnr=28.25, ssim=0.9)]
    cells += [cell(defense="none", attack="none", rate=0.0, ca=74.5, asr=None)]
    clean, attacked = rows_of(render(cells))
    assert (attacked["clean CA"], attacked["loss"], attacked["PSNR"]) == ("74.5", "4.5", "28.2")
    assert attacked["SSIM"] == "0.900"
    assert (clean["loss"], clean["ASR"], clean["PSNR"]) == ("", "", "")
    assert not {"AUROC", "defence"} & set(clean)


def test_data_sets_are_not_averaged_together() -> None:
    rows = rows_of(render([cell(ca=90.0), cell(ca=50.0, dataset="gtsrb")]))
    assert [(row["data"], row["CA"]) for row in rows] == [("cifar10", "90.0"), ("gtsrb", "50.0")]


def test_a_table_from_stored_cells_is_the_table_of_the_cells(tmp_path: Path) -> None:
    cells = [
        cell(attack="none", rate=0.0, asr=None, ra=None, seconds=1 / 3),
        cell(asr_floor=1.5, ra_ceiling=70.25),
        cell(defense="default", auroc=0.987, average_precision=0.5, poison_in_clean=3),
        cell(defense="default", seed=1, auroc=0.9, unknown="left out"),
    ]
    write_cells(tmp_path / "cells.parquet", cells)
    assert render(read_cells(tmp_path / "cells.parquet")) == render(cells)
    rows = pq.read_table(tmp_path / "cells.parquet").to_pylist()
    for row, stored in zip(rows, cells, strict=True):
        assert row == {name: stored.get(name) for name in row}


REQUIRED = {
    "string": ["protocol", "dataset", "model", "attack", "defense", "guide", "device", "version"],
    "int64": ["seed"],
    "double": [
        "rate", "guide_accuracy", "ca", "asr", "ra", "asr_floor", "ra_ceiling",
        "auroc", "average_precision", "seconds", "passes",
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", REQUIRED)
def test_stored_cells_have_the_columns_that_others_read(tmp_path: Path, kind: str) -> None:
    write_cells(tmp_path / "cells.parquet", [])
    schema = pq.read_schema(tmp_path / "cells.parquet")
    assert {name: str(schema.field(name).type) for name in REQUIRED[kind]} == dict.fromkeys(
        REQUIRED[kind], kind
    )


RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.mark.parametrize(
    "cells", sorted(RESULTS.glob("*/cells.parquet")), ids=lambda p: p.parent.name
)
def test_the_published_table_is_that_of_the_stored_cells(cells: Path) -> None:
    assert render(read_cells(cells)) in (cells.parent / "README.md").read_text(encoding="utf-8")


def test_a_verdict_counts_where_it_names_the_target() -> None:
    told = {"defense": "default", "estimated_rate": 0.04}
    right = cell(**told, verdict="poisoned", target=0, target_found=1.0)
    wrong = cell(**told, verdict="poisoned", target=3, target_found=0.0, seed=1)
    benign = cell(defense="default", attack="none", rate=0.0, verdict="none", estimated_rate=0.0)
    clean, attacked = rows_of(render([right, wrong, benign]))
    assert (clean["called poisoned %"], clean["estimated %"]) == ("0", "0.0")
    assert attacked["called poisoned %"].startswith("50 ±")
    assert attacked["estimated %"] == "4.0 ± 0.0"
    assert "called poisoned %" not in render([cell()])
