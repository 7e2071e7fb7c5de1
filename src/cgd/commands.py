"""What each command does: load, check, open the run folder, call the library, write, print."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cgd import attacks, runs
from cgd import evaluation as measure
from cgd import pipeline as line
from cgd.data import ImageData, load
from cgd.errors import InputError
from cgd.evaluation import Evaluation, check_fit
from cgd.files import read_json, write_json, write_text
from cgd.guides import Guide, open_guide
from cgd.models import Classifier, ModelCard, build, load_checkpoint, load_model, save_model
from cgd.presets import get_preset
from cgd.progress import say
from cgd.suspect import OUT_OF_FOLD, RELEASED, SHORT, SuspectRecipe
from cgd.training import Recipe, pick_device
from cgd.training import train as fit

SUSPECTS = {"short": SHORT, "released": RELEASED, "out-of-fold": OUT_OF_FOLD}


@dataclass(frozen=True)
class ScanOptions:
    """Options that `cgd scan` and `cgd defend` share."""

    guide: str
    preset: str
    suspect: str | None
    arch: str
    scale: float | None
    templates: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        """Return the options as they are written to `config.json`."""
        preset = get_preset(self.preset)
        scale = preset.scale if self.scale is None else self.scale
        return {**asdict(self), "templates": list(self.templates), "scale": scale}


def attack(
    name: str,
    source: str,
    out: Path,
    rate: float,
    target: int,
    parameters: Sequence[str],
    size: int | None,
    seed: int,
    device: str,
) -> None:
    """`cgd attack`: write a poisoned copy of a data set."""
    pick_device(device)
    chosen = attacks.make_attack(name, **_parameters(name, parameters))
    data = load(source, size=size)
    poisoned, manifest = attacks.poison(data, chosen, rate=rate, target=target, seed=seed)
    settings = {
        "data": source,
        "fingerprint": data.fingerprint,
        "attack": name,
        "parameters": chosen.parameters(),
        "rate": rate,
        "target": target,
        "size": data.size,
        "seed": seed,
    }
    with runs.run_folder(out, "attack", settings):
        attacks.write_poisoned(out, poisoned, chosen, manifest)
    print(
        f"{out}: {len(manifest.poison)} of {len(data)} samples poisoned with {name} "
        f"({chosen.family}), target {data.classes[target]!r}"
    )


def _parameters(name: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Read KEY=VALUE pairs, each value in the type of the attack's default."""
    defaults = attacks.make_attack(name).parameters()
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or key not in defaults:
            raise InputError(f"--set {pair}: {name} takes {', '.join(defaults)} as KEY=VALUE")
        try:
            values[key] = type(defaults[key])(text)
        except ValueError as error:
            kind = type(defaults[key]).__name__
            raise InputError(f"--set {pair}: {text!r} is not of type {kind}") from error
    return values


def print_attacks() -> None:
    """`cgd attack list`: a table of the attacks."""
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "family", "source", "parameters")
    for name, kind in sorted(attacks.ATTACKS.items()):
        defaults = attacks.make_attack(name).parameters()
        parameters = ", ".join(f"{key}={value!r}" for key, value in defaults.items())
        table.add_row(name, kind.family, kind.source, parameters)
    Console().print(table)


def train(
    source: str,
    out: Path,
    arch: str,
    recipe: Recipe,
    test_source: str | None,
    attack_run: Path | None,
    size: int | None,
    names: Path | None,
    seed: int,
    device: str,
) -> None:
    """`cgd train`: train a classifier, from scratch or from where a killed run stopped."""
    where = pick_device(device)
    data = _load(source, size, names)
    model = build(ModelCard(arch, data.classes, data.size), seed=seed)
    test, planted = _test_data(model, test_source, source, attack_run, names)
    settings = {
        "data": source,
        "fingerprint": data.fingerprint,
        "arch": arch,
        "recipe": asdict(recipe),
        "size": data.size,
        "seed": seed,
        "device": str(where),
    }
    with runs.run_folder(out, "train", settings):
        model = _trained(out, model, data, recipe, seed, where)
    measured = _measure(model, test, planted, where)
    skipped = [asdict(entry) for entry in data.skipped]
    record = runs.evaluation_record(measured, None, None)
    write_json(out / "result.json", {**record, "samples": len(data), "skipped": skipped})
    _print_skipped(data)
    print(f"{out}: {arch} trained on {len(data)} images{_in_words(measured)}")


def _trained(
    out: Path, model: Classifier, data: ImageData, recipe: Recipe, seed: int, device: torch.device
) -> Classifier:
    """Train, unless that was done before."""
    if (out / "model.safetensors").is_file():
        return load_model(out)
    checkpoint = out / "training.partial"
    fit(model, data.images, data.labels, recipe, seed=seed, device=device, checkpoint=checkpoint)
    save_model(out, model)
    return model


