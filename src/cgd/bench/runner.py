"""Runs the cells of a suite; each is stored once, shared work is done once."""

import platform
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cgd import attacks, pipeline
from cgd.attacks.stealth import stealth
from cgd.bench.suite import NONE, Scene, Suite
from cgd.data import ImageData, load
from cgd.evaluation import Evaluation, evaluate, ground_truth
from cgd.files import read_json, write_json
from cgd.guides import Guide, open_guide
from cgd.metrics import accuracy
from cgd.models import Classifier, ModelCard, build, load_model, save_model
from cgd.presets import get_preset
from cgd.progress import say
from cgd.training import Change, Recipe, train

GUIDE_SEED = 99


@dataclass(frozen=True)
class _Bench:
    """What all cells share."""

    suite: Suite
    out: Path
    device: torch.device
    defended: ImageData
    test: ImageData
    guide: Guide | None
    guide_accuracy: float | None


def run_suite(suite: Suite, data: Path, out: Path, device: torch.device) -> list[dict[str, Any]]:
    """Run the cells that are not stored yet.

    Args:
        suite: the grid.
        data: folder that the suite's data sets are relative to.
        out: receives `cells/*.json` and, under `work/`, what cells share.
        device: where to compute.

    Returns:
        All stored cells of the suite.
    """
    bench = _prepare(suite, data, out, device)
    for scene in suite.scenes():
        missing = [
            (defense, path)
            for defense in (NONE, *suite.defenses)
            if not (path := _cell_path(out, scene, defense)).is_file()
        ]
        trial = _poisoned(bench, scene) if missing else None
        for defense, path in missing:
            say(f"{suite.name}: {scene.key}, {defense}")
            assert trial is not None
            write_json(path, _cell(bench, trial, defense))
    return [read_json(path) for path in sorted((out / "cells").glob("*.json"))]


def _cell_path(out: Path, scene: Scene, defense: str) -> Path:
    return out / "cells" / f"{scene.key}-{defense}.json"


def _prepare(suite: Suite, data: Path, out: Path, device: torch.device) -> _Bench:
    whole, test = load(data / suite.train), load(data / suite.test)
    order = np.random.default_rng(0).permutation(len(whole))
    defended = whole.subset(order[: suite.defended])
    trusted = whole.subset(order[suite.defended : suite.defended + suite.trusted])
    if not suite.defenses:
        return _Bench(suite, out, device, defended, test, None, None)
    if suite.guide == "stand-in":
        recipe = Recipe(epochs=suite.guide_epochs, flip=suite.flip)
        _model(out / "work" / "guide", suite, trusted, recipe, GUIDE_SEED, device)
        guide = open_guide(f"classifier:{out / 'work' / 'guide'}", device=device)
    else:
        guide = open_guide(suite.guide, device=device)
    known = guide.logits(defended).argmax(1).numpy()
    return _Bench(
        suite, out, device, defended, test, guide, accuracy(known, defended.labels.numpy())
    )


def _model(
    folder: Path,
    suite: Suite,
    data: ImageData,
    recipe: Recipe,
    seed: int,
    device: torch.device,
    change: Change | None = None,
) -> tuple[Classifier, float]:
    """Train a model, or load it if that was done; returns the training seconds too."""
    if not (folder / "seconds.json").is_file():
        start = time.perf_counter()
        model = build(ModelCard(suite.model, data.classes, data.size), seed=seed)
        checkpoint = folder / "training.partial"
        train(
            model,
            data.images,
            data.labels,
            recipe,
            seed=seed,
            device=device,
            checkpoint=checkpoint,
            change=change,
        )
        save_model(folder, model)
        write_json(folder / "seconds.json", time.perf_counter() - start)
    return load_model(folder), read_json(folder / "seconds.json")


@dataclass(frozen=True)
class _Trial:
    """A scene, poisoned."""

    scene: Scene
    data: ImageData
    attack: attacks.Attack | None = None
    manifest: attacks.Manifest | None = None
    seconds: float | None = None


