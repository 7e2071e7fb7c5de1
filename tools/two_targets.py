"""Two attackers poison the same data, each with a trigger and a target: are both found and undone?

    python tools/two_targets.py DATA OUT

DATA holds `cifar10` as the suites name it; OUT receives `two_targets.json`. About five minutes
a pair of rates on one CPU thread. CIFAR-10, 20,000 images, seed 0: BadNets for class 0 and Blended
for class 3, the stand-in guide of the suites, the small network.
"""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cgd.attacks import Attack
from cgd.bench import read_suite
from cgd.bench.lab import Lab
from cgd.bench.scenes import Scene
from cgd.data import ImageData
from cgd.evaluation import evaluate
from cgd.files import write_json
from cgd.models import Classifier, ModelCard, build
from cgd.pipeline import repair, scan
from cgd.training import Recipe, pick_device, train

SUITE = Path(__file__).parent.parent / "suites" / "adaptive.toml"
SCENES = (Scene("badnets", 0, seed=0, target=0), Scene("blended", 0, seed=1, target=3))
RATES = ((0.02, 0.02), (0.05, 0.02), (0.05, 0.05), (0.01, 0.01))


def poisoned(lab: Lab, rates: tuple[float, ...]) -> tuple[ImageData, np.ndarray]:
    """Poison shares of the data, one after the other; returns each sample's target, -1 for none."""
    data, targets = lab.defended, np.full(len(lab.defended), -1)
    for scene, rate in zip(SCENES, rates, strict=True):
        trial = lab.attacked(data, replace(scene, rate=rate), np.flatnonzero(targets < 0))
        assert trial.manifest
        data, targets[trial.manifest.poison] = trial.data, scene.target
    return data, targets


def main(folder: Path, out: Path) -> None:
    """Make all pairs, and write what was found after each."""
    device, record = pick_device("cpu"), []
    grid = read_suite(SUITE).grids[0]
    lab = Lab(grid, folder, out / "work", device)
    guide, known = lab.guide("stand-in")
    triggers = [(scene.make_attack(), scene.target) for scene in SCENES]
    for rates in RATES:
        data, targets = poisoned(lab, rates)
        victim = build(ModelCard("small_resnet", data.classes, data.size), seed=0)
        train(victim, data.images, data.labels, Recipe(epochs=grid.epochs), device=device)
        found = scan(data, guide, device=device)
        repaired = repair(victim, data, found, device=device).model
        told = found.verdict.probability > 0.5
        record.append(
            {
                "rates": rates,
                "guide_accuracy": known,
                "finding": found.verdict.finding,
                "targets": found.verdict.targets,
                "found": {t: float(told[targets == t].mean()) for _, t in triggers},
                "before": measured(victim, lab.test, triggers, device),
                "after": measured(repaired, lab.test, triggers, device),
            }
        )
        print(record[-1], flush=True)
        write_json(out / "two_targets.json", record)


def measured(
    model: Classifier, test: ImageData, triggers: list[tuple[Attack, int]], device: torch.device
) -> dict[int, dict[str, Any]]:
    """CA, ASR and RA for each target."""
    return {
        target: asdict(evaluate(model, test, attack, target, device=device))
        for attack, target in triggers
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
