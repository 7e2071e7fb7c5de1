"""How well does the strength of the signs tell poisoned data from clean data? Over stored runs.

    python tools/roc.py RESULT SCANS.parquet UNDEFENDED.parquet...

SCANS are cells of clean and of poisoned data; those without a strength do not count. UNDEFENDED
tell which attacks work. RESULT receives `roc.svg`; the areas under the curves are printed.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from cgd.bench.plots import svg
from cgd.bench.tables import Cell, read_cells, scene_of
from cgd.metrics import ranking

WORKS = 50
"""ASR of an attack that works, in percent."""

Curve = tuple[str, NDArray[np.float64], NDArray[np.bool_]]


def main() -> None:
    """Print and draw the curves: all attacks, and those that work."""
    result, stored, *others = map(Path, sys.argv[1:])
    scans = [cell for cell in read_cells(stored) if cell["strength"] is not None]
    cells = [cell for path in others for cell in read_cells(path)]
    undefended = {scene_of(cell): cell["asr"] for cell in cells if cell["defense"] == "none"}
    works = [cell for cell in scans if (undefended.get(scene_of(cell)) or 0) >= WORKS]
    clean = [cell for cell in scans if cell["attack"] == "none"]
    poisoned = [cell for cell in scans if cell["attack"] != "none"]
    curves = [
        curve(f"all attacks: {len(poisoned)} runs", clean, poisoned),
        curve(f"ASR of {WORKS} % or more: {len(works)} runs", clean, works),
    ]
    for title, strength, positive in curves:
        print(f"{len(clean)} clean; {title}; AUROC {ranking(strength, positive)[0]:.3f}")
        for least in np.unique(strength[positive])[:5]:
            alarms, found = (strength[rows] >= least for rows in (~positive, positive))
            print(f"  strength {least:.2f}: {alarms.sum()} false alarms, {found.sum()} found")
    draw(curves, len(clean), result / "roc.svg")


def curve(title: str, clean: list[Cell], poisoned: list[Cell]) -> Curve:
    """Strengths, and which of them are of poisoned data."""
    strength = np.array([cell["strength"] for cell in [*clean, *poisoned]], dtype=np.float64)
    return title, strength, np.arange(len(strength)) >= len(clean)


def draw(curves: list[Curve], clean: int, path: Path) -> None:
    """Draw the share that is found against the share of false alarms."""
    with svg(path, 5, 4.2) as (_, (axes,)):
        for title, strength, positive in curves:
            alarms, found, _ = roc_curve(positive, strength, drop_intermediate=False)
            area = ranking(strength, positive)[0]
            axes.step(100 * alarms, 100 * found, where="post", label=f"{title}, AUROC {area:.3f}")
        axes.set(
            xlabel=f"false alarms, % of {clean} clean sets", ylabel="poisoned sets found, %",
            xlim=(-1, 101), ylim=(0, 101),
        )  # fmt: skip
        axes.legend(frameon=False, loc="lower right")


if __name__ == "__main__":
    main()
