"""FT-SAM: the move goes up the loss and is taken back; the backdoor weakens."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from cgd.defenses import make_defense
from cgd.defenses.ftsam import kept_statistics, worst_move


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def test_the_move_has_its_size_and_goes_up() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(4, 3, generator=generator), torch.randn(5, generator=generator)]
    slopes = tuple(torch.randn(w.shape, generator=generator) for w in weights)
    moves = worst_move(weights, slopes, 2.0)
    size = torch.cat([(m / w).flatten() for m, w in zip(moves, weights, strict=True)]).norm()
    assert size.item() == pytest.approx(2.0, rel=1e-4)
    assert all(((m * g) >= 0).all() for m, g in zip(moves, slopes, strict=True))


def test_statistics_are_kept_while_asked_for() -> None:
    norm = nn.BatchNorm2d(2)
    with kept_statistics(norm):
        norm(torch.randn(3, 2, 4, 4) + 5)
    assert (norm.running_mean == 0).all()
    norm(torch.randn(3, 2, 4, 4) + 5)
    assert (norm.running_mean > 0).all()


def test_without_a_move_it_is_fine_tuning_with_smoothed_labels(world: Any) -> None:
    """A move of nearly nothing must be taken back exactly, or the weights drift."""
    still = make_defense("ft-sam", rho=1e-12, smoothing=0.0, steps=10, batch=32)
    plain = make_defense("ft", steps=10, batch=32)
    first, second = (made.repair(world.victim, world.clean, world.terms) for made in (still, plain))
    assert first.images == 2 * second.images
    weights = second.model.state_dict()
    for name, value in first.model.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value, weights[name], atol=1e-3), name


def test_a_step_is_taken_from_the_old_weights_by_the_slope_at_the_moved_ones(world: Any) -> None:
    victim = copy.deepcopy(world.victim)
    seen: list[torch.Tensor] = []

    def note(model: nn.Module, _: Any) -> None:
        seen.append(flat(model))

    victim.register_forward_pre_hook(note)
    made = make_defense("ft-sam", steps=1, batch=32, rho=2.0, lr=1e-9)
    after = made.repair(victim, world.clean, world.terms).model
    old, moved = seen
    assert torch.equal(old, flat(world.victim))
    move = (moved - old)[old != 0] / old[old != 0]
    assert move.norm().item() == pytest.approx(2.0, rel=1e-2)
    torch.testing.assert_close(flat(after), old, atol=1e-5, rtol=1e-5)


def test_the_attack_does_not_get_stronger(world: Any) -> None:
    made = make_defense("ft-sam", steps=30, batch=32)
    after = world.measure(made.repair(world.victim, world.clean, world.terms).model)
    assert after.ca > 90
    assert after.asr <= world.before.asr
