"""The registry of defences, the terms they are told, and the victim they are tried on."""

from typing import Any

import pytest

from cgd.defenses import Terms, make_defense
from cgd.errors import InputError


def test_the_victim_of_these_tests_is_backdoored(world: Any) -> None:
    assert world.before.ra < 10


@pytest.mark.parametrize("published", [0.1, 1, 20, 100, 250])
def test_published_schedules_are_scaled_to_a_normal_training(published: float) -> None:
    assert Terms(epochs=100).scaled(published) == max(1, round(published))
    assert Terms(epochs=12).scaled(published) == max(1, round(0.12 * published))


def test_an_unknown_defense_is_refused() -> None:
    with pytest.raises(InputError, match="magic"):
        make_defense("magic")
