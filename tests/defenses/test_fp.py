"""FP: silent features are cut off, and stay so."""

from typing import Any

import torch

from cgd.defenses import make_defense
from cgd.defenses.features import feature_matrix, last_linear


def test_the_most_silent_features_are_cut_off_and_stay_so(world: Any) -> None:
    made = make_defense("fp", steps=20, batch=32, share=0.1)
    pruned = made.repair(world.victim, world.clean, world.terms)
    cut = pruned.told["features_cut"]
    silent = (last_linear(pruned.model).weight == 0).all(0)
    assert int(silent.sum()) == cut > 0
    mean = torch.from_numpy(
        feature_matrix(world.victim, world.clean.images, world.terms.device).mean(0)
    )
    # Ranked by images that do not decide, so only nearly by all clean images.
    assert mean[silent].mean() < mean[~silent].mean()
    after = world.measure(pruned.model)
    assert after.ca > 90
    assert after.asr <= world.before.asr


def test_nothing_is_cut_that_clean_accuracy_needs(world: Any) -> None:
    strict, lax = (
        make_defense("fp", steps=1, batch=16, share=0.1, tolerance=points)
        .repair(world.victim, world.clean, world.terms)
        .told["features_cut"]
        for points in (0.0, 100.0)
    )
    assert strict <= lax
    assert lax >= 0.8 * pruned_width(world)


def pruned_width(world: Any) -> int:
    width: int = last_linear(world.victim).in_features
    return width
