"""CLP: channels that answer too strongly to small changes are silenced; needs no data."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cgd.data.dataset import ImageData
from cgd.defenses.base import Defended, Scheme, Terms, register
from cgd.defenses.pruning import batch_norms, silence
from cgd.models import Classifier


@register
@dataclass(frozen=True)
class ChannelLipschitz(Scheme):
    """Channel Lipschitzness-based pruning.

    Attributes:
        u: a channel is silenced when its bound is so many standard deviations above the mean of
            its layer.
    """

    name = "clp"
    source = "arXiv 2208.03111"

    u: float = 3.0

    def cleanse(self, model: Classifier, data: ImageData, terms: Terms) -> Defended:
        pruned = copy.deepcopy(model)
        batch_norms(pruned)
        silenced = 0
        for convolution, norm in conv_norm_pairs(pruned):
            bound = channel_lipschitz(convolution, norm)
            silenced += silence(norm, bound > bound.mean() + self.u * bound.std())
        return Defended(pruned.eval(), 0, {"silenced_channels": silenced})


def conv_norm_pairs(model: nn.Module) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Return each batch normalisation with the convolution before it, where their widths agree."""
    pairs = []
    convolution = None
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            convolution = layer
        elif (
            isinstance(layer, nn.BatchNorm2d)
            and convolution is not None
            and convolution.out_channels == layer.num_features
        ):
            pairs.append((convolution, layer))
    return pairs


@torch.no_grad()
def channel_lipschitz(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """Bound how strongly each channel answers: the spectral norm of its scaled kernel.

    The kernel of a channel is taken as a matrix [inputs, height * width], scaled by what the
    normalisation multiplies it with.

    Returns:
        float [channels].
    """
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    norms: Tensor = torch.linalg.matrix_norm(convolution.weight.flatten(2), ord=2)
    return norms * scale.abs()
