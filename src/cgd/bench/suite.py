"""What a suite asks for, and the cells it consists of."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_origin

from cgd.attacks import ATTACKS, Attack, make_attack, read_parameters
from cgd.errors import InputError
from cgd.presets import PRESETS

NONE = "none"
PER_BATCH = "per-batch"
_TOML = {str: "string", int: "integer", bool: "boolean", tuple: "array"}


@dataclass(frozen=True)
class Suite:
    """A grid of cells on one data set.

    Attributes:
        name: of the suite.
        question: what it answers, in one sentence.
        protocol: `small` or `full`.
        dataset: name of the data set in the tables.
        train: training data, relative to the data folder.
        test: test data, relative to the data folder.
        defended: number of training images that may be poisoned.
        trusted: number of other training images that the stand-in guide learns from.
        guide_epochs: passes of the guide over them.
        model: architecture of victims, suspects and the guide.
        epochs: passes of a victim over the defended images.
        flip: mirror images in training.
        attacks: `NAME`, `NAME@RATE` for another rate than those below, then parameters as in
            `blended alpha=0.1`, and `per-batch` for an attacker who controls the training;
            `none` is the benign case.
        rates: poisoned shares.
        defenses: names of presets; the undefended row is always there.
        seeds: each draws poison, weights and order anew.
        target: the attacker's class.
        guide: another guide than the stand-in that is trained on the trusted images.
    """

    name: str
    question: str
    protocol: str
    dataset: str
    train: str
    test: str
    defended: int
    trusted: int
    guide_epochs: int
    model: str
    epochs: int
    flip: bool
    attacks: tuple[str, ...]
    rates: tuple[float, ...]
    defenses: tuple[str, ...]
    seeds: tuple[int, ...]
    target: int = 0
    guide: str = "stand-in"

    def scenes(self) -> Iterator["Scene"]:
        """Yield what is poisoned how: the benign case first, seed by seed, so that a grid stopped
        half-way has answered its question for the first seeds."""
        for seed in self.seeds:
            yield Scene(NONE, 0.0, seed)
            for rate in self.rates:
                for entry in self.attacks:
                    if entry != NONE and ("@" not in entry or rate == self.rates[0]):
                        yield read_scene(entry, rate, seed)


@dataclass(frozen=True)
class Scene:
    """One poisoned (or benign) training set; all defences share its victim.

    Attributes:
        attack: name, or `none`.
        rate: poisoned share.
        seed: draws poison, weights and order.
        settings: parameters of the attack as KEY=VALUE.
        per_batch: the attacker controls the training and poisons every batch anew.
    """

    attack: str
    rate: float
    seed: int
    settings: tuple[str, ...] = ()
    per_batch: bool = False

    @property
    def title(self) -> str:
        """Name of the attack with its settings, for tables."""
        return " ".join([self.attack, *self.settings, *([PER_BATCH] if self.per_batch else [])])

    @property
    def key(self) -> str:
        """Name of the scene in file names."""
        return f"{self.title.replace(' ', '-').replace('/', '_')}-{self.rate:g}-{self.seed}"

    def make_attack(self) -> Attack:
        """Make the attack."""
        return make_attack(self.attack, **read_parameters(self.attack, self.settings))


def read_scene(entry: str, rate: float, seed: int) -> Scene:
    """Read an entry of `Suite.attacks`.

    Raises:
        InputError: no such attack or parameter, or no such rate.

    >>> read_scene("blended@0.1 alpha=0.1", 0.05, 0)
    Scene(attack='blended', rate=0.1, seed=0, settings=('alpha=0.1',), per_batch=False)
    """
    words = entry.split()
    name, _, own_rate = words[0].partition("@") if words else ("", "", "")
    if name not in {*ATTACKS, NONE}:
        raise InputError(f"no attack {name!r}; there are {', '.join(sorted({*ATTACKS, NONE}))}")
    settings = tuple(word for word in words[1:] if word != PER_BATCH)
    try:
        scene = Scene(name, float(own_rate or rate), seed, settings, PER_BATCH in words)
    except ValueError as error:
        raise InputError(f"{entry!r}: the rate after @ must be a number") from error
    if name != NONE:
        scene.make_attack()
    return scene


def read_suite(path: Path) -> Suite:
    """Read a suite.

    Raises:
        InputError: the file cannot be read or asks for what there is not.
    """
    try:
        record: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: not valid TOML ({error})") from error
    known = {field.name for field in fields(Suite)}
    if unknown := set(record) - known:
        raise InputError(f"{path}: unknown settings {', '.join(sorted(unknown))}")
    lists = {key: tuple(value) for key, value in record.items() if isinstance(value, list)}
    try:
        suite = Suite(**{**record, **lists})
    except TypeError as error:
        raise InputError(f"{path}: {error}") from error
    for field in fields(Suite):
        value = getattr(suite, field.name)
        kind: type = get_origin(field.type) or field.type  # type: ignore[assignment]
        if not isinstance(value, kind):
            raise InputError(f"{path}: {field.name} must be of type {_TOML[kind]}, not {value!r}")
    try:
        list(suite.scenes())
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    for name in suite.defenses:
        if name not in PRESETS:
            raise InputError(f"{path}: no defense {name!r}; there are {', '.join(sorted(PRESETS))}")
    return suite
