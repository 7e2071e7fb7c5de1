"""Tables from stored cells: raw records as Parquet, means and spreads as Markdown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cgd.files import atomic

TEXT = ("protocol", "dataset", "model", "attack", "defense", "guide", "device", "version")
NUMBERS = (
    "rate",
    "guide_accuracy",
    "ca",
    "asr",
    "ra",
    "ca_clean",
    "asr_floor",
    "ra_ceiling",
    "auroc",
    "average_precision",
    "triggered_precision",
    "triggered_recall",
    "seconds",
    "seconds_guide",
    "seconds_suspect",
    "seconds_unlearning",
    "seconds_poison",
    "psnr",
    "ssim",
    "passes",
)
COUNTS = ("seed", "poison_in_clean")

Cell = dict[str, Any]


def write_cells(path: Path, cells: Sequence[Cell]) -> None:
    """Write the cells as Parquet: a row a cell, null where a value does not apply."""
    schema = pa.schema(
        [(name, pa.string()) for name in TEXT]
        + [(name, pa.float64()) for name in NUMBERS]
        + [(name, pa.int64()) for name in COUNTS]
    )
    rows = [{field.name: cell.get(field.name) for field in schema} for cell in cells]
    with atomic(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)


def read_cells(path: Path) -> list[Cell]:
    """Read what `write_cells` wrote."""
    cells: list[Cell] = pq.read_table(path).to_pylist()
    return cells


@dataclass(frozen=True)
class _Column:
    """A number in the table: its title, where it comes from, its digits."""

    title: str
    value: Callable[[Cell], float | None]
    digits: int = 1


COLUMNS = (
    _Column("guide", lambda cell: cell.get("guide_accuracy")),
    _Column("CA", lambda cell: cell["ca"]),
    _Column("change", lambda cell: cell["ca_change"]),
    _Column("ASR", lambda cell: cell["asr"]),
    _Column("floor", lambda cell: cell.get("asr_floor")),
    _Column("RA", lambda cell: cell["ra"]),
    _Column("ceiling", lambda cell: cell.get("ra_ceiling")),
    _Column("AUROC", lambda cell: cell.get("auroc"), 3),
    _Column("AP", lambda cell: cell.get("average_precision"), 3),
    _Column("passes", lambda cell: cell["passes"]),
    _Column("seconds", lambda cell: cell["seconds"], 0),
)
"""The change of CA is against the undefended model of the same training set and seed."""

ATTACK_COLUMNS = (
    _Column("clean CA", lambda cell: cell.get("ca_clean")),
    _Column("CA", lambda cell: cell["ca"]),
    _Column("loss", lambda cell: cell["ca_clean"] - cell["ca"] if cell.get("ca_clean") else None),
    _Column("ASR", lambda cell: cell["asr"]),
    _Column("floor", lambda cell: cell.get("asr_floor")),
    _Column("PSNR", lambda cell: cell.get("psnr")),
    _Column("SSIM", lambda cell: cell.get("ssim"), 3),
    _Column("seconds to poison", lambda cell: cell.get("seconds_poison"), 0),
)
"""Where nothing was defended, a table is about the attacks."""


def render(cells: Sequence[Cell]) -> str:
    """Return a Markdown table: a row a scene and defence, means over seeds with spread."""
    undefended = {_scene(cell): cell["ca"] for cell in cells if cell["defense"] == "none"}
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        before = undefended.get(_scene(cell)) if cell["defense"] != "none" else None
        change = None if before is None else cell["ca"] - before
        key = (*_scene(cell)[:-1], cell["defense"])
        groups.setdefault(key, []).append({**cell, "ca_change": change})
    defended = any(key[-1] != "none" for key in groups)
    columns = COLUMNS if defended else ATTACK_COLUMNS
    about = ["data", "attack", "rate", *(["defence"] if defended else []), "seeds"]
    head = [*about, *(column.title for column in columns)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for key in sorted(groups, key=_order):
        group, (dataset, _, attack, rate, defense) = groups[key], key
        values = [_mean_and_spread(group, column) for column in columns]
        scene = [dataset, attack, f"{100 * rate:g} %", *([defense] if defended else [])]
        row = [*scene, str(len(group)), *values]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def _scene(cell: Cell) -> tuple[str, str, str, float, int]:
    return (cell["dataset"], cell["model"], cell["attack"], cell["rate"], cell["seed"])


def _order(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """Benign before poisoned, undefended before defended."""
    dataset, model, attack, rate, defense = key
    return (dataset, model, attack != "none", rate, attack, defense != "none", defense)


def _mean_and_spread(cells: Sequence[Cell], column: _Column) -> str:
    values = [column.value(cell) for cell in cells]
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = f"{np.mean(known):.{column.digits}f}"
    if len(known) == 1:
        return mean
    return f"{mean} ± {np.std(known, ddof=1):.{column.digits}f}"
