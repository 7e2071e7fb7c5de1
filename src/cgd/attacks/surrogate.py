"""The model that an attacker trains to make a trigger: it stands for the unknown victim."""

import torch

from cgd.data.dataset import ImageData
from cgd.models import Classifier, ModelCard, build
from cgd.training import Recipe, seeded, train

ARCH = "small_resnet"


def own_seed(seed: int) -> int:
    """Seed of an attacker's network: with the scene's seed it would begin as the victim does, and
    see the images in the same order.

    >>> own_seed(0) != 0
    True
    """
    return seeded(seed, 4).initial_seed()


def train_surrogate(
    data: ImageData, *, epochs: int, seed: int, device: torch.device, label: str
) -> Classifier:
    """Train a small network on clean data, without mirroring (signs and digits have a direction).

    Args:
        data: what the attacker has.
        epochs: passes over it.
        seed: of the scene; weights and order follow it, but are not those of its victim.
        device: where to train.
        label: name of the attack, for the progress display.

    Returns:
        The classifier, in evaluation mode, its weights frozen.
    """
    own = own_seed(seed)
    model = build(ModelCard(ARCH, data.classes, data.size), seed=own)
    recipe = Recipe(epochs=epochs, flip=False)
    name = f"{label}: surrogate"
    train(model, data.images, data.labels, recipe, seed=own, device=device, label=name)
    return model.requires_grad_(False)
