"""The picture of the entropy map."""

import numpy as np

from cgd.report.entropy_plot import EntropyPlot, entropy_plot


def plot_of(n: int) -> EntropyPlot:
    generator = np.random.default_rng(0)
    suspect, guide = generator.random(n), generator.random(n)
    part = np.where(guide - suspect > 0.5, "triggered", "clean")
    return entropy_plot(suspect, guide, part)


def test_few_samples_are_one_dot_each() -> None:
    plot = plot_of(300)
    assert sum(layer.path.count("M") for layer in plot.layers) == 300
    assert all(not layer.picture for layer in plot.layers)


def test_the_size_does_not_grow_with_the_samples() -> None:
    plot = plot_of(300_000)
    assert all(not layer.path for layer in plot.layers)
    assert sum(len(layer.picture) for layer in plot.layers) < 100_000
