"""`GUIDE + GUIDE`: several guides, of which the one counts that contradicts a label most.

Against a guide that has a backdoor itself: where it sees its own trigger and calls the poison
right, another one does not.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cgd.data.dataset import ImageData
from cgd.entropy import label_entropy

if TYPE_CHECKING:
    from cgd.guides.base import Guide

SCALES = np.logspace(-2, 2, 41)
CALIBRATED_ON = 10_000


class JointGuide:
    """Several guides, made comparable."""

    def __init__(self, name: str, guides: Sequence["Guide"]) -> None:
        self.name = name
        self.guides = guides

    def logits(self, data: ImageData) -> Tensor:
        """See `cgd.guides.Guide`; for every sample, of the guide under which its given label is the
        least probable. So they depend on the given labels, and their own label is right where the
        guides agree."""
        first, *others = self.guides
        found, entropy = _calibrated(first, data)
        for guide in others:
            logits, own = _calibrated(guide, data)
            rows = own > entropy
            found[rows], entropy[rows] = logits[rows], own[rows]
        return found


def _calibrated(guide: "Guide", data: ImageData) -> tuple[Tensor, Tensor]:
    """Return the guide's logits, as sure as they are right, and the cross-entropy of each label."""
    logits = guide.logits(data)
    logits = logits * calibrated_scale(logits, data.labels)
    return logits, torch.from_numpy(label_entropy(logits, data.labels))


def calibrated_scale(logits: Tensor, labels: Tensor) -> float:
    """Find the factor of the logits that makes the given labels most probable.

    A guide that is surer of itself than it is right gets a factor below 1 (temperature scaling, Guo
    et al., arXiv 1706.04599).

    Args:
        logits: float [n, classes].
        labels: int64 [n], mostly right.
    """
    some = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:CALIBRATED_ON]
    known, given = logits[some], labels[some]
    losses = [label_entropy(known * scale, given).mean() for scale in SCALES]
    return float(SCALES[int(np.argmin(losses))])
