"""The suspicious model: a short training on the untrusted data, and what it then thinks of it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cgd.data.dataset import ImageData
from cgd.files import read_tensors, write_tensors
from cgd.models import ModelCard, build
from cgd.training import Recipe, pick_device, predict, train


@dataclass(frozen=True)
class SuspectRecipe:
    """How the suspicious model is trained.

    Attributes:
        training: epochs, optimiser, augmentation of one run.
        runs: independent runs whose logits are averaged.
        folds: 0 to train on all samples and predict the same ones; k >= 2 to train on k - 1 folds
            and predict the one left out.
    """

    training: Recipe
    runs: int = 1
    folds: int = 0

    @property
    def passes(self) -> float:
        """Passes over the data, with gradients."""
        return self.training.epochs * self.runs * max(1, self.folds - 1)


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
        epochs=3,
        batch=128,
        lr=1e-3,
        optimizer="adam",
        schedule="constant",
        crop=False,
        flip=False,
    )
)
"""One run of three epochs."""

OUT_OF_FOLD = SuspectRecipe(SHORT.training, folds=3)
"""Each sample is judged by a model that has not seen it."""


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
        model = train(
            build(ModelCard(arch, data.classes, data.size), seed=seed + fold),
            data.images if whole else data.images[seen],
            data.labels if whole else data.labels[seen],
            recipe.training,
            seed=seed + fold,
            device=device,
            checkpoint=folder / f"suspect-{seed}-{fold}.partial" if folder else None,
            label=f"suspect (fold {fold + 1} of {recipe.folds})" if recipe.folds else "suspect",
        )
        logits[judged] = predict(
            model, data.images if whole else data.images[judged], device=device
        )
    return logits
