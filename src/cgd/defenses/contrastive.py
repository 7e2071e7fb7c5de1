"""Contrastive learning: strong views of images, the loss that pulls those of a group together.

With every image a group of its own this is SimCLR (arXiv 2002.05709), with a class as a group it
is supervised contrastive learning (arXiv 2004.11362).
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from cgd.data.dataset import ImageData
from cgd.defenses.base import Terms
from cgd.defenses.features import last_linear, logits_and_features
from cgd.defenses.scratch import all_rows, fit
from cgd.models import Classifier
from cgd.training import Recipe, autocast, seeded_layers

GREY = (0.299, 0.587, 0.114)
SMALLEST_CROP = 0.2
JITTER, HUE, JITTERED, GREYED = 0.4, 0.1, 0.8, 0.2


def pretrain(
    model: Classifier,
    data: ImageData,
    groups: Tensor,
    terms: Terms,
    *,
    epochs: int,
    stage: int,
    temperature: float = 0.5,
    width: int = 128,
) -> int:
    """Train all but the last layer of `model` contrastively, through a projection head.

    Args:
        model: trained in place.
        data: the images; labels are not looked at.
        groups: int64 [n]; images of a group are pulled together.
        terms: seed, device and the like.
        epochs: passes, two views of each image a pass.
        stage: number of this stage, for the randomness.
        temperature: of the loss.
        width: of the projection.

    Returns:
        The number of images that went through the model.
    """
    features = last_linear(model).in_features
    with seeded_layers(terms.seed, terms.device):
        head = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, width))
    head.to(terms.device)
    groups = groups.to(terms.device)

    def loss(batch: Tensor, rows: Tensor, generator: Generator) -> Tensor:
        views = torch.cat([strong_view(batch, generator, flip=terms.flip) for _ in range(2)])
        with autocast(terms.device):
            projected = head(logits_and_features(model, views)[1])
        first, second = projected.float().chunk(2)
        return contrastive_loss(first, second, groups[rows.to(terms.device)], temperature)

    batch = Recipe(batch=512, min_steps=30).batch_for(len(data))
    recipe = Recipe(epochs=epochs, batch=batch, lr=0.4 * batch / 512, weight_decay=1e-4)
    both = nn.ModuleList([model, head])
    rows = all_rows(data)
    return 2 * fit(both, data.images, rows, loss, recipe, terms, stage=stage, label="contrastive")


def contrastive_loss(first: Tensor, second: Tensor, groups: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding a view's group among all other views.

    Args:
        first: float [n, width], projections of one view of each image; brought to length 1 here.
        second: float [n, width], of another view.
        groups: int64 [n].
        temperature: the cosines are divided by it.

    Returns:
        The mean over the 2 n views of the mean over the other views of the same group.
    """
    z = F.normalize(torch.cat([first, second]), dim=1)
    group = groups.repeat(2)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    similarity = (z @ z.T / temperature).masked_fill(itself, -1e9)
    together = (group[:, None] == group) & ~itself
    found = similarity.log_softmax(1) * together
    return -(found.sum(1) / together.sum(1)).mean()


def strong_view(images: Tensor, generator: Generator, *, flip: bool) -> Tensor:
    """Crop, stretch, mirror and recolour each image of a batch at random, as SimCLR does.

    Args:
        images: [n, 3, size, size], values in 0..255.
        generator: source of the randomness (CPU).
        flip: mirror left to right with probability one half.

    Returns:
        float [n, 3, size, size], values in 0..255.
    """
    n = len(images)
    height, width = _crop_sides(n, generator)
    top, left = (2 * torch.rand(2, n, generator=generator) - 1) * (1 - torch.stack([height, width]))
    side = torch.where(torch.rand(n, generator=generator) < (0.5 if flip else 0.0), -1.0, 1.0)
    zero = torch.zeros(n)
    across, down = torch.stack([side * width, zero, left]), torch.stack([zero, height, top])
    theta = torch.stack([across, down]).permute(2, 0, 1).to(images.device)
    moved = moved_by(images.float(), theta)
    matrix, contrast = _colours(n, generator)
    matrix, contrast = matrix.to(images.device), contrast.to(images.device)
    grey = torch.tensor(GREY, device=images.device)
    level = torch.einsum("c,nchw->n", grey, moved) / moved[0, 0].numel()
    recoloured = torch.einsum("nij,njhw->nihw", matrix, moved)
    lifted = contrast[:, 1] * (1 - contrast[:, 0]) * level
    return (recoloured + lifted[:, None, None, None]).clamp(0, 255)


def moved_by(images: Tensor, theta: Tensor) -> Tensor:
    """Resample float images [n, 3, size, size] along affine maps [n, 2, 3], black outside."""
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def _crop_sides(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Draw height and width of crops, as shares of the image, each [n]."""
    area = SMALLEST_CROP + (1 - SMALLEST_CROP) * torch.rand(n, generator=generator)
    ratio = ((2 * torch.rand(n, generator=generator) - 1) * math.log(4 / 3)).exp()
    return (area / ratio).sqrt().clamp(max=1), (area * ratio).sqrt().clamp(max=1)


def _colours(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Draw colour changes that are linear in RGB.

    All of them keep grey grey, so that they can be put in one matrix.

    Returns:
        Matrix [n, 3, 3], and [n, 2]: contrast, and brightness with which the mean grey counts.
    """
    jittered = torch.rand(n, generator=generator) < JITTERED
    change = (2 * torch.rand(4, n, generator=generator) - 1) * jittered
    brightness, contrast, saturation = 1 + JITTER * change[:3]
    eye, grey = torch.eye(3), torch.tensor(GREY).expand(3, 3)
    saturation = saturation[:, None, None]
    matrix = (saturation * eye + (1 - saturation) * grey) @ _hue(2 * math.pi * HUE * change[3])
    greyed = torch.rand(n, generator=generator) < GREYED
    matrix = torch.where(greyed[:, None, None], grey @ matrix, matrix)
    return matrix * (brightness * contrast)[:, None, None], torch.stack([contrast, brightness], 1)


def _hue(angle: Tensor) -> Tensor:
    """Rotation of colours about the grey axis: [n] radians -> [n, 3, 3]."""
    axis = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    sine, cosine = angle.sin()[:, None, None], angle.cos()[:, None, None]
    return cosine * torch.eye(3) + sine * axis + (1 - cosine) * torch.full((3, 3), 1 / 3)
