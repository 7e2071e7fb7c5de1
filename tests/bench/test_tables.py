"""Stored cells as Parquet, and the tables that are made of them."""

from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pyarrow.parquet as pq
import pytest

from cgd.bench import render, write_cells
from cgd.bench.tables import read_cells

CELL = {"attack": "badnets", "rate": 0.05, "defense": "none", "seed": 0, "passes": 12.0}


def cell(**values: Any) -> dict[str, Any]:
    return {**CELL, "ca": 90.0, "asr": 5.0, "ra": 80.0, "seconds": 7.0, **values}


def rows_of(table: str) -> list[dict[str, str]]:
    lines = [[entry.strip() for entry in line.strip("|").split("|")] for line in table.splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([91.26], "91.3"),
        ([0.8765], "0.876"),
        ([None], ""),
        ([None, 50.0], "50.0"),
        ([90.0, 91.0], f"{mean([90, 91]):.1f} ± {stdev([90, 91]):.1f}"),
        ([90.0, None, 93.0, 96.0], f"93.0 ± {stdev([90, 93, 96]):.1f}"),
        ([0.9, 0.95, 1.0], "0.950 ± 0.050"),
    ],
)
def test_means_and_spreads_are_over_the_seeds_that_have_a_value(
    values: list[float | None], expected: str
) -> None:
    cells = [cell(seed=seed, auroc=value) for seed, value in enumerate(values)]
    (row,) = rows_of(render(cells))
    assert row["AUROC"] == expected
    assert row["seeds"] == str(len(values))


def test_a_row_is_an_attack_at_a_rate_under_a_defense_benign_and_undefended_first() -> None:
    keys = [("none", 0.0), ("badnets", 0.01), ("sig", 0.01), ("badnets", 0.1)]
    expected = [
        (attack, f"{100 * rate:g} %", defense)
        for attack, rate in keys
        for defense in ("none", "released", "default")
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
