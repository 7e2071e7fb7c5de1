"""MixMatch (arXiv 1905.02249): the labels of some samples are believed, the others are guessed."""

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator as Random
from numpy.typing import NDArray
from torch import Tensor

from cgd.data.dataset import ImageData
from cgd.defenses.base import Terms
from cgd.defenses.features import Floats
from cgd.defenses.scratch import augmented, check_loss
from cgd.errors import InputError
from cgd.models import Classifier
from cgd.training import (
    Recipe,
    autocast,
    make_optimizer,
    one_cycle,
    predict,
    run_steps,
    seeded,
    seeded_layers,
    take,
    to_device,
)

TEMPERATURE, ALPHA, WEIGHT, LR, BATCH = 0.5, 0.75, 15.0, 2e-3, 64
SHOWN_AN_EPOCH = 1024 * 64 / 50_000
"""Labelled images an epoch, as a share of all: published as 1,024 steps of 64 on CIFAR-10."""


class MixMatch:
    """A training in epochs, each of which may believe other labels.

    The learning rate falls to zero at the end, where the published trainings, which are ten times
    as long, keep it.

    Attributes:
        images_seen: number of images that went through the model with gradients so far.
    """

    def __init__(
        self, model: Classifier, data: ImageData, terms: Terms, epochs: int, stage: int
    ) -> None:
        self.model, self.terms, self.epochs, self.stage = model, terms, epochs, stage
        self.images, self.labels = to_device(data.images, terms.device), data.labels
        self.optimizer = make_optimizer(model, Recipe(lr=LR, optimizer="adam", weight_decay=0.0))
        self.batch = Recipe(batch=BATCH).batch_for(len(data))
        self.steps = max(1, round(SHOWN_AN_EPOCH * len(data) / self.batch))
        self.schedule = one_cycle(LR, epochs * self.steps)
        self.done = self.images_seen = 0

    def epoch(self, believed: NDArray[np.bool_]) -> None:
        """Train for one epoch; `believed` (bool [n]) says whose labels are used.

        Raises:
            InputError: all labels are believed, or none; or the training diverged.
        """
        if believed.all() or not believed.any():
            raise InputError("mixmatch: some labels must be believed, and some not")
        generator = seeded(self.terms.seed, self.stage, self.done)
        random = np.random.default_rng([self.terms.seed, self.stage, self.done])
        known, unknown = (torch.from_numpy(np.flatnonzero(m)) for m in (believed, ~believed))

        def draws() -> Iterator[tuple[Tensor, Tensor]]:
            for _ in range(self.steps):
                yield _draw(known, self.batch, generator), _draw(unknown, self.batch, generator)

        def loss_of(rows: tuple[Tensor, Tensor]) -> Tensor:
            return self._loss(*rows, generator, random)

        self.model.train()
        with seeded_layers(generator.initial_seed(), self.terms.device):
            first = self.done * self.steps
            mean = run_steps(draws(), loss_of, self.optimizer, self.schedule, first)
        check_loss(mean, "mixmatch")
        self.done += 1
        self.images_seen += 3 * self.batch * self.steps
        self.model.eval()

    def _loss(
        self, known: Tensor, unknown: Tensor, generator: torch.Generator, random: Random
    ) -> Tensor:
        device = self.terms.device
        views = [
            augmented(take(self.images, rows, device), generator, self.terms)
            for rows in (known, unknown, unknown)
        ]
        classes = len(self.model.card.classes)
        given = F.one_hot(self.labels[known], classes).float().to(device)
        guessed = self._guess(views[1:])
        inputs, targets = mixed(
            torch.cat(views).float(), torch.cat([given, guessed, guessed]), random
        )
        with autocast(device):
            logits = self.model(inputs).float()
        supervised = F.cross_entropy(logits[: len(known)], targets[: len(known)])
        guess: Tensor = (logits[len(known) :].softmax(1) - targets[len(known) :]).square().mean()
        weight = WEIGHT * self.done / self.epochs
        return supervised + weight * guess

    @torch.no_grad()
    def _guess(self, views: list[Tensor]) -> Tensor:
        with autocast(self.terms.device):
            answers = [self.model(view).float().softmax(1) for view in views]
        return sharpened(torch.stack(answers).mean(0), TEMPERATURE)


def _draw(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return rows[torch.randint(len(rows), (count,), generator=generator)]


def sharpened(probabilities: Tensor, temperature: float) -> Tensor:
    """Raise probabilities [n, classes] to 1 / temperature and bring their sums back to 1.

    >>> sharpened(torch.tensor([[0.5, 0.25, 0.25]]), 0.5)
    tensor([[0.6667, 0.1667, 0.1667]])
    """
    raised = probabilities ** (1 / temperature)
    return raised / raised.sum(1, keepdim=True)


def mixed(inputs: Tensor, targets: Tensor, random: Random) -> tuple[Tensor, Tensor]:
    """Mix each sample with another one of the batch, its own share at least one half.

    Args:
        inputs: float [n, ...].
        targets: float [n, classes].
        random: draws the shares, Beta(0.75, 0.75), and the partners.

    Returns:
        Mixed inputs and targets of the same shapes.
    """
    n = len(inputs)
    own = torch.from_numpy(random.beta(ALPHA, ALPHA, n)).float()
    own = torch.maximum(own, 1 - own).to(inputs.device)
    partner = torch.from_numpy(random.permutation(n)).to(inputs.device)
    share = own.view(n, *[1] * (inputs.ndim - 1))
    return (
        share * inputs + (1 - share) * inputs[partner],
        own[:, None] * targets + (1 - own[:, None]) * targets[partner],
    )


def symmetric_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Symmetric cross-entropy (arXiv 1908.06112): wrong labels pull on it less.

    0.1 * cross-entropy + reverse cross-entropy, in which the logarithm of a target of zero is
    that of 0.0001, as published for DBD and ASD.

    Args:
        logits: float [n, classes].
        labels: int64 [n].

    Returns:
        float [n].
    """
    belief = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    reverse = -math.log(1e-4) * (1 - belief)
    return 0.1 * F.cross_entropy(logits, labels, reduction="none") + reverse


def lowest(values: Floats, count: int) -> NDArray[np.bool_]:
    """Mark the `count` samples with the lowest values: bool [n]."""
    marked = np.zeros(len(values), dtype=np.bool_)
    marked[np.argsort(values, kind="stable")[:count]] = True
    return marked


def sample_losses(model: Classifier, data: ImageData, terms: Terms) -> Floats:
    """Symmetric cross-entropy of each given label, float64 [n]."""
    logits = predict(model, data.images, device=terms.device)
    losses: Floats = symmetric_entropy(logits, data.labels).double().numpy()
    return losses
