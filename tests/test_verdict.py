"""The class that stands out, and the probability of being poison, against plain loops."""

import warnings
from collections import Counter
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cgd.entropy import EntropyMap
from cgd.verdict import concentration, poison_probability


def map_of(
    labels: NDArray[np.int64], guide_rank: NDArray[np.float64], suspect_rank: NDArray[np.float64]
) -> EntropyMap:
    """An entropy map of which only the ranks and the labels matter."""
    unused = np.zeros(len(labels))
    return EntropyMap(labels, labels, unused, guide_rank, unused, suspect_rank)


def slow_concentration(score: list[float], labels: list[int], top: int) -> list[float]:
    """Each class's part of the `top` highest scores, as if classes were equally large."""
    first = sorted(range(len(score)), key=lambda row: -score[row])[:top]
    caught, samples = Counter(labels[row] for row in first), Counter(labels)
    least = median(samples.values()) / 2
    shares = [caught[c] / max(samples[c], least) for c in range(max(labels) + 1)]
    return [share / sum(shares) for share in shares]


@settings(max_examples=40, deadline=None)
@given(st.integers(20, 300), st.integers(2, 6), st.integers(0, 9), st.sampled_from([0.0025, 0.2]))
def test_concentration_is_the_largest_part_of_the_top_scores(
    n: int, classes: int, seed: int, top: float
) -> None:
    draw = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), draw.integers(0, classes, n - classes)])
    ranks = map_of(labels, *(draw.permutation(n) / n for _ in range(2)))
    parts = slow_concentration(
        ranks.poison_score.tolist(), labels.tolist(), max(20, round(top * n))
    )
    part, number = concentration(ranks, top)
    assert part == pytest.approx(max(parts))
    assert parts[number] == pytest.approx(max(parts))


def test_two_odd_images_of_a_rare_class_do_not_stand_out() -> None:
    labels = np.append(np.arange(4000) % 10, [10, 10, 10])
    guide, suspect = np.random.default_rng(1).uniform(0.01, 1, (2, 4003))
    guide[-2:], suspect[-2:] = 1.0, 0.001
    assert concentration(map_of(labels, guide, suspect))[0] < 0.5


def test_poison_of_one_class_stands_out_and_honest_mistakes_do_not() -> None:
    draw = np.random.default_rng(0)
    labels = np.arange(4000) % 10
    guide, suspect = draw.uniform(0.01, 1, (2, 4000))
    assert concentration(map_of(labels, guide, suspect))[0] < 0.5
    poison = np.flatnonzero(labels == 3)[:40]
    guide[poison], suspect[poison] = 1.0, draw.uniform(0.001, 0.01, 40)
    assert concentration(map_of(labels, guide, suspect)) == (1.0, 3)


# Probability.


def scored(labels: NDArray[np.int64], score: NDArray[np.float64]) -> EntropyMap:
    """An entropy map with about these poison scores."""
    return map_of(labels, 1 / (1 + np.exp(-score)), np.full(len(score), 0.5))


@pytest.mark.parametrize("poisoned", [100, 1000, 4000])
def test_the_probability_is_that_of_the_two_normals(poisoned: int) -> None:
    draw = np.random.default_rng(poisoned)
    clean = 8000
    score = np.append(draw.normal(-0.5, 1.2, clean), draw.normal(5, 1.0, poisoned))
    labels = np.full(len(score), 2)
    weights = [
        count / spread * np.exp(-(((score - mean) / spread) ** 2) / 2)
        for count, mean, spread in ((clean, -0.5, 1.2), (poisoned, 5, 1.0))
    ]
    between = (score > -0.5) & (score < 5)
    expected = weights[1] / sum(weights)
    found = poison_probability(scored(labels, score), 2)
    assert np.abs(found - expected)[between].mean() < 0.02
    assert found.sum() == pytest.approx(poisoned, rel=0.1)


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 300), st.integers(1, 6), st.integers(0, 10**6))
def test_the_probability_never_falls_with_the_score(n: int, classes: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, n)
    guide, suspect = (draw.permutation(n) + 1 for _ in range(2))
    places = map_of(labels, guide / n, suspect / n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = poison_probability(places, 0)
    rows = np.flatnonzero(labels == 0)
    of_class = found[rows[np.argsort(places.poison_score[rows], kind="stable")]]
    assert (np.diff(of_class) >= 0).all()
    assert ((found >= 0) & (found <= 1)).all()
    assert not found[labels != 0].any()


def test_nothing_is_said_about_a_class_of_nine() -> None:
    score = np.append(np.zeros(91), np.full(9, 5.0))
    labels = np.append(np.zeros(91, np.int64), np.ones(9, np.int64))
    assert not poison_probability(scored(labels, score), 1).any()
