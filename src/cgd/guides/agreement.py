"""How far the guide agrees with the given labels, class by class."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassAgreement:
    """One class in the eyes of the guide.

    Attributes:
        name: the class.
        samples: how many samples carry its label.
        asked: about how many of them the guide was asked.
        agreement: share of these, in [0, 1], for which the guide's top class is that label; None
            when there are none.
    """

    name: str
    samples: int
    asked: int
    agreement: float | None


def agreement(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> list[ClassAgreement]:
    """Compare the guide's top class with the given label, for each class.

    Args:
        logits: [n, classes] of the guide; NaN where it was not asked.
        labels: int64 [n], as given.
        classes: class names.

    >>> logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0]])
    >>> for entry in agreement(logits, torch.tensor([0, 0, 0]), ["cat", "dog"]):
    ...     print(entry.name, entry.samples, entry.agreement)
    cat 3 0.6666666666666666
    dog 0 None
    """
    asked = ~logits[:, 0].isnan()
    agreed = asked & (logits.argmax(dim=1) == labels)
    counts = (_count(labels[rows], len(classes)) for rows in (slice(None), asked, agreed))
    return [
        ClassAgreement(name, samples, known, hits / known if known else None)
        for name, samples, known, hits in zip(classes, *counts, strict=True)
    ]


def _count(labels: Tensor, classes: int) -> list[int]:
    counts: list[int] = torch.bincount(labels, minlength=classes).tolist()
    return counts
