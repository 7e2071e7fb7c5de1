"""What a suite asks for, and the cells it consists of."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_origin

from cgd.attacks import ATTACKS
from cgd.errors import InputError
from cgd.presets import PRESETS

NONE = "none"
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
        attacks: names; `none` is the benign case.
        rates: poisoned shares.
        defenses: names of presets; the undefended row is always there.
        seeds: each draws poison, weights and order anew.
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
    guide: str = "stand-in"

    def scenes(self) -> Iterator["Scene"]:
        """Yield what is poisoned how: the benign case first, seed by seed, so that a grid stopped
        half-way has answered its question for the first seeds."""
        for seed in self.seeds:
            yield Scene(NONE, 0.0, seed)
            for rate in self.rates:
                for attack in self.attacks:
                    if attack != NONE:
                        yield Scene(attack, rate, seed)


@dataclass(frozen=True)
class Scene:
    """One poisoned (or benign) training set; all defences share its victim."""

    attack: str
    rate: float
    seed: int

    @property
    def key(self) -> str:
        """Name of the scene in file names."""
        return f"{self.attack}-{self.rate:g}-{self.seed}"


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
    _check(path, "attack", suite.attacks, {*ATTACKS, NONE})
    _check(path, "defense", suite.defenses, set(PRESETS))
    return suite


def _check(path: Path, what: str, wanted: tuple[str, ...], known: set[str]) -> None:
    for name in wanted:
        if name not in known:
            raise InputError(f"{path}: no {what} {name!r}; there are {', '.join(sorted(known))}")
