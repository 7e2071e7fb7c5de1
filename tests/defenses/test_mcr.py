"""MCR: the curve has its ends, and the middle of it is learned."""

from typing import Any

import pytest
import torch

from cgd.defenses import make_defense
from cgd.defenses.mcr import on_curve

BRIEF = {"steps": 30, "curve_steps": 10, "batch": 32}


@pytest.mark.parametrize(("t", "at"), [(0.0, 0), (1.0, 2)])
def test_a_curve_begins_and_ends_at_its_ends(t: float, at: int) -> None:
    places = [{"w": torch.randn(3)} for _ in range(3)]
    assert torch.equal(on_curve(*places, t)["w"], places[at]["w"])


def test_the_start_of_the_curve_is_the_victim(world: Any) -> None:
    made = make_defense("mcr", **BRIEF, t=0.0).repair(world.victim, world.clean, world.terms)
    weights = dict(world.victim.named_parameters())
    for name, value in made.model.named_parameters():
        assert torch.allclose(value, weights[name]), name
    assert made.images == 40 * 32


def test_the_attack_does_not_get_stronger(world: Any) -> None:
    made = make_defense("mcr", **BRIEF, t=0.5).repair(world.victim, world.clean, world.terms)
    after = world.measure(made.model)
    assert after.ca > 90
    assert after.asr <= world.before.asr
