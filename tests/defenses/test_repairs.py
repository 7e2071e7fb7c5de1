"""What all repairs share: they leave the model alone, follow the seed, and refuse bad input."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cgd.data import ImageData
from cgd.defenses import DEFENSES, Repair, make_defense
from cgd.defenses.tuning import endless_batches, fine_tune, hold_out
from cgd.errors import InputError
from cgd.models import Classifier, ModelCard
from cgd.training import seeded

BRIEF = {
    "steps": 2, "teacher_steps": 1, "batch": 16, "rounds": 1, "fixed_point": 1, "unlearn_steps": 1,
    "curve_steps": 2, "search_steps": 2, "limit": -9.0,
}  # fmt: skip
REPAIRS = sorted(name for name, kind in DEFENSES.items() if issubclass(kind, Repair))


def brief(name: str) -> Repair:
    defense = DEFENSES[name]().parameters()
    made = make_defense(name, **{key: value for key, value in BRIEF.items() if key in defense})
    assert isinstance(made, Repair)
    return made


class Plain(nn.Module):
    """No batch normalisation, no feature maps, no linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3 * 16 * 16, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight


@pytest.mark.parametrize("name", REPAIRS)
def test_a_repair_leaves_the_model_as_it_is_and_follows_the_seed(name: str, world: Any) -> None:
    before = {key: value.clone() for key, value in world.victim.state_dict().items()}
    first, again = (brief(name).repair(world.victim, world.clean, world.terms) for _ in "ab")
    assert all(torch.equal(before[k], v) for k, v in world.victim.state_dict().items())
    assert not first.model.training
    assert first.model is not world.victim
    assert first.images > 0
    assert (first.images, first.told) == (again.images, again.told)
    weights = again.model.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in first.model.state_dict().items())
    assert all(p.requires_grad for p in first.model.parameters())


@pytest.mark.parametrize("name", REPAIRS)
def test_too_few_clean_images_are_refused(name: str, world: Any) -> None:
    few = world.clean.subset(np.arange(5))
    with pytest.raises(InputError, match="at least 10"):
        brief(name).repair(world.victim, few, world.terms)


@pytest.mark.parametrize("name", REPAIRS)
def test_clean_images_of_another_size_are_refused(name: str, world: Any) -> None:
    small: ImageData = replace(world.clean, images=world.clean.images[..., :8, :8])
    with pytest.raises(InputError, match="size"):
        brief(name).repair(world.victim, small, world.terms)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("anp", "batch normalisation"),
        ("rnp", "batch normalisation"),
        ("fp", "linear layer"),
        ("nad", "feature maps"),
    ],
)
def test_a_network_without_the_parts_is_refused(name: str, missing: str, world: Any) -> None:
    plain = Classifier(Plain(), ModelCard("plain", world.data.classes, 16))
    with pytest.raises(InputError, match=missing):
        brief(name).repair(plain, world.clean, world.terms)


def test_what_decides_is_not_learned_from(world: Any) -> None:
    shown, decides = hold_out(world.clean, seed=3)
    assert (len(shown), len(decides)) == (120, 30)
    assert sorted([*shown.index, *decides.index]) == list(range(150))


@pytest.mark.parametrize(("n", "batch", "size"), [(10, 4, 4), (3, 8, 3), (5, 3, 3)])
def test_there_are_as_many_full_batches_as_asked_for(n: int, batch: int, size: int) -> None:
    drawn = list(endless_batches(n, batch, 7, seeded(0)))
    assert [len(rows) for rows in drawn] == [size] * 7


def test_a_loss_that_runs_away_is_refused(world: Any) -> None:
    from copy import deepcopy

    with pytest.raises(InputError, match="lower the learning rate"):
        fine_tune(
            deepcopy(world.victim), world.clean, world.terms, steps=6, batch=16, lr=1e30, label="x"
        )
