"""FT: training on with clean images, the plainest repair."""

import copy
from dataclasses import dataclass

from cgd.data.dataset import ImageData
from cgd.defenses.base import Defended, Repair, Terms, register
from cgd.defenses.tuning import check_clean, fine_tune
from cgd.models import Classifier


@register
@dataclass(frozen=True)
class FineTuning(Repair):
    """Cross-entropy on the clean images, with the usual augmentation.

    Published: 1,000 steps of 256 images (see `cgd.defenses.tuning`), cosine decay.

    Attributes:
        steps: number of steps.
        batch: images a step.
        lr: peak learning rate of SGD.
    """

    name = "ft"
    source = "arXiv 2206.12654 (BackdoorBench)"

    steps: int = 500
    batch: int = 128
    lr: float = 0.01

    def repair(self, model: Classifier, clean: ImageData, terms: Terms) -> Defended:
        check_clean(model, clean)
        tuned = copy.deepcopy(model)
        images = fine_tune(
            tuned, clean, terms, steps=self.steps, batch=self.batch, lr=self.lr, label=self.name
        )
        return Defended(tuned, images)
