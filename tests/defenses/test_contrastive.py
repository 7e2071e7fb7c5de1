"""Contrastive learning: its loss against slow loops, its views, and that it learns patterns."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from cgd.defenses.contrastive import GREY, _hue, contrastive_loss, pretrain, strong_view
from cgd.defenses.features import feature_matrix, last_linear
from cgd.defenses.scratch import all_rows, fresh_model
from cgd.training import seeded


def slow_loss(first: Tensor, second: Tensor, groups: list[int], temperature: float) -> float:
    """As the papers write it, one pair at a time."""
    views = [view / view.norm() for view in [*first, *second]]
    group = groups + groups
    total = 0.0
    for i, anchor in enumerate(views):
        others = [j for j in range(len(views)) if j != i]
        sums = sum(math.exp(float(anchor @ views[j]) / temperature) for j in others)
        friends = [j for j in others if group[j] == group[i]]
        total -= sum(
            math.log(math.exp(float(anchor @ views[j]) / temperature) / sums) for j in friends
        ) / len(friends)
    return total / len(views)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.floats(0.1, 2.0))
@settings(max_examples=25, deadline=None)
def test_the_loss_is_that_of_the_papers(groups: list[int], temperature: float) -> None:
    first, second = torch.randn(2, len(groups), 5, generator=seeded(len(groups)))
    loss = contrastive_loss(first, second, torch.tensor(groups), temperature)
    assert loss.item() == pytest.approx(slow_loss(first, second, groups, temperature), rel=1e-4)


def test_the_loss_falls_as_the_views_of_an_image_agree() -> None:
    z = torch.eye(4)
    alone = torch.arange(4)
    agree = contrastive_loss(z, z, alone, 0.5)
    assert agree < contrastive_loss(z, z.roll(1, 0), alone, 0.5)


@pytest.fixture
def pictures() -> Tensor:
    return torch.randint(256, (50, 3, 16, 16), dtype=torch.uint8, generator=seeded(1))


def test_views_are_images_fixed_by_the_generator(pictures: Tensor) -> None:
    view = strong_view(pictures, seeded(1), flip=True)
    assert view.shape == pictures.shape
    assert view.min() >= 0
    assert view.max() <= 255
    torch.testing.assert_close(view, strong_view(pictures, seeded(1), flip=True))
    assert not torch.allclose(view, strong_view(pictures, seeded(2), flip=True))


def test_recolouring_leaves_grey_grey() -> None:
    view = strong_view(torch.full((50, 3, 8, 8), 100, dtype=torch.uint8), seeded(0), flip=True)
    torch.testing.assert_close(view[:, 0], view[:, 1], atol=1e-3, rtol=0)
    torch.testing.assert_close(view[:, 0], view[:, 2], atol=1e-3, rtol=0)
    assert view[:, 0, 0, 0].min() >= 59.9  # no darker or brighter than 40 %
    assert view[:, 0, 0, 0].max() <= 140.1
    assert view[:, 0, 0, 0].std() > 10


def test_a_hue_turn_keeps_length_and_grey() -> None:
    turn = _hue(torch.tensor([0.3, 0.0]))
    torch.testing.assert_close(turn[0] @ turn[0].T, torch.eye(3))
    torch.testing.assert_close(turn[0].sum(1), torch.ones(3))
    torch.testing.assert_close(turn[1], torch.eye(3))


@pytest.mark.parametrize("flip", [True, False])
def test_views_are_mirrored_where_that_is_right(flip: bool) -> None:
    """Dark to the left, bright to the right; a crop of it stays so, a mirror image does not."""
    ramp = torch.linspace(50, 200, 16).expand(60, 3, 16, 16)
    view = strong_view(ramp, seeded(3), flip=flip)
    level = torch.einsum("c,nchw->nhw", torch.tensor(GREY), view)
    mirrored = (level[:, :, 0] > level[:, :, -1]).any(1)
    assert 10 < mirrored.sum() < 50 if flip else not mirrored.any()


def test_pretraining_finds_patterns_without_labels(striped: Any) -> None:
    data, test = striped.data, striped.test
    model = fresh_model(data, striped.terms)
    logits_layer = last_linear(model).weight.clone()
    images = pretrain(model, data, all_rows(data), striped.terms, epochs=1, stage=1)
    assert images == 2 * len(data)
    assert torch.equal(last_linear(model).weight, logits_layer)
    features = feature_matrix(model, data.images, striped.terms.device)
    judge = LogisticRegression(max_iter=1000).fit(features, data.labels)
    seen = feature_matrix(model, test.images, striped.terms.device)
    assert judge.score(seen, test.labels) > 0.9
    assert np.isfinite(features).all()
