"""Tables from stored cells: raw records as Parquet, means and spreads as Markdown."""

from collections.abc import Callable, Sequence
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


def render(cells: Sequence[Cell]) -> str:
    """Return a Markdown table: a row an attack and defence, means over seeds with spread."""
    columns: dict[str, Callable[[Cell], float | None]] = {
        "CA": lambda cell: cell["ca"],
        "ASR": lambda cell: cell["asr"],
        "floor": lambda cell: cell.get("asr_floor"),
        "RA": lambda cell: cell["ra"],
        "ceiling": lambda cell: cell.get("ra_ceiling"),
        "AUROC": lambda cell: cell.get("auroc"),
        "AP": lambda cell: cell.get("average_precision"),
        "passes": lambda cell: cell["passes"],
        "seconds": lambda cell: cell["seconds"],
    }
    groups: dict[tuple[str, float, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell["attack"], cell["rate"], cell["defense"]), []).append(cell)
    order = sorted(groups, key=lambda key: (key[0] != "none", key[1], key[0], key[2] != "none"))
    head = ["attack", "rate", "defence", "seeds", *columns]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for key in order:
        attack, rate, defense = key
        group = groups[key]
        values = [_mean_and_spread([column(cell) for cell in group]) for column in columns.values()]
        row = [attack, f"{100 * rate:g} %", defense, str(len(group)), *values]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def _mean_and_spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    digits = 3 if max(known) <= 1 else 1
    mean = f"{np.mean(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {np.std(known, ddof=1):.{digits}f}"
