"""The picture of the entropy map."""

import numpy as np
import pytest
from numpy.typing import NDArray

from cgd.report.entropy_plot import SIDE, EntropyPlot, entropy_plot


def plot_of(n: int) -> tuple[EntropyPlot, NDArray[np.float64]]:
    generator = np.random.default_rng(0)
    suspect, guide = generator.random(n), generator.random(n)
    score = guide - suspect
    part = np.full(n, "clean", "U9")
    part[score > 0.4] = "unused"
    part[score > 0.5] = "triggered"
    return entropy_plot(suspect, guide, part), score


def test_few_samples_are_one_dot_each() -> None:
    plot, _ = plot_of(300)
    assert sum(layer.path.count("M") for layer in plot.layers) == 300
    assert all(not layer.picture for layer in plot.layers)


def test_the_size_does_not_grow_with_the_samples() -> None:
    plot, _ = plot_of(300_000)
    assert all(not layer.path for layer in plot.layers)
    assert sum(len(layer.picture) for layer in plot.layers) < 100_000


def test_lines_lie_at_the_limits_of_the_score() -> None:
    plot, _ = plot_of(20_000)
    first, second = plot.limits
    for line, limit in ((first, 0.5), (second, 0.4)):
        for x, y in ((line.x1, line.y1), (line.x2, line.y2)):
            assert (1 - y / SIDE) - x / SIDE == pytest.approx(limit, abs=1e-3)
            assert 0 <= x <= SIDE
            assert 0 <= y <= SIDE


def test_no_lines_where_the_score_does_not_divide_the_parts() -> None:
    generator = np.random.default_rng(0)
    suspect, guide = generator.random(500), generator.random(500)
    part = np.where(guide > 0.9, "triggered", "clean")
    assert entropy_plot(suspect, guide, part).limits == ()
