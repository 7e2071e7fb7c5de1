"""The sensitivity that D-BR and D-ST go by."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cgd.defenses.scratch import rows_at_ends
from cgd.defenses.sensitivity import centre_similarity, sensitivity_scores, turned_and_shifted
from cgd.training import seeded


def test_centre_similarity_is_the_mean_cosine_of_different_centres() -> None:
    features, labels = torch.randn(12, 5, generator=seeded(0)), torch.tensor([0, 2, 5] * 4)
    centres = [features[labels == c].mean(0) for c in (0, 2, 5)]
    cosines = [
        F.cosine_similarity(a, b, dim=0)
        for i, a in enumerate(centres)
        for j, b in enumerate(centres)
        if i != j
    ]
    expected = sum(cosines) / 9  # the diagonal counts as zero
    torch.testing.assert_close(centre_similarity(features, labels), expected)


def test_a_step_down_the_loss_moves_centres_apart() -> None:
    features = torch.randn(9, 4, generator=seeded(1)).add(1).requires_grad_()
    labels = torch.arange(9) % 3
    before = centre_similarity(features, labels)
    before.backward()
    after = centre_similarity(features.detach() - 0.1 * features.grad, labels)
    assert after < before


def test_turning_moves_pixels_and_invents_none() -> None:
    images = torch.zeros(40, 3, 16, 16, dtype=torch.uint8)
    images[:, :, 7:9, 7:9] = 255
    moved = turned_and_shifted(images, seeded(0))
    assert moved.dtype == torch.uint8
    share = moved.float().sum() / images.float().sum()
    assert 0.8 < share < 1.2
    brightest = moved[:, 0].flatten(1).argmax(1)
    assert len(brightest.unique()) > 20
    assert torch.equal(moved, turned_and_shifted(images, seeded(0)))


def test_a_corner_patch_is_more_sensitive_than_a_tint(world: Any) -> None:
    scores, images = sensitivity_scores(world.data, world.terms)
    assert images == (2 + 10) * len(world.data)
    is_poison = np.zeros(len(world.data), dtype=bool)
    is_poison[world.manifest.poison] = True
    assert np.median(scores[is_poison]) > np.median(scores[~is_poison])


@pytest.mark.parametrize(("n", "low", "high"), [(10, 0.2, 0.1), (3, 0.01, 0.01)])
def test_both_ends_have_rows(n: int, low: float, high: float) -> None:
    scores = np.random.default_rng(0).normal(size=n)
    first, last = rows_at_ends(scores, low, high)
    assert scores[first].max() < scores[last].min()
    assert (len(first), len(last)) == (2, 1)
