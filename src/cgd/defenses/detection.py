"""Scores that say how suspicious each sample is, of every defence that has one, and of a scan."""

from collections.abc import Callable

import numpy as np

from cgd.data.dataset import ImageData
from cgd.defenses.base import DEFENSES, Terms
from cgd.defenses.cleansing import Detector
from cgd.defenses.features import Floats
from cgd.models import Classifier
from cgd.pipeline import Scan

Scores = Callable[[Classifier, ImageData, Terms], Floats]


def detectors() -> dict[str, Scores]:
    """Return name -> function (model, data, terms) -> float64 [n], higher = more suspicious."""
    return {
        name: defense().scores
        for name, defense in DEFENSES.items()
        if issubclass(defense, Detector)
    }


SCAN_SCORES: dict[str, Callable[[Scan], Floats]] = {
    "cgd": lambda scan: scan.verdict.score,
    "guide": lambda scan: scan.map.guide_rank,
    "suspect": lambda scan: 1 - scan.map.suspect_rank,
    "either": lambda scan: np.maximum(scan.map.guide_rank, 1 - scan.map.suspect_rank),
}
"""Name -> scores of a scan, float64 [n]: its verdict's; its axes alone; and the higher of these
two, which is how CGD's authors decide what is triggered."""
