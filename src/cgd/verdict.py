"""Which class an attack gathers in, and how probably each of its samples is poison.

Pure array functions of the entropy map.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cgd.entropy import EntropyMap

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEAST_PART = 0.65
"""The part of the most suspicious samples, as if classes were equally large, from which on a class
stands out."""

CHANCE = 1e-4
"""And that many of them come from the class by chance with less than this probability."""

STARTS = (0.01, 0.05, 0.2, 0.5)

FEWEST = 10
"""With fewer samples in a class, nothing is said about them."""


def attacked_class(ranks: EntropyMap) -> int | None:
    """Find the class that an attack gathers in.

    Returns:
        The number of the class that stands out among the most suspicious samples, or None.
    """
    from scipy.stats import binom

    part, target = concentration(ranks)
    caught = _most_suspicious(ranks)
    share = float(np.mean(ranks.label == target))
    chance = binom.sf(np.floor(caught[target]) - 1, round(caught.sum()), share)
    return target if part >= LEAST_PART and chance < CHANCE else None


def concentration(ranks: EntropyMap) -> tuple[float, int]:
    """Find the class that holds most of the most suspicious samples.

    Poison for one target gathers in one class; honest mistakes and the guide's weak spots spread.

    Returns:
        The class's part of them, in 1 / classes to 1, as if all classes had as many samples; and
        the number of the class.
    """
    shares = _per_sample(ranks.label, _most_suspicious(ranks))
    return float(shares.max() / shares.sum()), int(shares.argmax())


def _most_suspicious(ranks: EntropyMap, top: float = 0.0025) -> Floats:
    """Number of samples of each class among the highest poison scores: a share `top` of all
    samples, at least 20. Where the last of them tie with others, each of these counts in part."""
    score = ranks.poison_score
    wanted = min(max(20, round(top * len(score))), len(score))
    last = np.partition(score, -wanted)[-wanted]
    above, tied = score > last, score == last
    weight = above + tied * ((wanted - above.sum()) / tied.sum())
    return np.bincount(ranks.label, weight).astype(np.float64)


def clearest(looks: Sequence[EntropyMap]) -> EntropyMap:
    """Choose the look at the suspect in which most poison is told from the rest.

    Of the looks in which a class stands out, that with the most samples of this class that are
    surely poison; where none does, the last look. Early on, a suspect leans towards classes that
    are easy, so that an early look must find twice as many of them as in any other class.
    """
    best, most = looks[-1], 0.0
    for ranks in looks if len(looks) > 1 else ():
        target = attacked_class(ranks)
        if target is None:
            continue
        found = _surely_poison(ranks, target)
        early = ranks is not looks[-1]
        if found > most and not (early and found < 2 * _most_elsewhere(ranks, target)):
            best, most = ranks, found
    return best


def _most_elsewhere(ranks: EntropyMap, target: int) -> float:
    others = np.setdiff1d(ranks.label, target)
    return max((_surely_poison(ranks, int(other)) for other in others), default=0.0)


def _surely_poison(ranks: EntropyMap, target: int) -> float:
    """Sum of 2 p - 1 over the samples of a class that are more probably poison than not."""
    return float((2 * poison_probability(ranks, target) - 1).clip(0).sum())


def poison_probability(ranks: EntropyMap, target: int) -> Floats:
    """Estimate how probably each sample was given its label by an attacker of class `target`.

    The poison scores within the class are taken for a mixture of two normal distributions, of
    which the higher one is poison. Other classes are no measure of it: some are easy and known to
    the guide, some are neither.

    Args:
        ranks: the entropy map.
        target: number of the class.

    Returns:
        float64 [n], in 0..1, never falling with the score; 0 for samples of other classes.
    """
    probability = np.zeros(len(ranks.label))
    rows = np.flatnonzero(ranks.label == target)
    rows = rows[np.argsort(ranks.poison_score[rows], kind="stable")]
    if len(rows) < FEWEST:
        return probability
    score = ranks.poison_score[rows, None]
    mixture = _two_normals(score)
    low, high = np.argsort(mixture.means_[:, 0])
    found = mixture.predict_proba(score)[:, high]
    found[score[:, 0] < mixture.means_[low, 0]] = 0  # where the wider of the two is above again
    probability[rows] = np.maximum.accumulate(found)
    return probability


def _two_normals(score: Floats) -> "GaussianMixture":
    """Fit two normals to ascending scores [n, 1]: the likeliest of several starts, in each of
    which another share of the highest ones is poison.

    Each variance is raised by a tenth of that of all scores: else the likeliest fit may be a spike
    on a few equal scores.
    """
    from sklearn.mixture import GaussianMixture

    fitted = []
    least = max(0.1 * float(score.var()), 1e-9)
    for share in STARTS:
        first = min(max(2, round(share * len(score))), len(score) - 2)
        parts = score[:-first], score[-first:]
        mixture = GaussianMixture(
            2,
            reg_covar=least,
            weights_init=[len(part) / len(score) for part in parts],
            means_init=[part.mean(0) for part in parts],
            precisions_init=[[[1 / (part.var() + least)]] for part in parts],
        )
        fitted.append(mixture.fit(score))
    return max(fitted, key=lambda mixture: mixture.lower_bound_)


def class_shares(labels: Ints, rows: Ints, classes: int) -> Floats:
    """Share of each class's samples that is among `rows`.

    A class with less than half the median number of samples counts as if it had so many: one or two
    odd images of a rare class are no sign of anything.

    Args:
        labels: int64 [n].
        rows: the chosen row numbers.
        classes: number of classes.

    Returns:
        float64 [classes].
    """
    return _per_sample(labels, np.bincount(labels[rows], minlength=classes).astype(np.float64))


def _per_sample(labels: Ints, counts: Floats) -> Floats:
    samples = np.bincount(labels, minlength=len(counts))
    least = np.median(samples[samples > 0]) / 2
    return counts / np.maximum(samples, least)
