"""Scores that say how suspicious each sample is, of every defence that has one, and of a scan."""

from collections.abc import Callable

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


def scan_scores(scan: Scan) -> dict[str, Floats]:
    """The scores of a scan: of both of its axes, and of each alone."""
    return {
        "cgd": scan.verdict.score,
        "guide": scan.map.guide_rank,
        "suspect": 1 - scan.map.suspect_rank,
    }
