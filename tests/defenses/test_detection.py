"""The scores that the bench iterates over, and what it stores of them."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from cgd.bench.detection import detection_cells
from cgd.defenses import make_defense
from cgd.defenses.detection import detectors, scan_scores
from cgd.entropy import entropy_map


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
    scores = scan_scores(scan)
    assert set(scores) == {"cgd", "guide", "suspect"}
    assert (scores["guide"] == scan.map.guide_rank).all()
    order = np.argsort(scan.map.suspect_entropy)
    assert (np.diff(scores["suspect"][order]) <= 1e-12).all()


def test_cells_are_metrics_of_the_scores(
    world: Any, scan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ac = make_defense("ac")
    only = {"ac": ac.scores}  # type: ignore[attr-defined]
    monkeypatch.setattr("cgd.bench.detection.detectors", lambda: only)
    rows = np.array(world.manifest.poison)
    cells = detection_cells(world.victim, world.data, scan, rows, world.terms)
    by_name = {cell["defense"]: cell for cell in cells}
    assert list(by_name) == ["cgd", "guide", "suspect", "ac"]
    assert by_name["cgd"]["auroc"] > by_name["guide"]["auroc"]
    assert by_name["suspect"]["tpr_at_1"] == 1.0
    assert by_name["guide"]["seconds"] == 3.0
    poison = np.isin(np.arange(600), rows)
    scores = only["ac"](world.victim, world.data, world.terms)
    assert by_name["ac"]["auroc"] == roc_auc_score(poison, scores)
    assert by_name["ac"]["average_precision"] == average_precision_score(poison, scores)
    assert len(detection_cells(world.victim, world.data, None, rows, world.terms)) == 1
