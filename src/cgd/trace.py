"""What poison has in common: the trace that a trigger leaves in the pixels.

Guide and suspect each judge an image on its own, and are wrong about some. A trigger is in all of
the poison, and in little else: a linear function of the pixels, fitted to what guide and suspect
make of a class, averages their mistakes out, and finds the trigger where it is at the same place
in every image, as a patch or a blend. A trigger that differs from image to image leaves no linear
trace.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cgd.training import pick_device

SIZE = 32
"""Larger images are shrunk to so many pixels a side."""
RIDGE = 3.0
"""Penalty on the squared weights of standardised pixels, relative to the number of images: chosen
on CIFAR-10 `small` with BadNets and SIG, where 1 to 10 do as well."""
FOLDS = 3
OTHERS = 4
"""Images of other classes for each of the class: what images look like without the trigger."""
MOST = 8000
"""Images of the class, at most, that the function is fitted to."""
BLOCK = 2048


def trace(
    images: Tensor,
    labels: NDArray[np.int64],
    rows: NDArray[np.int64],
    probability: NDArray[np.float64],
    *,
    seed: int = 0,
    device: torch.device | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How much each image of a class has of what its probable poison has in common.

    Ridge regression of the probability of being poison (0 in other classes) on the pixels. No
    image is judged by a function that was fitted to it: the images are divided in three, each part
    is judged by what the others tell.

    Args:
        images: uint8 [n, 3, size, size].
        labels: int64 [n], the given labels.
        rows: int64 [m], all samples of one class.
        probability: float64 [m], of being poison.
        seed: fixes the parts, and the images of other classes.
        device: where to compute; default: a GPU if there is one.

    Returns:
        float64 [m], high = the trace is there; and float64, the same of images of other classes.
    """
    device = device or pick_device()
    generator = np.random.default_rng(seed)
    others = np.flatnonzero(labels != labels[rows[0]])
    own = generator.permutation(len(rows))[:MOST]
    beside = generator.choice(others, min(len(others), OTHERS * len(own)), replace=False)
    fitted = np.concatenate([rows[own], beside])
    wanted = torch.zeros(len(fitted), device=device)
    wanted[: len(own)] = torch.from_numpy(probability[own]).to(device)
    part = generator.integers(0, FOLDS, len(labels))
    scale = _moments(images, fitted, device)
    equations = [
        _normal_equations(images, fitted[mine], wanted[mine] - wanted.mean(), scale)
        for mine in (np.flatnonzero(part[fitted] == fold) for fold in range(FOLDS))
    ]
    judged = np.concatenate([rows, beside])
    found = np.empty(len(judged))
    for fold in range(FOLDS):
        rest = equations[:fold] + equations[fold + 1 :]
        gram, moment = (torch.stack(parts).sum(0) for parts in zip(*rest, strict=True))
        gram.diagonal().add_(RIDGE * max(1, int((part[fitted] != fold).sum())))
        weights = torch.linalg.solve(gram, moment)
        mine = np.flatnonzero(part[judged] == fold)
        scores = [pixels @ weights for pixels in _pixels(images, judged[mine], device, scale)]
        found[mine] = torch.cat([*scores, wanted[:0]]).double().cpu().numpy()
    return found[: len(rows)], found[len(rows) :]


def _pixels(
    images: Tensor,
    rows: NDArray[np.int64],
    device: torch.device,
    scale: tuple[Tensor, Tensor] | None = None,
) -> Iterator[Tensor]:
    """Yield blocks of images as float32 [block, values], standardised where a scale is given."""
    for block in torch.split(torch.from_numpy(rows), BLOCK):
        pixels = images[block.to(images.device)].to(device).float()
        if max(pixels.shape[2:]) > SIZE:
            pixels = F.adaptive_avg_pool2d(pixels, SIZE)
        flat = pixels.flatten(1)
        yield flat if scale is None else (flat - scale[0]) / scale[1]


def _moments(
    images: Tensor, rows: NDArray[np.int64], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every value, the latter raised by a level of brightness: a
    value that never changes tells nothing."""
    total = squares = torch.zeros((), dtype=torch.float64)
    for pixels in _pixels(images, rows, device):
        total = total + pixels.sum(0).double().cpu()
        squares = squares + pixels.square().sum(0).double().cpu()
    mean = total / len(rows)
    deviation = (squares / len(rows) - mean**2).clamp_min(0).sqrt() + 1
    return mean.float().to(device), deviation.float().to(device)


def _normal_equations(
    images: Tensor, rows: NDArray[np.int64], wanted: Tensor, scale: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """X'X and X'y."""
    values = len(scale[0])
    gram = torch.zeros(values, values, device=wanted.device)
    moment = torch.zeros(values, device=wanted.device)
    for pixels, target in zip(
        _pixels(images, rows, wanted.device, scale), torch.split(wanted, BLOCK), strict=True
    ):
        gram.addmm_(pixels.T, pixels)
        moment.addmv_(pixels.T, target)
    return gram, moment
