"""Masks over the channels of batch normalisations, and pruning by them."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cgd.data.dataset import ImageData
from cgd.defenses.pruning import batch_norms
from cgd.defenses.tuning import held_out_accuracy
from cgd.models import Classifier

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(20))
Masks = dict[str, Tensor]
"""Name of a batch normalisation -> float [channels], in [0, 1]."""


def norms_by_name(model: Classifier) -> dict[str, nn.BatchNorm2d]:
    """Return the batch normalisations with their names.

    Raises:
        InputError: there are none.
    """
    batch_norms(model)
    named = model.named_modules()
    return {name: layer for name, layer in named if isinstance(layer, nn.BatchNorm2d)}


def open_masks(model: Classifier) -> Masks:
    """Return masks that let everything through, to be learned."""
    norms = norms_by_name(model)
    return {name: torch.ones_like(norm.weight).requires_grad_() for name, norm in norms.items()}


def mask_optimizer(masks: Masks, lr: float) -> torch.optim.SGD:
    """Return SGD over masks, which stay in [0, 1]."""
    optimizer = torch.optim.SGD(masks.values(), lr=lr, momentum=0.9)

    def clip(*_: Any) -> None:
        with torch.no_grad():
            for mask in masks.values():
                mask.clamp_(0.0, 1.0)

    optimizer.register_step_post_hook(clip)
    return optimizer


def call_scaled(
    model: Classifier,
    images: Tensor,
    weights: Mapping[str, Tensor],
    biases: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Call a model with the weights, and the biases, of its batch normalisations scaled.

    Args:
        model: the classifier; its parameters stay as they are.
        images: [n, 3, size, size].
        weights: name of a batch normalisation -> factors [channels].
        biases: likewise.

    Returns:
        Logits [n, classes].
    """
    norms = norms_by_name(model)
    scaled = {f"{name}.weight": norms[name].weight * factor for name, factor in weights.items()}
    for name, factor in (biases or {}).items():
        scaled[f"{name}.bias"] = norms[name].bias * factor
    logits: Tensor = functional_call(model, scaled, (images,))
    return logits


@torch.no_grad()
def prune(model: Classifier, masks: Masks, threshold: float) -> tuple[Classifier, int]:
    """Return a copy whose channels with a mask of at most `threshold` no longer see their input,
    and the number of those."""
    pruned, count = copy.deepcopy(model), 0
    for name, norm in norms_by_name(pruned).items():
        low = masks[name].to(norm.weight.device) <= threshold
        norm.weight[low] = 0.0
        count += int(low.sum())
    return pruned.eval(), count


def prune_as_far_as(
    model: Classifier, masks: Masks, held_out: ImageData, tolerance: float, device: torch.device
) -> tuple[Classifier, dict[str, Any]]:
    """Prune at the last threshold before held-out accuracy falls by more than `tolerance` points
    for the first time.

    Returns:
        The pruned copy, and what to tell of it.
    """
    limit = held_out_accuracy(model, held_out, device) - tolerance
    best = model
    told: dict[str, Any] = {"threshold": None, "pruned_channels": 0}
    for threshold in THRESHOLDS:
        pruned, count = prune(model, masks, threshold)
        if held_out_accuracy(pruned, held_out, device) < limit:
            break
        best, told = pruned, {"threshold": threshold, "pruned_channels": count}
    channels = sum(len(mask) for mask in masks.values())
    return copy.deepcopy(best).eval(), {**told, "channels": channels}
