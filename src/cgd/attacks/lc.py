"""LC, label-consistent (Turner et al. 2019, arXiv 1912.02771): corners on images hard to learn."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from cgd.attacks.base import Attack, register
from cgd.attacks.surrogate import train_surrogate
from cgd.data.dataset import ImageData
from cgd.errors import InputError
from cgd.models import Classifier
from cgd.training import autocast

CHUNK = 256
"""Images that are perturbed at once."""

PATTERN = ((1, -1, 1), (-1, 1, -1), (1, -1, -1))
"""The pattern of the upper left corner, 1 brighter and -1 darker; the others mirror it."""


@register
@dataclass(frozen=True)
class LabelConsistent(Attack):
    """Clean-label; training images of the target class are made hard to tell, and get the corners.

    The paper's perturbations are of an adversarially trained network, in 100 steps; these are of
    a network trained as usual, which carry over to other networks less.

    What such an image shows no longer leads to its class, so the victim learns the corners. In
    testing the corners are put on alone.

    Attributes:
        eps: largest change of a pixel by the perturbation, of 255 (paper: 8 and 16).
        steps: of projected gradient ascent on the surrogate's loss.
        amplitude: what the corners add to or take from a pixel, of 255 (paper and BackdoorBench:
            255, black and white; the paper goes down to 16).
        epochs: of the surrogate's training.
    """

    name = "lc"
    family = "clean-label"
    source = "arXiv 1912.02771"
    needs = "a classifier trained on the same clean data"

    eps: float = 16.0
    steps: int = 20
    amplitude: float = 255.0
    epochs: int = 12
    # Only planting needs them; they would make a stored trigger large.
    _victims: dict[int, Classifier] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        for name, value in (("eps", self.eps), ("amplitude", self.amplitude)):
            if not 0 < value <= 255:
                raise InputError(f"lc: {name} must be above 0 and at most 255, not {value}")
        for name, number in (("steps", self.steps), ("epochs", self.epochs)):
            if number < 1:
                raise InputError(f"lc: {name} must be at least 1, not {number}")

    def prepare(self, data: ImageData, target: int, *, seed: int, device: torch.device) -> None:
        model = train_surrogate(data, epochs=self.epochs, seed=seed, device=device, label="lc")
        self._victims.clear()
        self._victims[target] = model

    def plant(self, images: Tensor, generator: Generator) -> Tensor:
        if not self._victims:
            raise InputError("lc: its surrogate is not trained yet; poison data first")
        ((target, model),) = self._victims.items()
        parts = [
            self._perturb(model, target, part, generator) for part in torch.split(images, CHUNK)
        ]
        return self.trigger(torch.cat(parts))

    def _perturb(
        self, model: Classifier, target: int, images: Tensor, generator: Generator
    ) -> Tensor:
        """Climb the loss of the true class within eps, from a random start; uint8 [n, 3, s, s]."""
        clean = images.float()
        low, high = (clean - self.eps).clamp(min=0), (clean + self.eps).clamp(max=255)
        start = torch.rand(images.shape, generator=generator).to(clean)
        moved = low + start * (high - low)
        labels = torch.full((len(images),), target, device=images.device)
        for _ in range(self.steps):
            moved.requires_grad_(True)
            with autocast(images.device):
                loss = F.cross_entropy(model(moved).float(), labels, reduction="sum")
            (slope,) = torch.autograd.grad(loss, moved)
            moved = moved.detach() + 2.5 * self.eps / self.steps * slope.sign()
            moved = torch.minimum(torch.maximum(moved, low), high)
        # Towards the clean image, so that rounding does not leave eps.
        return (clean + (moved - clean).trunc()).to(images.dtype)

    def trigger(self, images: Tensor) -> Tensor:
        mark = self.amplitude * corners(images.shape[-1]).to(images.device)
        return (images.float() + mark).round().clamp(0, 255).to(images.dtype)


def corners(size: int) -> Tensor:
    """Return float32 [size, size]: the pattern (3 px at 32, scaled) in each corner, else zeros."""
    side = max(3, round(3 * size / 32))
    if 2 * side > size:
        raise InputError(f"lc: four corners of {side} pixels do not fit {size}-pixel images")
    at = torch.arange(side) * 3 // side
    pattern = torch.tensor(PATTERN, dtype=torch.float32)[at][:, at]
    mark = torch.zeros(size, size)
    mark[:side, :side] = pattern
    mark = mark + mark.flip(0)
    return mark + mark.flip(1)
