"""MCR: a point on a curve of low clean loss between the victim and a fine-tuned copy."""

import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from cgd.data.dataset import ImageData
from cgd.defenses.base import Defended, Repair, Terms, register
from cgd.defenses.tuning import check_clean, cross_entropy_of, endless_batches, fine_tune, tune
from cgd.models import Classifier
from cgd.training import place, seeded, take

Weights = dict[str, Tensor]


@register
@dataclass(frozen=True)
class ModeConnectivityRepair(Repair):
    """Mode connectivity repair.

    The victim is fine-tuned; then the middle of a quadratic Bezier curve from the victim (t = 0) to
    that copy (t = 1) is trained so that clean images are right all along it, and the network at `t`
    is taken, its batch statistics measured anew on clean images. Published: 100 epochs for each
    stage, learning rate 3e-5 for the curve, t = 0.1.

    Attributes:
        steps: steps of fine-tuning.
        curve_steps: steps for the middle of the curve.
        batch: images a step.
        lr: peak learning rate of fine-tuning.
        curve_lr: learning rate for the middle of the curve.
        t: place on the curve, from 0 (the victim) to 1 (the fine-tuned copy).
    """

    name = "mcr"
    source = "arXiv 2005.00060"

    steps: int = 300
    curve_steps: int = 200
    batch: int = 128
    lr: float = 0.01
    curve_lr: float = 3e-5
    t: float = 0.1

    def repair(self, model: Classifier, clean: ImageData, terms: Terms) -> Defended:
        check_clean(model, clean)
        end = copy.deepcopy(model)
        images = fine_tune(
            end, clean, terms, steps=self.steps, batch=self.batch, lr=self.lr, label="mcr: end"
        )
        curved = copy.deepcopy(model)
        place(curved, terms.device)
        curved.train()
        ends = [_weights(curved), _weights(end)]
        middle = {
            name: ((first + ends[1][name]) / 2).requires_grad_() for name, first in ends[0].items()
        }
        generator = seeded(terms.seed, 2)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            t = float(torch.rand((), generator=generator))
            at = on_curve(ends[0], middle, ends[1], t)
            call = partial(functional_call, curved, at)
            return cross_entropy_of(call, terms.device)(images, labels)

        images += tune(
            loss,
            torch.optim.SGD(middle.values(), lr=self.curve_lr, momentum=0.9),
            clean,
            terms,
            steps=self.curve_steps,
            batch=self.batch,
            label="mcr: curve",
            stream=1,
        )
        curved.load_state_dict(on_curve(ends[0], middle, ends[1], self.t), strict=False)
        self._measure_statistics(curved, clean, terms)
        return Defended(curved, images)

    @torch.no_grad()
    def _measure_statistics(self, model: Classifier, clean: ImageData, terms: Terms) -> None:
        """Give batch normalisations the mean and variance of clean images."""
        norms = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
        model.train()
        batches = -(-len(clean) // min(self.batch, len(clean)))
        for rows in endless_batches(len(clean), self.batch, batches, seeded(terms.seed, 3)):
            model(take(clean.images, rows, terms.device))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.eval()


def on_curve(start: Weights, middle: Weights, end: Weights, t: float) -> Weights:
    """Return the weights at `t` of a quadratic Bezier curve.

    >>> one = {"w": torch.tensor(1.0)}
    >>> on_curve({"w": torch.tensor(0.0)}, one, one, 0.5)["w"].item()
    0.75
    """
    return {
        name: (1 - t) ** 2 * first + 2 * t * (1 - t) * middle[name] + t**2 * end[name]
        for name, first in start.items()
    }


def _weights(model: Classifier) -> Weights:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}
