"""The entropy map: how far the guide and the suspect are from each given label, as ranks.

Pure array functions. Cross-entropy of the given label on each axis, turned into a rank
(CGD, arXiv 2507.05113, section 4).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgd.errors import InputError

Floats = NDArray[np.float64]
BLOCK = 65536


@dataclass(frozen=True, eq=False)
class EntropyMap:
    """What guide and suspect say about every given label; all arrays have n entries.

    Attributes:
        label: int64, the given label.
        guide_label: int64, the guide's own label.
        guide_entropy: cross-entropy of the given label under the guide, in nats.
        guide_rank: its rank in (0, 1]; high = the guide contradicts the label.
        suspect_entropy: cross-entropy of the given label under the suspect, in nats.
        suspect_rank: its rank in (0, 1]; low = the suspect learned the label early.
    """

    label: NDArray[np.int64]
    guide_label: NDArray[np.int64]
    guide_entropy: Floats
    guide_rank: Floats
    suspect_entropy: Floats
    suspect_rank: Floats

    @property
    def poison_score(self) -> Floats:
        """High = contradicted, yet learned early; see `poison_score`."""
        return poison_score(self.guide_rank, self.suspect_rank)


def entropy_map(guide_logits: Tensor, suspect_logits: Tensor, labels: Tensor) -> EntropyMap:
    """Place every sample on the two axes.

    Args:
        guide_logits: float [n, classes], already at the scale that is wanted.
        suspect_logits: float [n, classes].
        labels: int64 [n], the given labels.

    Raises:
        InputError: the shapes disagree, a logit is not finite, or a label is not a class.
    """
    _check("guide", guide_logits, labels)
    _check("suspect", suspect_logits, labels)
    if guide_logits.shape != suspect_logits.shape:
        raise InputError(
            f"the guide scores {guide_logits.shape[1]} classes, the suspect "
            f"{suspect_logits.shape[1]}; both must know the same classes"
        )
    guide = label_entropy(guide_logits, labels)
    suspect = label_entropy(suspect_logits, labels)
    return EntropyMap(
        label=labels.numpy(),
        guide_label=guide_logits.argmax(1).numpy(),
        guide_entropy=guide,
        guide_rank=ranks(guide),
        suspect_entropy=suspect,
        suspect_rank=ranks(suspect),
    )


def match_frequencies(logits: Tensor, labels: Tensor) -> Tensor:
    """Shift each class's logit by how much rarer it is expected than it is given.

    The last steps of a short training leave a model leaning towards some classes; their samples
    would all look learned early. Each logit loses log(mean probability of the class) and gains
    log(frequency of its label).

    Args:
        logits: float [n, classes].
        labels: int64 [n], the given labels.

    Returns:
        float32 [n, classes].

    >>> leaning = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    >>> match_frequencies(leaning, torch.tensor([0, 1])).softmax(1)
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """
    classes = logits.shape[1]
    expected = torch.zeros(classes, dtype=torch.float64)
    for block in torch.split(logits, BLOCK):
        expected += block.double().softmax(1).sum(0)
    given = torch.bincount(labels, minlength=classes).double()
    shift = torch.where(given > 0, (given / expected.clamp(min=1e-9)).log(), 0.0)
    return logits + shift.float()


def _check(name: str, logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or len(logits) != len(labels):
        raise InputError(
            f"the {name}'s scores have shape {list(logits.shape)}, "
            f"expected [{len(labels)}, classes]"
        )
    if not bool(torch.isfinite(logits).all()):
        raise InputError(f"the {name}'s scores hold values that are not finite")
    outside = labels[(labels < 0) | (labels >= logits.shape[1])]
    if len(outside):
        raise InputError(
            f"label {int(outside[0])} is none of the {logits.shape[1]} classes that the {name} "
            "scores"
        )


def label_entropy(logits: Tensor, labels: Tensor) -> Floats:
    """Cross-entropy of the given label, -log softmax(logits)[label], in nats.

    Args:
        logits: float [n, classes].
        labels: int64 [n].

    Returns:
        float64 [n].

    >>> label_entropy(torch.zeros(1, 4), torch.tensor([2])).round(3)
    array([1.386])
    """
    entropies = torch.empty(len(labels), dtype=torch.float64)
    for start in range(0, len(labels), BLOCK):
        rows = slice(start, start + BLOCK)
        scores = logits[rows].double()
        chosen = scores.gather(1, labels[rows, None]).squeeze(1)
        entropies[rows] = scores.logsumexp(1) - chosen
    return entropies.numpy()


def poison_score(guide_rank: Floats, suspect_rank: Floats) -> Floats:
    """Log odds of the guide rank minus log odds of the suspect rank.

    Log odds stretch the ends of both axes, where poison is: a sample among the first thousandth
    that was learned counts for more than one among the first tenth.

    Args:
        guide_rank: float64 [n], in (0, 1].
        suspect_rank: float64 [n], in (0, 1].

    Returns:
        float64 [n], 0 where the ranks agree.

    >>> poison_score(np.array([1.0, 0.5]), np.array([0.5, 1.0])).round(2)
    array([ 2.2, -2.2])
    """
    return _log_odds(guide_rank) - _log_odds(suspect_rank)


def _log_odds(rank: Floats) -> Floats:
    middle = rank.clip(1 / len(rank), 1) - 0.5 / len(rank)  # so that the last rank, 1, has odds too
    odds: Floats = np.log(middle / (1 - middle))
    return odds


def ranks(values: Floats) -> Floats:
    """Rank of every value among all, in (0, 1]; equal values share their mean rank.

    >>> ranks(np.array([10.0, 30.0, 20.0, 20.0]))
    array([0.25 , 1.   , 0.625, 0.625])
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    ends = np.r_[starts[1:], len(values)]
    shared = (starts + ends + 1) / 2
    result = np.empty(len(values))
    result[order] = np.repeat(shared, ends - starts) / len(values)
    return result
