"""NC: a pattern is found for each class, and the one that is too small is unlearned."""

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from cgd.defenses import make_defense
from cgd.defenses.nc import small_outliers, stamped
from cgd.training import predict

BRIEF = {"search_steps": 60, "steps": 40, "batch": 50}


@given(st.lists(st.floats(1, 100), min_size=1, max_size=8))
def test_the_median_and_what_is_larger_never_stand_out(sizes: list[float]) -> None:
    array = np.array(sizes)
    assert not small_outliers(array, 2.0)[array >= np.median(array)].any()


def test_a_full_mask_shows_the_pattern_and_an_empty_one_the_image() -> None:
    image, pattern = torch.full((1, 3, 4, 4), 7.0), torch.full((3, 4, 4), 200.0)
    mask = torch.zeros(1, 4, 4)
    mask[0, 3, 3] = 1.0
    changed = stamped(image, mask, pattern)
    assert (changed == 200).sum() == 3
    assert (changed == 7).sum() == 45


def test_the_target_takes_the_smallest_mask(world: Any) -> None:
    made = make_defense("nc", **BRIEF)
    found = [made.invert(world.victim, world.clean, target, world.terms) for target in range(3)]  # type: ignore[attr-defined]
    sizes = [float(mask.sum()) for mask, _, _ in found]
    assert int(np.argmin(sizes)) == 0
    mask, pattern, images = found[0]
    assert images == 60 * 50
    turned = world.victim(stamped(world.test.images, mask, pattern)).argmax(1)
    assert (turned == 0).float().mean() > 0.9


def test_a_flagged_pattern_is_unlearned(world: Any) -> None:
    """On these data the smallest trigger is a faint tint, not the patch: only that is unlearned."""
    made = make_defense("nc", **BRIEF, limit=0.5)
    repaired = made.repair(world.victim, world.clean, world.terms)
    assert 0 in repaired.told["flagged"]
    mask, pattern, _ = made.invert(world.victim, world.clean, 0, world.terms)  # type: ignore[attr-defined]
    marked = stamped(world.test.images, mask, pattern)[world.test.labels != 0]
    before, after = (
        (predict(model, marked, device=world.terms.device).argmax(1) == 0).float().mean()
        for model in (world.victim, repaired.model)
    )
    assert after < before - 0.3
    measured = world.measure(repaired.model)
    assert measured.ca > 90
    assert measured.asr <= world.before.asr


def test_where_nothing_stands_out_the_model_stays(world: Any) -> None:
    made = make_defense("nc", search_steps=2, batch=16, limit=1e9)
    kept = made.repair(world.victim, world.clean, world.terms)
    assert kept.told["flagged"] == []
    weights = world.victim.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in kept.model.state_dict().items())
