"""RNP: what a network needs to answer clean images again, after it forgot how, is kept."""

import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cgd.data.dataset import ImageData
from cgd.defenses.base import Defended, Repair, Terms, register
from cgd.defenses.masks import Masks, call_scaled, mask_optimizer, open_masks, prune_as_far_as
from cgd.defenses.tuning import (
    check_clean,
    cross_entropy_of,
    held_out_accuracy,
    hold_out,
    tune,
)
from cgd.models import Classifier
from cgd.training import place

CHUNK = 5
"""Steps between two looks at how much is forgotten."""


@register
@dataclass(frozen=True)
class ReconstructiveNeuronPruning(Repair):
    """Reconstructive neuron pruning.

    A copy unlearns clean images, by steps up their loss, until its accuracy on them is at most
    `forgotten`. Then a mask over the channels of its batch normalisations is learned that brings
    the answers back; the victim's channels with a low mask are pruned. Published: at most 20 epochs
    over 1 % of the data for either stage, and the threshold with the lowest attack success on test
    data; ours is the last one before held-out clean accuracy falls by more than `tolerance` for the
    first time. The published rates, 0.01 for unlearning and 0.2 for the mask, are too large for a
    small network: the first makes it forget the backdoor too, the second closes channels that it
    needs.

    Attributes:
        unlearn_steps: at most so many steps of unlearning.
        steps: steps for the mask.
        batch: images a step.
        lr: learning rate of unlearning.
        mask_lr: of the mask.
        alpha: weight of the loss for the mask.
        forgotten: accuracy, in percent, at which unlearning ends.
        tolerance: how far held-out accuracy may fall, in points.
    """

    name = "rnp"
    source = "arXiv 2305.14876"

    unlearn_steps: int = 100
    steps: int = 40
    batch: int = 64
    lr: float = 1e-3
    mask_lr: float = 0.05
    alpha: float = 0.2
    forgotten: float = 20.0
    tolerance: float = 5.0

    def repair(self, model: Classifier, clean: ImageData, terms: Terms) -> Defended:
        check_clean(model, clean)
        shown, held_out = hold_out(clean, terms.seed)
        unlearned, accuracy, first = self.unlearn(model, shown, terms)
        masks, second = self._masks(unlearned, shown, terms)
        pruned, told = prune_as_far_as(model, masks, held_out, self.tolerance, terms.device)
        return Defended(pruned, first + second, {**told, "accuracy_unlearned": accuracy})

    def unlearn(
        self, model: Classifier, shown: ImageData, terms: Terms
    ) -> tuple[Classifier, float, int]:
        """Return a copy that forgot, its accuracy in percent, and the images that took."""
        forgetful = copy.deepcopy(model)
        place(forgetful, terms.device)
        optimizer = torch.optim.SGD(
            forgetful.parameters(), lr=self.lr, momentum=0.9, weight_decay=5e-4
        )
        usual = cross_entropy_of(forgetful, terms.device)

        def up(images: Tensor, labels: Tensor) -> Tensor:
            return -usual(images, labels)

        done = images = 0
        accuracy = held_out_accuracy(forgetful, shown, terms.device)
        while done < self.unlearn_steps and accuracy > self.forgotten:
            steps = min(CHUNK, self.unlearn_steps - done)
            forgetful.train()
            images += tune(
                up,
                optimizer,
                shown,
                terms,
                steps=steps,
                batch=self.batch,
                label="rnp: unlearning",
                stream=done,
            )
            done += steps
            accuracy = held_out_accuracy(forgetful, shown, terms.device)
        return forgetful, accuracy, images

    def _masks(self, unlearned: Classifier, shown: ImageData, terms: Terms) -> tuple[Masks, int]:
        """Learn which channels bring the answers back."""
        frozen = copy.deepcopy(unlearned).requires_grad_(False).train()
        masks = open_masks(frozen)
        recovered = cross_entropy_of(partial(call_scaled, frozen, weights=masks), terms.device)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            return self.alpha * recovered(images, labels)

        images = tune(
            loss,
            mask_optimizer(masks, self.mask_lr),
            shown,
            terms,
            steps=self.steps,
            batch=self.batch,
            label="rnp: mask",
            stream=-1,
        )
        return {name: mask.detach() for name, mask in masks.items()}, images
