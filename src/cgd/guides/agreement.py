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
        agreement: share of them, in [0, 1], for which the guide's top class is that label; None
            when there are no samples.
    """

    name: str
    samples: int
    agreement: float | None


def agreement(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> list[ClassAgreement]:
    """Compare the guide's top class with the given label, for each class.

    Args:
        logits: [n, classes] of the guide.
        labels: int64 [n], as given.
        classes: class names.

    >>> logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0]])
    >>> for entry in agreement(logits, torch.tensor([0, 0, 0]), ["cat", "dog"]):
    ...     print(entry.name, entry.samples, entry.agreement)
    cat 3 0.6666666666666666
    dog 0 None
    """
    samples = torch.bincount(labels, minlength=len(classes)).tolist()
    agreed = labels[logits.argmax(dim=1) == labels]
    right = torch.bincount(agreed, minlength=len(classes)).tolist()
    return [
        ClassAgreement(name, n, hits / n if n else None)
        for name, n, hits in zip(classes, samples, right, strict=True)
    ]
