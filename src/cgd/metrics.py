"""How good a model and a split are. Pure array functions; ground truth enters nowhere else."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cgd.split import Split

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Separation:
    """How well scores and parts tell poison from the rest; shares are in [0, 1].

    Attributes:
        auroc: area under the ROC curve of the poison score.
        average_precision: area under its precision-recall curve.
        triggered_precision: share of the triggered part that is poison.
        triggered_recall: share of the poison that is in the triggered part.
        poison_in_clean: number of poisoned samples left in the clean part.
    """

    auroc: float
    average_precision: float
    triggered_precision: float
    triggered_recall: float
    poison_in_clean: int


def accuracy(predicted: Labels, labels: Labels) -> float:
    """Share of correct predictions, in percent.

    >>> accuracy(np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2]))
    75.0
    """
    return 100 * float(np.mean(predicted == labels))


def attack_success_rate(predicted: Labels, labels: Labels, goal: Labels | int) -> float:
    """Share of triggered images that are given the label the attacker wants, in percent.

    Args:
        predicted: int64 [n], predictions on triggered images.
        labels: int64 [n], their true labels.
        goal: int64 [n], what the attacker wants, or one class for all; images for which this is
            the true label do not count.

    >>> attack_success_rate(np.array([0, 0, 1]), np.array([0, 1, 1]), goal=0)
    50.0
    """
    return 100 * float(np.mean((predicted == goal)[labels != goal]))


def robust_accuracy(predicted: Labels, labels: Labels, goal: Labels | int) -> float:
    """Share of the same images that are given their true label, in percent.

    >>> robust_accuracy(np.array([0, 0, 1]), np.array([0, 1, 1]), goal=0)
    50.0
    """
    others = labels != goal
    return accuracy(predicted[others], labels[others])


def defense_effectiveness(
    ca_before: float, ca_after: float, asr_before: float, asr_after: float
) -> float:
    """Defence effectiveness rating, (max(0, dASR) - max(0, dCA) + 1) / 2, in [0, 1].

    All arguments are in percent; d = before - after (BackdoorBench, arXiv 2206.12654).

    >>> defense_effectiveness(90.0, 89.0, 100.0, 0.0)
    0.995
    """
    gain = max(0.0, asr_before - asr_after) / 100
    loss = max(0.0, ca_before - ca_after) / 100
    return (gain - loss + 1) / 2


def tpr_at_fpr(score: NDArray[np.float64], positive: NDArray[np.bool_], fpr: float) -> float:
    """Share of the positives above the lowest threshold that at most `fpr` of the rest exceed.

    Args:
        score: float64 [n], higher = more likely positive; equal scores stand or fall together.
        positive: bool [n], with both kinds in it.
        fpr: false positive rate that is allowed, in [0, 1].

    Returns:
        True positive rate, in [0, 1].

    >>> tpr_at_fpr(np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False]), 0.0)
    0.5
    """
    order = np.argsort(-score, kind="stable")
    found, ranked = positive[order], score[order]
    ends = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])
    right, wrong = np.cumsum(found)[ends], np.cumsum(~found)[ends]
    allowed = wrong / (~positive).sum() <= fpr
    return float(np.max(right[allowed], initial=0) / positive.sum())


def ranking(score: NDArray[np.float64], positive: NDArray[np.bool_]) -> tuple[float, float]:
    """Return AUROC and average precision of a score, each in [0, 1].

    Args:
        score: float64 [n], higher = more likely positive.
        positive: bool [n], with both kinds in it.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    return (
        float(roc_auc_score(positive, score)),
        float(average_precision_score(positive, score)),
    )


def separation(score: NDArray[np.float64], split: Split, poison: Labels) -> Separation | None:
    """Compare a poison score and a split with the ground truth.

    Args:
        score: float64 [n], higher = more likely poison.
        split: the parts.
        poison: row numbers of the poisoned samples.

    Returns:
        None when nothing, or everything, is poisoned.
    """
    is_poison = np.zeros(len(score), dtype=np.bool_)
    is_poison[poison] = True
    if is_poison.all() or not is_poison.any():
        return None
    caught = int(is_poison[split.triggered].sum())
    auroc, average_precision = ranking(score, is_poison)
    return Separation(
        auroc=auroc,
        average_precision=average_precision,
        triggered_precision=caught / len(split.triggered),
        triggered_recall=caught / int(is_poison.sum()),
        poison_in_clean=int(is_poison[split.clean].sum()),
    )
