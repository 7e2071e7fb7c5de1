"""The suspicious model: a short training on the untrusted data, and what it then thinks of it."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cgd.data.dataset import ImageData
from cgd.files import read_tensors, write_tensors
from cgd.models import Classifier, ModelCard, build
from cgd.training import Recipe, pick_device, predict, train


@dataclass(frozen=True)
class SuspectRecipe:
    """How the suspicious model is trained.

    Attributes:
        training: epochs, optimiser, augmentation of one run.
        runs: independent runs whose logits are averaged.
        folds: 0 to train on all samples and predict the same ones; k >= 2 to train on k - 1 folds
            and predict the one left out.
        least_steps: more epochs, where those of `training` have fewer steps than this.
        trajectory: average the logits over the ends of the last two thirds of the epochs, instead
            of taking those of the last one.
    """

    training: Recipe
    runs: int = 1
    folds: int = 0
    least_steps: int = 0
    trajectory: bool = False

    def training_on(self, n: int) -> Recipe:
        """How one run on `n` samples trains.

        >>> SHORT.training_on(20_000).epochs, SHORT.training_on(1_500).epochs
        (6, 9)
        """
        steps = math.ceil(n / self.training.batch_for(n))
        enough = math.ceil(self.least_steps / steps)
        return replace(self.training, epochs=max(self.training.epochs, enough))

    def passes(self, n: int) -> float:
        """Passes over `n` samples, with gradients."""
        seen = n - n // self.folds if self.folds else n
        return self.training_on(seen).epochs * self.runs * max(1, self.folds - 1)


RELEASED = SuspectRecipe(
    Recipe(
        epochs=5,
        batch=256,
        min_steps=0,
        lr=3e-4,
        optimizer="adam",
        schedule="constant",
        crop=False,
        flip=False,
    ),
    runs=3,
)
"""As CGD's authors released it: in-sample, although the class is called k-fold there."""

SHORT = SuspectRecipe(
    Recipe(
        epochs=6,
        batch=128,
        lr=1e-3,
        optimizer="adam",
        schedule="constant",
        crop=False,
        flip=False,
    ),
    least_steps=450,
    trajectory=True,
)
"""One run; the mean over its epochs is steadier than any of them, and than a run of three epochs.
"""

OUT_OF_FOLD = replace(SHORT, folds=3)
"""Each sample is judged by a model that has not seen it."""

SUSPECTS = {"short": SHORT, "released": RELEASED, "out-of-fold": OUT_OF_FOLD}


def suspect_logits(
    data: ImageData,
    recipe: SuspectRecipe,
    *,
    arch: str = "small_resnet",
    seed: int = 0,
    device: torch.device | None = None,
    folder: Path | None = None,
) -> Tensor:
    """Train the suspicious model and return its logits on the data.

    Args:
        data: the untrusted data.
        recipe: how to train.
        arch: any architecture that `cgd.models.build` knows.
        seed: fixes weights and order; each fold adds 1, each run 1000.
        device: where to train; default: a GPU if there is one.
        folder: receives the logits of each run as it ends, and the state of the running one, so
            that a killed scan continues; None to keep nothing.

    Returns:
        float32 [n, classes], the mean over the runs.
    """
    device = device or pick_device()
    total = torch.zeros(len(data), len(data.classes))
    for run in range(recipe.runs):
        stored = folder / f"suspect-{run}.safetensors" if folder else None
        if stored and stored.is_file():
            total += read_tensors(stored)["logits"]
            continue
        logits = _one_run(data, recipe, arch, seed + 1000 * run, device, folder)
        if stored:
            write_tensors(stored, {"logits": logits})
        total += logits
    return total / recipe.runs


def _one_run(
    data: ImageData,
    recipe: SuspectRecipe,
    arch: str,
    seed: int,
    device: torch.device,
    folder: Path | None,
) -> Tensor:
    n = len(data)
    fold_of = np.random.default_rng(seed).permutation(n) % max(1, recipe.folds)
    logits = torch.empty(n, len(data.classes))
    for fold in range(max(1, recipe.folds)):
        judged = torch.from_numpy(np.flatnonzero(fold_of == fold))
        seen = torch.from_numpy(np.flatnonzero(fold_of != fold)) if recipe.folds else judged
        whole = len(judged) == n
        images = data.images if whole else data.images[judged]
        training = recipe.training_on(len(seen))
        model = build(ModelCard(arch, data.classes, data.size), seed=seed + fold)
        kept = folder / f"suspect-{seed}-{fold}.partial" if folder else None
        counted = training.epochs - training.epochs // 3 if recipe.trajectory else 1
        mean = _Mean(model, images, training.epochs - counted, device, kept)
        train(
            model,
            data.images if whole else data.images[seen],
            data.labels if whole else data.labels[seen],
            training,
            seed=seed + fold,
            device=device,
            checkpoint=kept,
            label=f"suspect (fold {fold + 1} of {recipe.folds})" if recipe.folds else "suspect",
            after_epoch=mean.add,
        )
        logits[judged] = mean.finish() / counted
    return logits


class _Mean:
    """Adds up a model's logits after the epochs that count; what it has survives a kill."""

    def __init__(
        self,
        model: Classifier,
        images: Tensor,
        left_out: int,
        device: torch.device,
        checkpoint: Path | None,
    ) -> None:
        self.model, self.images, self.device = model, images, device
        self.path = checkpoint.with_suffix(".sum.partial") if checkpoint else None
        self.total = torch.zeros(len(images), len(model.card.classes))
        self.last = left_out
        if self.path and self.path.is_file():
            stored = read_tensors(self.path)
            self.total, self.last = stored["total"], int(stored["last"])

    def add(self, epoch: int) -> None:
        """Add the logits of the model as it is after `epoch` (from 1), unless that was done."""
        if epoch <= self.last:
            return
        self.total += predict(self.model, self.images, device=self.device)
        self.last = epoch
        if self.path:
            write_tensors(self.path, {"total": self.total, "last": torch.tensor(epoch)})

    def finish(self) -> Tensor:
        """Return the sum; nothing is kept any more."""
        if self.path:
            self.path.unlink(missing_ok=True)
        return self.total
