"""How well the scores of defences, and those of a scan, tell poison from the rest."""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgd.data import ImageData
from cgd.defenses import Terms
from cgd.defenses.detection import detectors, scan_scores
from cgd.defenses.features import Floats
from cgd.metrics import tpr_at_fpr
from cgd.models import Classifier
from cgd.pipeline import Scan


def detection_cells(
    model: Classifier,
    data: ImageData,
    scan: Scan | None,
    poison_rows: NDArray[np.int64],
    terms: Terms,
) -> list[dict[str, Any]]:
    """Measure every detector, and the axes of a scan, against the ground truth.

    Args:
        model: the backdoored classifier.
        data: the poisoned data.
        scan: its scan, whose seconds are those of its stages; None to leave it out.
        poison_rows: row numbers of the poisoned samples: some, but not all.
        terms: what the detectors are told.

    Returns:
        For each one `defense`, `auroc`, `average_precision`, `tpr_at_1`, `tpr_at_5` (shares, at so
        many percent false positives) and `seconds`.
    """
    poison = np.zeros(len(data), dtype=np.bool_)
    poison[poison_rows] = True
    cells = []
    if scan is not None:
        seconds = sum(scan.seconds.values())
        for name, scores in scan_scores(scan).items():
            cells.append(_cell(name, scores, poison, seconds))
    for name, scores_of in detectors().items():
        start = time.perf_counter()
        scores = scores_of(model, data, terms)
        cells.append(_cell(name, scores, poison, time.perf_counter() - start))
    return cells


def _cell(name: str, scores: Floats, poison: NDArray[np.bool_], seconds: float) -> dict[str, Any]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    return {
        "defense": name,
        "auroc": float(roc_auc_score(poison, scores)),
        "average_precision": float(average_precision_score(poison, scores)),
        "tpr_at_1": tpr_at_fpr(scores, poison, 0.01),
        "tpr_at_5": tpr_at_fpr(scores, poison, 0.05),
        "seconds": seconds,
    }