def _poisoned(bench: _Bench, scene: Scene) -> _Trial:
    if scene.attack == NONE:
        return _Trial(scene, bench.defended)
    attack, start = scene.make_attack(), time.perf_counter()
    data, manifest = attacks.poison(
        bench.defended,
        attack,
        rate=scene.rate,
        target=bench.suite.target,
        seed=scene.seed,
        device=bench.device,
    )
    return _Trial(scene, data, attack, manifest, time.perf_counter() - start)


def _cell(bench: _Bench, trial: _Trial, defense: str) -> dict[str, Any]:
    scene = trial.scene
    victim, victim_seconds = _victim(bench, trial)
    cell: dict[str, Any] = {
        "protocol": bench.suite.protocol,
        "dataset": bench.suite.dataset,
        "model": bench.suite.model,
        "attack": scene.title,
        "rate": scene.rate,
        "defense": defense,
        "guide": bench.suite.guide if bench.guide else NONE,
        "guide_accuracy": bench.guide_accuracy,
        "seed": scene.seed,
        "device": _device_name(bench.device),
        "version": version("cgd"),
        **_clean(bench, trial),
    }
    if defense == NONE:
        measured = _measure(bench, victim, trial.attack)
        passes = float(bench.suite.epochs)
        cell |= {**asdict(measured), "seconds": victim_seconds, "passes": passes}
        return {**cell, **_stealth(bench, trial)}
    return {**cell, **_defended(bench, trial, victim, defense)}


def _defended(bench: _Bench, trial: _Trial, victim: Classifier, defense: str) -> dict[str, Any]:
    scene, data = trial.scene, trial.data
    assert bench.guide is not None
    scan = pipeline.scan(
        data,
        bench.guide,
        preset=defense,
        arch=bench.suite.model,
        seed=scene.seed,
        device=bench.device,
        folder=bench.out / "work" / f"{scene.key}-{defense}",
    )
    start = time.perf_counter()
    repair = pipeline.repair(
        victim,
        data,
        scan,
        preset=defense,
        recipe=replace(get_preset(defense).unlearning, flip=bench.suite.flip),
        seed=scene.seed,
        device=bench.device,
    )
    stages = {**scan.seconds, "unlearning": time.perf_counter() - start}
    measured = _measure(bench, repair.model, trial.attack)
    truth = ground_truth(data, scan, trial.manifest)["separation"] if trial.manifest else None
    return {
        **asdict(measured),
        **(truth or {}),
        **{f"seconds_{stage}": seconds for stage, seconds in stages.items()},
        "seconds": sum(stages.values()),
        "passes": scan.passes + repair.images / len(data),
    }


def _victim(bench: _Bench, trial: _Trial) -> tuple[Classifier, float]:
    scene, data, change = trial.scene, trial.data, None
    if scene.per_batch and trial.attack and trial.manifest:
        change = attacks.planter(trial.attack, trial.manifest, len(data), bench.device)
        data = replace(data, images=bench.defended.images)
    folder = bench.out / "work" / f"{scene.key}-victim"
    recipe = Recipe(epochs=bench.suite.epochs, flip=bench.suite.flip)
    return _model(folder, bench.suite, data, recipe, scene.seed, bench.device, change)


def _clean(bench: _Bench, trial: _Trial) -> dict[str, float | None]:
    """What a cleanly trained model of the same seed does with the same triggered images."""
    if trial.attack is None:
        return {"ca_clean": None, "asr_floor": None, "ra_ceiling": None}
    clean, _ = _victim(bench, _Trial(Scene(NONE, 0.0, trial.scene.seed), bench.defended))
    found = _measure(bench, clean, trial.attack)
    return {"ca_clean": found.ca, "asr_floor": found.asr, "ra_ceiling": found.ra}


def _measure(bench: _Bench, model: Classifier, attack: attacks.Attack | None) -> Evaluation:
    return evaluate(model, bench.test, attack, bench.suite.target, device=bench.device)


def _stealth(bench: _Bench, trial: _Trial) -> dict[str, float | None]:
    """How long poisoning took, and how much it changed the poisoned training images."""
    rows = torch.tensor(trial.manifest.poison if trial.manifest else [], dtype=torch.int64)
    figures = stealth(bench.defended.images[rows], trial.data.images[rows])
    quality = dict(zip(("psnr", "ssim"), figures, strict=True)) if figures else {}
    return {"seconds_poison": trial.seconds, **quality}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
