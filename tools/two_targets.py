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

from cgd import attacks
from cgd.attacks import Attack
from cgd.bench.lab import Lab
from cgd.bench.suite import Grid
from cgd.data import ImageData
from cgd.data.dataset import content_keys
from cgd.evaluation import evaluate
from cgd.files import write_json
from cgd.models import Classifier, ModelCard, build
from cgd.pipeline import repair, scan
from cgd.training import Recipe, pick_device, train

GRID = Grid(
    "cifar10", "cifar10/train.parquet", "cifar10/test.parquet", 20000, 12, (), (), (), (0,),
    trusted=10000,
)  # fmt: skip
ATTACKS = (("badnets", 0), ("blended", 3))
RATES = ((0.02, 0.02), (0.05, 0.02), (0.05, 0.05))


def poisoned(data: ImageData, rates: tuple[float, ...]) -> tuple[ImageData, np.ndarray]:
    """Poison shares of the data, one after the other; returns each sample's target, -1 for none."""
    images, labels = data.images.clone(), data.labels.clone()
    targets = np.full(len(data), -1)
    for seed, ((name, target), rate) in enumerate(zip(ATTACKS, rates, strict=True)):
        free = np.flatnonzero(targets < 0)
        share = rate * len(data) / len(free)
        part, manifest = attacks.poison(
            data.subset(free), attacks.make_attack(name), rate=share, target=target, seed=seed
        )
        images[free], labels[free] = part.images, part.labels
        targets[free[manifest.poison]] = target
    index = np.arange(len(data))
    return replace(
        data, images=images, labels=labels, keys=content_keys(images), index=index, originals=None
    ), targets


def main(folder: Path, out: Path) -> None:
    """Make all pairs, and write what was found after each."""
    device, record = pick_device("cpu"), []
    lab = Lab(GRID, folder, out / "work", device)
    guide, known = lab.guide("stand-in")
    triggers = [(attacks.make_attack(name), target) for name, target in ATTACKS]
    for rates in RATES:
        data, targets = poisoned(lab.defended, rates)
        victim = build(ModelCard("small_resnet", data.classes, data.size), seed=0)
        train(victim, data.images, data.labels, Recipe(epochs=GRID.epochs), device=device)
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
