"""The class that stands out, and the probability of being poison, against plain loops."""

import warnings
from collections import Counter
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import rankdata

from cgd.entropy import EntropyMap
from cgd.verdict import attacked_class, clearest, concentration, poison_probability


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
@given(st.integers(20, 300), st.integers(2, 6), st.integers(0, 9))
def test_concentration_is_the_largest_part_of_the_top_scores(
    n: int, classes: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), draw.integers(0, classes, n - classes)])
    ranks = map_of(labels, *(draw.permutation(n) / n for _ in range(2)))
    parts = slow_concentration(ranks.poison_score.tolist(), labels.tolist(), 20)
    part, number = concentration(ranks)
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


def test_samples_that_tie_count_in_part_whatever_their_order() -> None:
    labels = np.repeat(np.arange(10), 100)
    assert concentration(map_of(labels, *np.full((2, 1000), 0.5)))[0] == pytest.approx(0.1)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("n", [200, 2000])
def test_chance_alone_makes_no_class_stand_out(classes: int, n: int) -> None:
    for seed in range(60):
        draw = np.random.default_rng(seed)
        labels = draw.integers(0, classes, n)
        places = (draw.permutation(n) + 1 for _ in range(2))
        assert attacked_class(map_of(labels, *(place / n for place in places))) is None


# Looks.


def look(poisoned: int, seed: int, elsewhere: int = 0) -> EntropyMap:
    """10,000 samples of ten classes; some of class 1, and of class 2, look like poison."""
    n, draw = 10_000, np.random.default_rng(seed)
    labels = np.arange(n) % 10
    guide, suspect = draw.normal(0, 1, (2, n))
    for number, count, far in ((1, poisoned, 6), (2, elsewhere, 4)):
        rows = np.flatnonzero(labels == number)[:count]
        guide[rows] += far
        suspect[rows] -= far
    return map_of(labels, rankdata(guide) / n, rankdata(suspect) / n)


def test_the_look_that_finds_most_poison_is_chosen() -> None:
    few, many = look(100, 0), look(500, 1)
    assert clearest([many, few]) is many
    assert clearest([few, many]) is many


def test_where_no_class_stands_out_the_last_look_is_taken() -> None:
    looks = [look(0, seed) for seed in range(3)]
    assert clearest(looks) is looks[2]
    assert clearest([look(500, 1), looks[0]]) is not looks[0]


def test_an_early_look_must_find_twice_as_many_as_in_any_other_class() -> None:
    early, last = look(500, 1, elsewhere=400), look(100, 0)
    assert attacked_class(early) == 1
    assert clearest([early, last]) is last
    assert clearest([last, early]) is early


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
