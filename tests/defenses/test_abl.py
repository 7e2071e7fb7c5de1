"""ABL: the loss is held up, the first learned are isolated, unlearning raises their loss."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cgd.defenses import make_defense
from cgd.defenses.abl import flooded, held_up, losses
from cgd.defenses.scratch import fit, fresh_model


@given(st.floats(0, 5), st.floats(0.1, 2))
def test_below_gamma_the_gradient_turns_round(value: float, gamma: float) -> None:
    loss = torch.tensor(value, requires_grad=True)
    held = flooded(loss, gamma)
    assert held >= gamma - 1e-6
    held.backward()
    if abs(value - gamma) > 1e-3:
        assert loss.grad == (1 if value > gamma else -1)


def test_the_loss_stays_near_gamma(world: Any) -> None:
    model = fresh_model(world.data, world.terms)
    assert held_up(model, world.data, world.terms, epochs=4, gamma=0.5) == 4 * len(world.data)
    held = losses(model, world.data, world.terms).mean()
    free = losses(world.victim, world.data, world.terms).mean()
    assert free < 0.1 < held < 2.0


def test_the_isolated_are_given_up_and_the_rest_is_kept(world: Any) -> None:
    """The easy classes here are learned as soon as the poison, which is hence not isolated, and
    the model loses samples that it should have kept."""
    abl = make_defense("abl", isolated=0.05)
    made = abl.cleanse(world.victim, world.data, world.terms)  # type: ignore[attr-defined]
    scores = abl.scores(world.victim, world.data, world.terms)  # type: ignore[attr-defined]
    isolated = np.argsort(-scores, kind="stable")[:30]
    assert np.isin(isolated, world.manifest.poison).mean() < 0.5
    assert made.told == {"isolated": 30}
    terms = world.terms
    assert made.images == 20 * 600 + terms.scaled(60) * 570 + 20 * 30
    after = losses(made.model, world.data, terms)
    rest = np.setdiff1d(np.arange(600), isolated)
    assert after[isolated].mean() > after[rest].mean()
    assert world.measure(made.model).ca < world.before.ca


def test_unlearning_takes_few_steps(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up the loss, small batches of the few that are isolated would do much more."""
    sizes: list[int] = []

    def watched(*args: Any, **named: Any) -> int:
        rows, recipe = args[2], args[4]
        sizes.append(recipe.batch_for(len(rows)))
        return fit(*args, **named)

    monkeypatch.setattr("cgd.defenses.abl.fit", watched)
    abl = make_defense("abl", isolated=0.2, unlearning_epochs=1)
    abl.cleanse(world.victim, world.data, replace(world.terms, epochs=1))  # type: ignore[attr-defined]
    assert sizes == [16, 16, 64]
