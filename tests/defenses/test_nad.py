"""NAD: attention maps of any network, and a student that follows the teacher."""

from typing import Any

import pytest
import torch

from cgd.defenses import make_defense
from cgd.defenses.nad import attention, map_places
from cgd.models import ModelCard, build


@pytest.mark.parametrize("arch", ["tiny_resnet", "preactresnet18", "torchvision:mobilenet_v2"])
def test_the_last_maps_of_three_resolutions_are_found(arch: str) -> None:
    model = build(ModelCard(arch, ("a", "b"), 32)).eval()
    places = map_places(model)
    seen = []
    for name in places:
        model.get_submodule(name).register_forward_hook(lambda _, __, out: seen.append(out.shape))
    model(torch.zeros(1, 3, 32, 32))
    sides = [shape[2] for shape in seen]
    assert len(places) == 3
    assert sides == sorted(sides, reverse=True)
    assert min(sides) > 1


def test_attention_is_where_channels_are_active() -> None:
    maps = torch.zeros(1, 4, 2, 2)
    maps[0, :, 1, 0] = -3.0
    assert attention(maps, 2.0).tolist() == [[0.0, 0.0, 1.0, 0.0]]


def test_the_attack_weakens(world: Any) -> None:
    made = make_defense("nad", teacher_steps=20, steps=40, batch=50)
    repaired = made.repair(world.victim, world.clean, world.terms)
    assert repaired.images == 60 * 50
    after = world.measure(repaired.model)
    assert after.ca > 90
    assert after.asr <= world.before.asr
