"""ANP: masks are learned against moved weights, and low ones prune."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cgd.defenses import make_defense
from cgd.defenses.masks import (
    Masks,
    call_scaled,
    mask_optimizer,
    norms_by_name,
    open_masks,
    prune,
    prune_as_far_as,
)
from cgd.training import seeded

MADE = make_defense("anp", steps=40, batch=50)


def test_masks_are_learned_and_stay_in_their_range(world: Any) -> None:
    masks, images = MADE.learn_masks(world.victim, world.clean, world.terms)  # type: ignore[attr-defined]
    assert images == 3 * 40 * 50
    values = torch.cat(list(masks.values()))
    assert 0 <= values.min() < 1
    assert values.max() <= 1


def test_the_worst_place_has_a_higher_loss(world: Any) -> None:
    usual = partial(call_scaled, world.victim)
    images, labels = world.test.images, world.test.labels

    def loss(weights: Masks, biases: Masks | None = None) -> torch.Tensor:
        return F.cross_entropy(usual(images, weights, biases), labels)

    masks = open_masks(world.victim)
    worst = MADE._worst(loss, masks, seeded(0))  # type: ignore[attr-defined]
    assert loss(*worst) > 2 * loss(masks)
    for factors in worst:
        assert all(((value - 1).abs() <= 0.2 + 1e-6).all() for value in factors.values())


def test_open_masks_change_nothing(world: Any) -> None:
    images = world.test.images[:8]
    masked = call_scaled(world.victim, images, open_masks(world.victim))
    assert torch.allclose(masked, world.victim(images))


def test_a_step_beyond_the_range_is_clipped(world: Any) -> None:
    masks = open_masks(world.victim)
    optimizer = mask_optimizer(masks, lr=100.0)
    sum(mask.sum() for mask in masks.values()).backward()
    optimizer.step()
    assert all((mask == 0).all() for mask in masks.values())


def test_a_pruned_channel_no_longer_sees_its_input(world: Any) -> None:
    masks = open_masks(world.victim)
    name = next(iter(masks))
    with torch.no_grad():
        masks[name][[0, 2]] = 0.0
    pruned, count = prune(world.victim, masks, 0.0)
    layer = norms_by_name(pruned)[name]
    x = torch.randn(2, layer.num_features, 3, 3)
    assert count == 2
    assert torch.equal(layer(x)[0, [0, 2]], layer(-x)[0, [0, 2]])
    assert not torch.equal(layer(x)[0, 1], layer(-x)[0, 1])


@pytest.mark.parametrize("tolerance", [0.0, 5.0, 100.0])
def test_held_out_accuracy_limits_the_pruning(world: Any, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = {
        name: torch.rand(len(mask), generator=generator)
        for name, mask in open_masks(world.victim).items()
    }
    cpu = world.terms.device
    pruned, told = prune_as_far_as(world.victim, masks, world.test, tolerance, cpu)
    before, after = world.before.ca, world.measure(pruned).ca
    assert after >= before - tolerance
    assert told["threshold"] == 0.95 if tolerance == 100 else told["threshold"] != 0.95


def test_the_attack_does_not_get_stronger(world: Any) -> None:
    pruned = MADE.repair(world.victim, world.clean, world.terms)  # type: ignore[attr-defined]
    after = world.measure(pruned.model)
    assert after.ca > 85
    assert after.asr <= world.before.asr
