"""Draw attack success against the poison rate from stored cells.

Run `python tools/plot_rates.py docs/results/attacks/cells.parquet rates.svg`.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from cgd.bench.tables import Cell, read_cells

LEAST_RATES = 3


def curves(cells: list[Cell], dataset: str) -> dict[str, list[tuple[float, float, float]]]:
    """Attack -> (rate, ASR, floor) in percent, means over seeds, for attacks at several rates."""
    found: dict[str, dict[float, list[Cell]]] = {}
    for cell in cells:
        if cell["dataset"] == dataset and cell["defense"] == "none" and cell["asr"] is not None:
            found.setdefault(cell["attack"], {}).setdefault(cell["rate"], []).append(cell)
    return {
        attack: [(100 * rate, _mean(at, "asr"), _mean(at, "asr_floor")) for rate, at in rates]
        for attack, by_rate in sorted(found.items())
        if len(rates := sorted(by_rate.items())) >= LEAST_RATES
    }


def _mean(cells: list[Cell], column: str) -> float:
    return sum(cell[column] for cell in cells) / len(cells)


def draw(found: dict[str, list[tuple[float, float, float]]], out: Path) -> None:
    """Draw the curves, the rate on a logarithmic axis."""
    plt.rcParams.update({"svg.hashsalt": "cgd", "font.size": 10})
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for attack, points in found.items():
        rates, success, _ = zip(*points, strict=True)
        axes.plot(rates, success, marker="o", markersize=4, label=attack)
    axes.axhline(90, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", ylim=(0, 102), ylabel="attack success rate, %")
    axes.set_xlabel("poisoned share of the training images, %")
    ticks = sorted({point[0] for points in found.values() for point in points})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    """Read the cells, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cells", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dataset", default="cifar10")
    options = parser.parse_args()
    draw(curves(read_cells(options.cells), options.dataset), options.out)


if __name__ == "__main__":
    main()
