"""FCT: poison is sensitive to transformations, since they move or turn its trigger.

The feature consistency towards transformations of arXiv 2208.02912 (D-BR and D-ST).
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from cgd.data.dataset import ImageData
from cgd.defenses.base import Terms
from cgd.defenses.contrastive import moved_by
from cgd.defenses.features import Floats, feature_matrix, logits_and_features
from cgd.defenses.scratch import all_rows, fit, fresh_model
from cgd.models import Classifier
from cgd.training import Recipe, autocast, seeded, train

FIRST_EPOCHS, PULLING_EPOCHS = 2, 10
"""Not scaled: after fewer, poison is no more sensitive than the rest."""
TURN, SHIFT = math.pi, 0.2
BLOCK = 1000


def sensitivity_scores(data: ImageData, terms: Terms) -> tuple[Floats, int]:
    """Train for a few epochs, without augmentation, and compare features.

    Returns:
        float64 [n], the mean squared change of the features under a random turn and shift; and the
        number of images that went through the model with gradients.
    """
    model = fresh_model(data, terms)
    recipe = Recipe(epochs=FIRST_EPOCHS, lr=0.01, schedule="constant", crop=False, flip=False)
    train(model, data.images, data.labels, recipe, seed=terms.seed, device=terms.device)
    images = FIRST_EPOCHS * len(data) + _pull(model, data, terms)
    generator = seeded(terms.seed, 20)
    transformed = torch.cat(
        [turned_and_shifted(part, generator) for part in torch.split(data.images, BLOCK)]
    )
    before = feature_matrix(model, data.images, terms.device)
    after = feature_matrix(model, transformed, terms.device)
    scores: Floats = ((before - after) ** 2).mean(1)
    return scores, images


def _pull(model: Classifier, data: ImageData, terms: Terms) -> int:
    """Fine-tune with the intra-class loss; returns the number of images."""
    labels = data.labels.to(terms.device)

    def loss(batch: Tensor, rows: Tensor, generator: Generator) -> Tensor:
        with autocast(terms.device):
            _, features = logits_and_features(model, batch)
        return centre_similarity(features, labels[rows.to(terms.device)])

    recipe = Recipe(epochs=PULLING_EPOCHS, lr=0.01, schedule="constant")
    rows = all_rows(data)
    return fit(model, data.images, rows, loss, recipe, terms, stage=21, label="intra-class loss")


def centre_similarity(features: Tensor, labels: Tensor) -> Tensor:
    """Mean cosine between the centres of the classes in a batch.

    It is what the authors' code calls the intra-class loss: as the centres part, the poison of the
    target class parts from its clean samples.

    Args:
        features: float [n, width].
        labels: int64 [n].
    """
    _, index = torch.unique(labels, return_inverse=True)
    centres = F.normalize(F.one_hot(index).T.float() @ features, dim=1)
    cosines = centres @ centres.T
    return (cosines.sum() - cosines.diagonal().sum()) / cosines.numel()


def turned_and_shifted(images: Tensor, generator: Generator) -> Tensor:
    """Turn by up to 180 degrees and shift by up to a fifth, black outside: uint8 [n, 3, s, s]."""
    n = len(images)
    angle, down, across = 2 * torch.rand(3, n, generator=generator) - 1
    sine, cosine = (TURN * angle).sin(), (TURN * angle).cos()
    theta = torch.stack(
        [
            torch.stack([cosine, -sine, 2 * SHIFT * across], 1),
            torch.stack([sine, cosine, 2 * SHIFT * down], 1),
        ],
        1,
    )
    return moved_by(images.float(), theta).round().to(torch.uint8)
