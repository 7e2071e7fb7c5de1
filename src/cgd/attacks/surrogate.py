"""The model that an attacker trains to make a trigger: it stands for the unknown victim."""

import torch

from cgd.data.dataset import ImageData
from cgd.models import Classifier, ModelCard, build
from cgd.training import Recipe, train

ARCH = "small_resnet"


def train_surrogate(
    data: ImageData, *, epochs: int, seed: int, device: torch.device, label: str
) -> Classifier:
    """Train a small network on clean data, without mirroring (signs and digits have a direction).

    Args:
        data: what the attacker has.
        epochs: passes over it.
        seed: fixes weights and order.
        device: where to train.
        label: name of the attack, for the progress display.

    Returns:
        The classifier, in evaluation mode, its weights frozen.
    """
    model = build(ModelCard(ARCH, data.classes, data.size), seed=seed)
    recipe = Recipe(epochs=epochs, flip=False)
    name = f"{label}: surrogate"
    train(model, data.images, data.labels, recipe, seed=seed, device=device, label=name)
    return model.requires_grad_(False)