def scan(
    source: str,
    out: Path,
    options: ScanOptions,
    model: Path | None,
    size: int | None,
    names: Path | None,
    seed: int,
    device: str,
) -> None:
    """`cgd scan`: the entropy map and the split of a data set."""
    where = pick_device(device)
    own = _own_suspect(options, model, None)
    data = _load(source, own.card.size if own else size, names)
    if own:
        check_fit(own, data)
    guide = open_guide(options.guide, device=where, templates=options.templates or None)
    with runs.run_folder(out, "scan", _scan_settings(source, data, options, seed, where)):
        found = _scan(data, guide, options, own, seed, where, out)
    runs.write_scan(out, data, found)
    record = runs.evaluation_record(None, None, _truth(source, data, found))
    write_json(out / "result.json", {**record, **runs.scan_record(data, found)})
    _print_skipped(data)
    _print_parts(data, found)
    print(_write_report(out, data))


def defend(
    source: str,
    model_path: Path,
    out: Path,
    options: ScanOptions,
    arch: str | None,
    scan_run: Path | None,
    flip: bool,
    test_source: str | None,
    attack_run: Path | None,
    size: int | None,
    names: Path | None,
    seed: int,
    device: str,
) -> None:
    """`cgd defend`: scan, unlearn, measure."""
    where = pick_device(device)
    preset = get_preset(options.preset)
    card_size = _card_size(model_path) or size
    data = _load(source, card_size, names)
    victim = _open_model(model_path, arch, data)
    check_fit(victim, data)
    test, planted = _test_data(victim, test_source, source, attack_run, names)
    found = runs.read_scan(scan_run, data) if scan_run else None
    guide = (
        None
        if found
        else open_guide(options.guide, device=where, templates=options.templates or None)
    )
    settings = _scan_settings(source, data, options, seed, where)
    if scan_run:
        settings["scan"] = str(scan_run)
    own = _own_suspect(options, model_path, victim)
    with runs.run_folder(out, "defend", {**settings, "model": str(model_path), "flip": flip}):
        found = found or _scan(data, guide, options, own, seed, where, out)
    runs.write_scan(out, data, found)

    story = out / "unlearning.json"
    if story.is_file() and (out / "model.safetensors").is_file():
        repaired = load_model(out)
    else:
        recipe = replace(preset.unlearning, flip=flip)
        repaired, record = _repair(victim, data, found, recipe, seed, where)
        save_model(out, repaired)
        write_json(story, record)

    told = read_json(story)
    before, after = (_measure(m, test, planted, where) for m in (victim, repaired))
    record = {
        **runs.evaluation_record(before, after, _truth(source, data, found)),
        **runs.scan_record(data, found),
        "unlearning": told,
    }
    record["seconds"] = {**found.seconds, "unlearning": told["seconds"]}
    record["epochs_equivalent"] = found.passes + told["passes"]
    write_json(out / "result.json", record)
    _print_skipped(data)
    _print_parts(data, found)
    print_before_after(before, after)
    print(_write_report(out, data))


def _repair(
    victim: Classifier,
    data: ImageData,
    found: line.Scan,
    recipe: Any,
    seed: int,
    device: torch.device,
) -> tuple[Classifier, dict[str, Any]]:
    import time

    start = time.perf_counter()
    repair = line.repair(victim, data, found, recipe=recipe, seed=seed, device=device)
    return repair.model, {
        "held_out_accuracy": repair.held_out_accuracy,
        "kept_round": repair.kept_round,
        "passes": repair.images / len(data),
        "seconds": time.perf_counter() - start,
    }


def evaluate(
    run: Path, test_source: str, attack_run: Path | None, names: Path | None, device: str
) -> None:
    """`cgd evaluate`: measure the model of a run folder and add it to its `result.json`."""
    where = pick_device(device)
    model = load_model(run)
    test, planted = _test_data(model, test_source, None, attack_run, names)
    measured = _measure(model, test, planted, where)
    path = run / "result.json"
    record = read_json(path) if path.is_file() else runs.evaluation_record(None, None, None)
    trained = not (run / "unlearning.json").is_file()
    record["before" if trained else "after"] = asdict(measured)
    before, after = Evaluation(**record["before"]), Evaluation(**record["after"])
    record["der"] = measure.effectiveness(before, after)
    write_json(path, record)
    print(f"{run}{_in_words(measured)}")


def report(run: Path, source: str | None) -> None:
    """`cgd report`: write the report of a run again."""
    config = read_json(run / "config.json")
    data = load(source, size=config.get("size")) if source else None
    if data and data.fingerprint != config.get("fingerprint"):
        raise InputError(f"{source}: not the data of {run}; name the data it was made from")
    print(_write_report(run, data))


def bench(suite_path: Path, data: Path, out: Path, device: str) -> None:
    """`cgd bench`: run what is missing of a suite and render its table."""
    from cgd.bench import read_suite, render, run_suite, write_cells

    where = pick_device(device)
    suite = read_suite(suite_path)
    with runs.run_folder(out, "bench", {"suite": asdict(suite)}):
        cells = run_suite(suite, data, out, where)
    write_cells(out / "cells.parquet", cells)
    write_text(out / "table.md", render(cells))
    print(out / "table.md")


