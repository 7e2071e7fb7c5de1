"""MixMatch: sharpening, mixing, the symmetric loss, and a training on few labels."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cgd.defenses.mixmatch import (
    MixMatch,
    lowest,
    mixed,
    sample_losses,
    sharpened,
    symmetric_entropy,
)
from cgd.defenses.scratch import fresh_model
from cgd.errors import InputError
from cgd.training import seeded


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=6), st.floats(0.1, 1))
def test_sharpening_keeps_the_order_and_makes_the_first_surer(
    weights: list[float], temperature: float
) -> None:
    p = torch.tensor([weights], dtype=torch.float64)
    p = p / p.sum()
    q = sharpened(p, temperature)
    assert q.sum().item() == pytest.approx(1)
    assert q.max() >= p.max() - 1e-9
    assert (q[0, p[0].argsort()].diff() >= -1e-12).all()
    torch.testing.assert_close(sharpened(p, 1.0), p)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_mixing_is_convex_and_leans_to_the_sample_itself(seed: int) -> None:
    n = 8
    inputs, targets = torch.eye(n).view(n, 1, n, 1) * 10, torch.eye(n)
    x, y = mixed(inputs, targets, np.random.default_rng(seed))
    assert x.shape == inputs.shape
    torch.testing.assert_close(y.sum(1), torch.ones(n))
    assert (y.diagonal() >= 0.5).all()
    torch.testing.assert_close(x.view(n, n), 10 * y)  # images and labels by the same shares


def test_the_symmetric_loss_is_its_definition() -> None:
    logits, labels = torch.randn(5, 4, generator=seeded(0)), torch.tensor([0, 1, 2, 3, 0])
    for value, z, y in zip(symmetric_entropy(logits, labels), logits, labels, strict=True):
        p = z.softmax(0)
        forward = -math.log(p[y])
        reverse = -sum(float(p[k]) * math.log(1.0 if k == y else 1e-4) for k in range(4))
        assert value.item() == pytest.approx(0.1 * forward + reverse, rel=1e-5)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20), st.integers(0, 25))
def test_the_lowest_are_marked(values: list[float], count: int) -> None:
    marked = lowest(np.array(values), count)
    assert marked.sum() == min(count, len(values))
    if 0 < count < len(values):
        assert max(np.array(values)[marked]) <= min(np.array(values)[~marked])


def test_a_few_labels_are_enough_for_the_rest(striped: Any) -> None:
    """Labels that are not believed can all be wrong."""
    data = striped.relabelled(believed=60)
    terms = striped.terms
    model = fresh_model(data, terms)
    training = MixMatch(model, data, terms, epochs=3, stage=1)
    believed = np.arange(len(data)) < 60
    for _ in range(3):
        training.epoch(believed)
    assert training.images_seen == 3 * 3 * training.batch * training.steps
    assert striped.measure(model).ca > 90
    for nonsense in (believed | True, believed & False):
        with pytest.raises(InputError, match="some labels"):
            training.epoch(nonsense)
    losses = sample_losses(model, data, terms)
    assert losses[believed].mean() < losses[~believed].mean()
