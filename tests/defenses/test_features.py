"""Penultimate features and principal components, against direct computation."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import nn

from cgd.defenses.features import (
    feature_matrix,
    last_linear,
    logits_and_features,
    principal_components,
)
from cgd.errors import InputError
from cgd.models import Classifier, ModelCard, build

CARD = ModelCard("tiny_resnet", ("a", "b", "c"), 16)
CPU = torch.device("cpu")


@pytest.mark.parametrize("arch", ["tiny_resnet", "preactresnet18", "stamped:tiny_resnet"])
def test_the_last_layer_turns_the_features_into_the_logits(arch: str) -> None:
    model = build(ModelCard(arch, CARD.classes, 16)).eval()
    images = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8)
    logits, features = logits_and_features(model, images)
    torch.testing.assert_close(last_linear(model)(features), logits)
    torch.testing.assert_close(model(images), logits)
    matrix = feature_matrix(model, images, CPU)
    assert matrix.dtype == np.float64
    np.testing.assert_allclose(matrix, features.detach().numpy(), rtol=0.05, atol=0.05)  # bfloat16


def test_hooks_do_not_stay() -> None:
    model = build(CARD)
    feature_matrix(model, torch.zeros(2, 3, 16, 16, dtype=torch.uint8), CPU)
    assert not last_linear(model)._forward_pre_hooks


def test_a_network_without_linear_layer_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 16), nn.Flatten())
    with pytest.raises(InputError, match="no linear layer"):
        last_linear(Classifier(net, CARD))


def test_principal_components_are_those_of_sklearn_up_to_sign() -> None:
    features = np.random.default_rng(0).normal(size=(40, 6)) @ np.diag([5, 4, 3, 2, 1, 0.5])
    expected = PCA(3).fit_transform(features)
    np.testing.assert_allclose(abs(principal_components(features, 3)), abs(expected), atol=1e-9)
    assert principal_components(features, 10).shape == (40, 6)
