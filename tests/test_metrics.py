"""Metrics against scikit-learn, slow counting, and examples made by hand."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    precision_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from cgd.metrics import (
    accuracy,
    attack_success_rate,
    defense_effectiveness,
    robust_accuracy,
    separation,
    tpr_at_fpr,
)
from cgd.split import Split

answers = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)
percent = st.floats(0, 100)


def columns(pairs: list[tuple[int, int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    predicted, labels = np.array(pairs, dtype=np.int64).T
    return predicted, labels


@given(answers)
@settings(max_examples=50, deadline=None)
def test_accuracy_is_that_of_sklearn_in_percent(pairs: list[tuple[int, int]]) -> None:
    predicted, labels = columns(pairs)
    assert accuracy(predicted, labels) == pytest.approx(100 * accuracy_score(labels, predicted))


@given(answers, st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_asr_and_ra_count_images_of_other_classes(
    pairs: list[tuple[int, int]], target: int
) -> None:
    counted = hits = right = 0
    for guess, label in pairs:
        if label != target:
            counted += 1
            hits += guess == target
            right += guess == label
    assume(counted)
    predicted, labels = columns(pairs)
    found = attack_success_rate(predicted, labels, target)
    assert found == pytest.approx(100 * hits / counted)
    assert robust_accuracy(predicted, labels, target) == pytest.approx(100 * right / counted)


@pytest.mark.parametrize("on_target", [2, 0])
def test_target_class_images_change_neither_asr_nor_ra(on_target: int) -> None:
    predicted = np.array([2, 2, 1, 0])
    labels = np.array([0, 1, 1, 0])
    more = np.r_[predicted, np.full(100, on_target)]
    more_labels = np.r_[labels, np.full(100, 2)]
    assert attack_success_rate(more, more_labels, 2) == 50.0
    assert robust_accuracy(more, more_labels, 2) == 50.0


@pytest.mark.parametrize(
    ("ca", "asr", "expected"),
    [
        ((90, 90), (100, 0), 1.0),
        ((90, 90), (100, 100), 0.5),
        ((90, 80), (100, 0), 0.95),
        ((90, 95), (100, 50), 0.75),
        ((90, 90), (40, 60), 0.5),
        ((100, 0), (0, 100), 0.0),
        ((77.4, 76.1), (91.2, 1.3), 0.943),
    ],
)
def test_der_of_hand_made_repairs(
    ca: tuple[float, float], asr: tuple[float, float], expected: float
) -> None:
    assert defense_effectiveness(*ca, *asr) == pytest.approx(expected)


@given(percent, percent, percent, percent, percent)
@settings(max_examples=50, deadline=None)
def test_der_is_a_share_and_rewards_lower_asr(
    ca_before: float, ca_after: float, asr_before: float, low: float, high: float
) -> None:
    better, worse = (
        defense_effectiveness(ca_before, ca_after, asr_before, asr)
        for asr in (min(low, high), max(low, high))
    )
    assert 0 <= worse <= better <= 1


@st.composite
def judged(draw: st.DrawFn) -> tuple[NDArray[np.float64], NDArray[np.bool_], Split]:
    """Scores with many ties, a truth with both kinds, and parts drawn apart from the scores."""
    rows = st.tuples(st.integers(-5, 5), st.booleans(), st.integers(0, 2))
    drawn = draw(st.lists(rows, min_size=3, max_size=50))
    score, truth, part = (np.array(column) for column in zip(*drawn, strict=True))
    assume(truth.any() and not truth.all() and (part == 1).any())
    return score / 5, truth, Split(*(np.flatnonzero(part == number) for number in range(3)))


def slow_auroc(score: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """Share of (poison, other) pairs in the right order; a tie counts half."""
    wins = [(p > o) + (p == o) / 2 for p in score[truth] for o in score[~truth]]
    return float(np.mean(wins))


def slow_average_precision(score: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """Precision at every threshold, weighted with what it adds to the recall."""
    total = before = 0.0
    for threshold in sorted(set(score.tolist()), reverse=True):
        flagged = score >= threshold
        recall = truth[flagged].sum() / truth.sum()
        total += (recall - before) * truth[flagged].mean()
        before = recall
    return float(total)


@given(judged())
@settings(max_examples=50, deadline=None)
def test_separation_matches_sklearn_and_slow_counting(
    case: tuple[NDArray[np.float64], NDArray[np.bool_], Split],
) -> None:
    score, truth, split = case
    found = separation(score, split, np.flatnonzero(truth))
    assert found is not None
    assert found.auroc == pytest.approx(roc_auc_score(truth, score))
    assert found.auroc == pytest.approx(slow_auroc(score, truth))
    assert found.average_precision == pytest.approx(average_precision_score(truth, score))
    assert found.average_precision == pytest.approx(slow_average_precision(score, truth))
    flagged = np.isin(np.arange(len(score)), split.triggered)
    assert found.triggered_precision == pytest.approx(precision_score(truth, flagged))
    assert found.triggered_recall == pytest.approx(recall_score(truth, flagged))
    assert found.poison_in_clean == sum(bool(truth[row]) for row in split.clean)


def test_separation_of_a_hand_made_split() -> None:
    score = np.array([0.9, 0.8, 0.7, 0.2, 0.1, -0.5])
    split = Split(clean=np.array([3, 4, 5]), triggered=np.array([0, 1]), unused=np.array([2]))
    found = separation(score, split, np.array([0, 2, 3]))
    assert found is not None
    assert found.auroc == pytest.approx(7 / 9)
    assert found.average_precision == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert (found.triggered_precision, found.triggered_recall) == (1 / 2, 1 / 3)
    assert found.poison_in_clean == 1


@pytest.mark.parametrize("poison", [[], [0, 1, 2, 3]])
def test_one_sided_truth_has_no_separation(poison: list[int]) -> None:
    split = Split(np.array([0, 1]), np.array([2]), np.array([3]))
    assert separation(np.arange(4.0), split, np.array(poison, dtype=np.int64)) is None


@given(
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=60),
    st.floats(0, 1),
)
@settings(max_examples=80, deadline=None)
def test_tpr_at_fpr_is_read_off_the_curve_of_sklearn(
    samples: list[tuple[int, bool]], fpr: float
) -> None:
    score = np.array([value for value, _ in samples], dtype=np.float64)
    positive = np.array([kind for _, kind in samples])
    assume(positive.any() and not positive.all())
    false, true, _ = roc_curve(positive, score, drop_intermediate=False)
    assert tpr_at_fpr(score, positive, fpr) == pytest.approx(true[false <= fpr].max())
