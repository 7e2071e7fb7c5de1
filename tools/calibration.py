"""How often is a sample poison that is called so with 30 %? Over the attacked runs of a suite that
were called poisoned, with the default defence.

    python tools/calibration.py SUITE.toml DATA OUT RESULT

SUITE, DATA and OUT are those of a `cgd bench` that was run with the default defence. RESULT
receives `calibration.json` and `calibration.svg`. Scans are taken from OUT, poison is planted anew.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cgd.bench import read_suite
from cgd.bench.cells import Wanted, cells_of, scanned
from cgd.bench.defenses import read_defense
from cgd.bench.lab import Lab
from cgd.bench.plots import svg
from cgd.bench.scenes import NONE
from cgd.bench.suite import Grid
from cgd.files import read_json, write_json

BINS = np.array([0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0])
"""Of probabilities; the first one holds nearly all samples."""


def main() -> None:
    """Sum the bins of all runs that were called poisoned."""
    suite, data, out, result = (Path(name) for name in sys.argv[1:5])
    runs = []
    for grid in read_suite(suite).grids:
        lab = Lab(grid, data, out / "work", torch.device("cpu"))
        for scene in grid.scenes():
            for wanted in cells_of(grid, scene) if scene.attack != NONE else ():
                path = out / "cells" / wanted.file_name(grid)
                done = wanted.defense == "default" and path.is_file()
                if done and read_json(path).get("verdict") == "poisoned":
                    runs.append(one(lab, grid, wanted))
                    print(runs[-1], flush=True)
    if not runs:
        sys.exit(f"{out}: no cell of {suite} with the default defence and the verdict poisoned")
    write_json(result / "calibration.json", {"edges": BINS.tolist(), "runs": runs})
    draw(runs, result / "calibration.svg")


def one(lab: Lab, grid: Grid, wanted: Wanted) -> dict[str, Any]:
    """Count the samples of a run, and those that are poison, by their probability."""
    trial = lab.trial(wanted.scene)
    defense = read_defense(wanted.defense)
    found = scanned(lab, wanted, trial, lab.victim(trial)[0], defense).verdict
    poison = np.zeros(len(trial.data), dtype=np.bool_)
    poison[trial.manifest.poison if trial.manifest else []] = True
    probability = found.probability
    place = np.clip(np.searchsorted(BINS, probability, "right") - 1, 0, len(BINS) - 2)

    def counted(rows: NDArray[np.bool_], weights: NDArray[np.float64] | None = None) -> list[float]:
        chosen = None if weights is None else weights[rows]
        return np.bincount(place[rows], chosen, len(BINS) - 1).tolist()  # type: ignore[no-any-return]

    everything = np.ones_like(poison)
    return {
        "dataset": grid.dataset, "attack": wanted.scene.title, "rate": wanted.scene.rate,
        "guide": wanted.guide, "seed": wanted.scene.seed, "poison": int(poison.sum()),
        "estimated": found.poisoned, "strength": found.strength, "interval": found.interval,
        "samples": counted(everything), "probability": counted(everything, probability),
        "poisoned": counted(poison),
    }  # fmt: skip


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Draw the share of poison against the mean probability, of all runs and of each."""
    samples, probability, poisoned = (
        np.array([run[key] for run in runs], dtype=np.float64)
        for key in ("samples", "probability", "poisoned")
    )
    with svg(path, 5, 4.2) as (_, (axes,)):
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        for n, p, k in zip(samples, probability, poisoned, strict=True):
            axes.plot(p[n > 0] / n[n > 0], k[n > 0] / n[n > 0], color="C0", alpha=0.15, linewidth=1)
        sums = samples.sum(0), probability.sum(0), poisoned.sum(0)
        n, p, k = (column[sums[0] > 0] for column in sums)
        axes.plot(p / n, k / n, "o-", color="C0", label=f"all {len(runs)} runs")
        axes.set(xlabel="probability that is told", ylabel="share that is poison")
        axes.legend(frameon=False)


if __name__ == "__main__":
    main()
