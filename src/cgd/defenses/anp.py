"""ANP: channels that a small change of their weights can turn to the target are pruned."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from cgd.data.dataset import ImageData
from cgd.defenses.base import Defended, Repair, Terms, register
from cgd.defenses.masks import (
    Masks,
    call_scaled,
    mask_optimizer,
    open_masks,
    prune_as_far_as,
)
from cgd.defenses.tuning import check_clean, cross_entropy_of, hold_out, tune
from cgd.models import Classifier
from cgd.training import place, seeded


@register
@dataclass(frozen=True)
class AdversarialNeuronPruning(Repair):
    """Adversarial neuron pruning.

    A mask over the channels of all batch normalisations is learned that keeps clean images right
    while their weights and biases are moved, by up to `eps` of themselves, against it; channels
    with a low mask are pruned. Published: `eps` 0.4, 2,000 steps of 256 images, and the threshold
    with the lowest attack success on test data. Ours is the last one before held-out clean accuracy
    falls by more than `tolerance` for the first time; and `eps` and `steps` are smaller, for with
    many more the masks of a small network close one after the other, those it needs too.

    Attributes:
        eps: how far weights and biases are moved, as a share of themselves.
        alpha: weight of the loss without that movement.
        lr: learning rate of the mask.
        steps: number of steps.
        batch: images a step.
        tolerance: how far held-out accuracy may fall, in points.
    """

    name = "anp"
    source = "arXiv 2110.14430"

    eps: float = 0.2
    alpha: float = 0.2
    lr: float = 0.2
    steps: int = 60
    batch: int = 128
    tolerance: float = 5.0

    def repair(self, model: Classifier, clean: ImageData, terms: Terms) -> Defended:
        check_clean(model, clean)
        shown, held_out = hold_out(clean, terms.seed)
        masks, images = self.learn_masks(model, shown, terms)
        pruned, told = prune_as_far_as(model, masks, held_out, self.tolerance, terms.device)
        return Defended(pruned, images, told)

    def learn_masks(self, model: Classifier, shown: ImageData, terms: Terms) -> tuple[Masks, int]:
        """Return the masks, and the number of images that went through with gradients."""
        frozen = copy.deepcopy(model).requires_grad_(False)
        place(frozen, terms.device)
        frozen.train()
        masks, generator = open_masks(frozen), seeded(terms.seed, 1)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            def at(weights: Masks, biases: Masks | None = None) -> Tensor:
                scaled = partial(call_scaled, frozen, weights=weights, biases=biases)
                return cross_entropy_of(scaled, terms.device)(images, labels)

            worst = self._worst(at, masks, generator)
            return self.alpha * at(masks) + (1 - self.alpha) * at(*worst)

        images = 3 * tune(
            loss,
            mask_optimizer(masks, self.lr),
            shown,
            terms,
            steps=self.steps,
            batch=self.batch,
            label=self.name,
        )
        return {name: mask.detach() for name, mask in masks.items()}, images

    def _worst(
        self, loss: Callable[[Masks, Masks], Tensor], masks: Masks, generator: Generator
    ) -> tuple[Masks, Masks]:
        """Move the factors of weights and biases, from a random place, up the loss."""
        noise = [
            (self.eps * (2 * torch.rand(2, len(mask), generator=generator) - 1))
            .to(mask.device)
            .requires_grad_()
            for mask in masks.values()
        ]
        slopes = torch.autograd.grad(loss(*_moved(masks, noise)), noise)
        up = [
            (start.detach() + self.eps * slope.sign()).clamp(-self.eps, self.eps)
            for start, slope in zip(noise, slopes, strict=True)
        ]
        return _moved(masks, up)


def _moved(masks: Masks, noise: list[Tensor]) -> tuple[Masks, Masks]:
    """Factors of the weights and of the biases; noise is [2, channels] a layer."""
    pairs = list(zip(masks.items(), noise, strict=True))
    weights = {name: mask + by[0] for (name, mask), by in pairs}
    return weights, {name: 1 + by[1] for (name, _), by in pairs}
