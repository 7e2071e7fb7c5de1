"""A cell: what is measured of one scene under one guide and defence."""

import platform
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from cgd import pipeline
from cgd.attacks import Attack
from cgd.attacks.stealth import stealth
from cgd.bench.defenses import read_defense
from cgd.bench.lab import Lab, Trial
from cgd.bench.scenes import NONE, Scene
from cgd.bench.suite import Grid
from cgd.data import ImageData
from cgd.evaluation import Evaluation, evaluate, ground_truth
from cgd.files import copy_file, slug
from cgd.models import Classifier
from cgd.verdict import attacked_class

Cell = dict[str, Any]
JUDGED = "suspect.safetensors"


@dataclass(frozen=True)
class Wanted:
    """Names a cell: a scene, a guide and a defence; both `none` where undefended."""

    scene: Scene
    guide: str = NONE
    defense: str = NONE

    def file_name(self, grid: Grid) -> str:
        """Name of the file that holds the cell."""
        return slug(grid.dataset, self.scene.key, self.guide, self.defense) + ".json"


def cells_of(grid: Grid, scene: Scene) -> list[Wanted]:
    """The cells of a scene, the undefended one first."""
    defended = [Wanted(scene, guide, name) for guide in grid.guides for name in grid.defenses]
    return [Wanted(scene), *defended]


def describe(lab: Lab, wanted: Wanted, protocol: str) -> Cell:
    """Return the columns that say which cell this is."""
    scene = wanted.scene
    known = None if wanted.guide == NONE else lab.guide(wanted.guide)[1]
    return {
        "protocol": protocol,
        "dataset": lab.grid.dataset,
        "model": scene.model,
        "labels": scene.labels,
        "attack": scene.title,
        "rate": scene.rate,
        "defense": wanted.defense,
        "guide": wanted.guide,
        "guide_accuracy": known,
        "seed": scene.seed,
        "device": device_name(lab.device),
        "version": version("cgd"),
    }


def measure(lab: Lab, wanted: Wanted, trial: Trial) -> Cell:
    """Make a cell: train, scan and repair what is needed, and measure."""
    victim, victim_seconds = lab.victim(trial)
    cell: Cell = {"label_noise": _noise(lab, trial), **_clean(lab, trial)}
    if wanted.defense == NONE:
        measured = _evaluated(lab, victim, trial)
        cell |= {**asdict(measured), "seconds": victim_seconds, "passes": float(lab.grid.epochs)}
        return {**cell, **_stealth(trial)}
    return {**cell, **_defended(lab, wanted, trial, victim)}


def _defended(lab: Lab, wanted: Wanted, trial: Trial, victim: Classifier) -> Cell:
    scene, data = trial.scene, trial.data
    guide, _ = lab.guide(wanted.guide)
    defense = read_defense(wanted.defense)
    suspect = "victim" if defense.own_suspect else defense.preset.suspect
    folder = lab.work / slug(lab.grid.dataset, scene.key, wanted.guide, suspect)
    shared = lab.work / slug(lab.grid.dataset, scene.key, suspect) / JUDGED
    if shared.is_file() and not (folder / JUDGED).is_file():  # whatever the guide, it is the same
        copy_file(shared, folder / JUDGED)
    scan = pipeline.scan(
        data,
        guide,
        preset=defense.preset,
        suspect=victim if defense.own_suspect else None,
        arch=scene.model,
        seed=scene.seed,
        device=lab.device,
        folder=folder,
    )
    if not shared.is_file():
        copy_file(folder / JUDGED, shared)
    start = time.perf_counter()
    repair = pipeline.repair(
        victim,
        data,
        scan,
        preset=defense.preset,
        recipe=replace(defense.preset.unlearning, flip=lab.grid.flip),
        seed=scene.seed,
        device=lab.device,
    )
    stages = {**scan.seconds, "unlearning": time.perf_counter() - start}
    truth = ground_truth(data, scan, trial.manifest)["separation"] if trial.manifest else None
    return {
        **asdict(_evaluated(lab, repair.model, trial)),
        **(truth or {}),
        **{f"seconds_{stage}": seconds for stage, seconds in stages.items()},
        "seconds": sum(stages.values()),
        "passes": scan.passes + repair.images / len(data),
        "stands_out": float(attacked_class(scan.map) is not None),
    }


def _noise(lab: Lab, trial: Trial) -> float:
    """Wrong labels before the attack, in percent."""
    return 100 * float((trial.clean.labels != lab.defended.labels).float().mean())


def _clean(lab: Lab, trial: Trial) -> Cell:
    """What a cleanly trained model of the same seed does with the same triggered images."""
    if trial.attack is None:
        return {"ca_clean": None, "asr_floor": None, "ra_ceiling": None}
    found = _evaluated(lab, lab.clean_model(trial.scene, trial.clean), trial)
    return {"ca_clean": found.ca, "asr_floor": found.asr, "ra_ceiling": found.ra}


def _evaluated(lab: Lab, model: Classifier, trial: Trial) -> Evaluation:
    target, source = trial.scene.target, trial.scene.source_class
    whole = evaluate(model, lab.test, _attack(trial, source), target, device=lab.device)
    if source is None:
        return whole
    attacked: ImageData = lab.test.subset(np.flatnonzero(lab.test.labels.numpy() == source))
    return replace(evaluate(model, attacked, trial.attack, target, device=lab.device), ca=whole.ca)


def _attack(trial: Trial, source: int | None) -> Attack | None:
    """The attack, where it is to be measured on all classes."""
    return trial.attack if source is None else None


def _stealth(trial: Trial) -> Cell:
    """How long poisoning took, and how much it changed the poisoned training images."""
    rows = torch.tensor(trial.manifest.poison if trial.manifest else [], dtype=torch.int64)
    figures = stealth(trial.clean.images[rows], trial.data.images[rows])
    quality = dict(zip(("psnr", "ssim"), figures, strict=True)) if figures else {}
    return {"seconds_poison": trial.seconds, **quality}


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
