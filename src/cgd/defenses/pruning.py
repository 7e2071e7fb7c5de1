"""Pruning of channels by their batch normalisation."""

import torch
from torch import Tensor, nn

from cgd.errors import InputError
from cgd.models import Classifier


def batch_norms(model: Classifier) -> list[nn.BatchNorm2d]:
    """Return the batch normalisations, in the order of the modules.

    Raises:
        InputError: there are none.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    if not layers or any(layer.weight is None for layer in layers):
        raise InputError(
            f"model {model.card.arch!r}: pruning needs batch normalisation with weights; "
            "use another --arch or defence"
        )
    return layers


@torch.no_grad()
def silence(layer: nn.BatchNorm2d, channels: Tensor) -> int:
    """Make channels (bool [channels]) zero for every input; returns how many that are."""
    layer.weight[channels] = 0.0
    layer.bias[channels] = 0.0
    return int(channels.sum())