def print_before_after(before: Evaluation, after: Evaluation) -> None:
    """Print what the repair did, as a table; nothing where nothing was measured."""
    from rich.console import Console
    from rich.table import Table

    if before.ca is None:
        return
    table = Table("", "before", "after")
    rows = {
        "clean accuracy": (before.ca, after.ca),
        "attack success rate": (before.asr, after.asr),
        "robust accuracy": (before.ra, after.ra),
    }
    for title, (first, second) in rows.items():
        if first is not None and second is not None:
            table.add_row(title, f"{first:.1f} %", f"{second:.1f} %")
    Console().print(table)


def _load(source: str, size: int | None, names: Path | None) -> ImageData:
    mapping = read_json(names) if names else None
    if mapping is not None and not isinstance(mapping, Mapping):
        raise InputError(f"{names}: must be a JSON object {{code: name}}")
    return load(source, size=size, names=mapping)


def _scan(
    data: ImageData,
    guide: Guide | None,
    options: ScanOptions,
    own: Classifier | None,
    seed: int,
    device: torch.device,
    out: Path,
) -> line.Scan:
    assert guide is not None
    return line.scan(
        data,
        guide,
        preset=options.preset,
        suspect=own or _suspect_recipe(options),
        arch=options.arch,
        scale=options.scale,
        seed=seed,
        device=device,
        folder=out,
    )


def _suspect_recipe(options: ScanOptions) -> SuspectRecipe | None:
    if options.suspect is None:
        return None
    if options.suspect not in SUSPECTS:
        raise InputError(
            f"suspect {options.suspect!r} is unknown; use {', '.join(SUSPECTS)} or checkpoint"
        )
    return SUSPECTS[options.suspect]


def _own_suspect(
    options: ScanOptions, path: Path | None, model: Classifier | None
) -> Classifier | None:
    """Return the user's own model where it is to be the suspect."""
    if options.suspect != "checkpoint":
        _suspect_recipe(options)
        return None
    if path is None:
        raise InputError("--suspect checkpoint needs --model, a model trained on this data")
    return model or load_model(path)


def _scan_settings(
    source: str, data: ImageData, options: ScanOptions, seed: int, device: torch.device
) -> dict[str, Any]:
    return {
        "data": source,
        "fingerprint": data.fingerprint,
        "classes": list(data.classes),
        "size": data.size,
        **options.settings(),
        "seed": seed,
        "device": str(device),
    }


def _card_size(path: Path) -> int | None:
    return load_model(path).card.size if path.is_dir() else None


def _open_model(path: Path, arch: str | None, data: ImageData) -> Classifier:
    if path.is_dir():
        return load_model(path)
    if arch is None:
        raise InputError(f"{path}: a weight file needs --arch, the architecture it belongs to")
    return load_checkpoint(path, ModelCard(arch, data.classes, data.size))


@dataclass(frozen=True)
class _Planted:
    """The attack to measure with."""

    attack: attacks.Attack
    target: int


def _test_data(
    model: Classifier,
    source: str | None,
    data_source: str | None,
    attack_run: Path | None,
    names: Path | None,
) -> tuple[ImageData | None, _Planted | None]:
    if source is None:
        return None, None
    test = _load(source, model.card.size, names)
    check_fit(model, test)
    if attack_run is None and data_source and _is_attack_run(Path(data_source)):
        attack_run = Path(data_source)
    if attack_run is None:
        return test, None
    chosen, manifest = attacks.read_poisoned(attack_run)
    return test, _Planted(chosen, manifest.target)


def _is_attack_run(folder: Path) -> bool:
    return (folder / "poison.json").is_file()


def _truth(source: str, data: ImageData, found: line.Scan) -> dict[str, Any] | None:
    if not _is_attack_run(Path(source)):
        return None
    return measure.ground_truth(data, found, attacks.read_manifest(Path(source)))


def _measure(
    model: Classifier, test: ImageData | None, planted: _Planted | None, device: torch.device
) -> Evaluation:
    if test is None:
        return Evaluation()
    if planted is None:
        return measure.evaluate(model, test, device=device)
    return measure.evaluate(model, test, planted.attack, planted.target, device=device)


def _in_words(measured: Evaluation) -> str:
    parts = {"clean accuracy": measured.ca, "attack success rate": measured.asr}
    told = [f"{title} {value:.1f} %" for title, value in parts.items() if value is not None]
    return ": " + ", ".join(told) if told else ""


def _print_skipped(data: ImageData) -> None:
    if not data.skipped:
        return
    say(f"warning: {len(data.skipped)} images could not be used:")
    for entry in data.skipped[:5]:
        say(f"  {entry.path!r}: {entry.reason}")
    if len(data.skipped) > 5:
        say("  ...; all are listed in result.json and in the report")


def _print_parts(data: ImageData, found: line.Scan) -> None:
    split = found.split
    print(
        f"{len(data)} samples: {len(split.clean)} likely clean, {len(split.triggered)} likely "
        f"poisoned, {len(split.unused)} unused"
    )


def _write_report(out: Path, data: ImageData | None) -> Path:
    from cgd.report import write_report

    return write_report(out, data)
