"""The scores that the bench iterates over, and what it stores of them."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cgd.defenses.detection import SCAN_SCORES, detectors
from cgd.entropy import entropy_map
from cgd.split import released_split


@pytest.fixture
def scan(world: Any) -> Any:
    """A guide that knows all true labels, and a suspect that learned nothing but poison."""
    n, labels = len(world.data), world.data.labels
    guide, suspect = torch.zeros(n, 3), torch.zeros(n, 3)
    guide[torch.arange(n), torch.arange(n) % 3] = 5.0  # the toy data's own labels
    suspect[world.manifest.poison, labels[world.manifest.poison]] = 5.0
    ranks = entropy_map(guide, suspect, labels)
    verdict = SimpleNamespace(score=ranks.poison_score)
    return SimpleNamespace(map=ranks, verdict=verdict, seconds={"guide": 1.0, "suspect": 2.0})


def test_the_detectors_score_every_sample(world: Any) -> None:
    assert set(detectors()) == {"ac", "ss", "scan", "strip", "abl", "d-br"}
    for name in ("ac", "ss", "scan"):
        scores = detectors()[name](world.victim, world.data, world.terms)
        assert scores.shape == (600,)
        assert scores.dtype == np.float64
        assert np.isfinite(scores).all()


def test_the_scores_of_a_scan_are_its_axes_and_both(scan: Any) -> None:
    guide, suspect = (SCAN_SCORES[name](scan) for name in ("guide", "suspect"))
    assert (guide == scan.map.guide_rank).all()
    order = np.argsort(scan.map.suspect_entropy)
    assert (np.diff(suspect[order]) <= 1e-12).all()
    assert SCAN_SCORES["cgd"](scan) is scan.verdict.score


def test_the_released_split_takes_the_highest_scores_of_either_axis(
    scan: Any,
) -> None:
    split = released_split(scan.map, scan.verdict, 0.2, 0.1)
    scores = SCAN_SCORES["either"](scan)
    rest = np.setdiff1d(np.arange(len(scores)), split.triggered)
    assert scores[split.triggered].min() > scores[rest].max()
