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
from cgd.entropy import axis

if TYPE_CHECKING:
    from cgd.guides.base import Guide

PLUS = " + "


def spec_parts(spec: str) -> list[str]:
    """Return the guides that a specification names.

    >>> spec_parts("onnx:a.onnx + demo")
    ['onnx:a.onnx', 'demo']
    """
    return [part.strip() for part in spec.split(PLUS)]


class JointGuide:
    """Several guides."""

    def __init__(self, name: str, guides: Sequence["Guide"]) -> None:
        self.name = name
        self.guides = guides

    def logits(self, data: ImageData) -> Tensor:
        """See `cgd.guides.Guide`; for every sample, of the guide in whose eyes its given label
        ranks as the most contradicted. Guides are compared by ranks, since some are surer of
        themselves than others."""
        asked = [guide.logits(data) for guide in self.guides]
        ranks = [axis([logits], data.labels, name="guide").rank for logits in asked]
        chosen = torch.from_numpy(np.argmax(ranks, axis=0))
        found = asked[0].clone()
        for number, logits in enumerate(asked[1:], 1):
            rows = chosen == number
            found[rows] = logits[rows]
        return found
