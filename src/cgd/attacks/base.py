"""What an attack is, the registry of attacks, and the manifest of what was poisoned.

The manifest is ground truth: only evaluation reads it.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgd.data.dataset import ImageData, content_keys
from cgd.errors import InputError
from cgd.files import read_json, read_tensors, write_json, write_tensors

Family = Literal["dirty-label", "clean-label", "clean-image"]

CLEAN_LABEL_SHARE = 0.8
"""A clean-label attack leaves at least a fifth of the target class untouched."""


@dataclass(frozen=True)
class Attack(ABC):
    """A trigger with its parameters.

    A subclass is a frozen dataclass: its fields are the parameters, and a field `state` holds
    tensors that the trigger needs.
    """

    name: ClassVar[str]
    family: ClassVar[Family]
    source: ClassVar[str]

    @abstractmethod
    def trigger(self, images: Tensor) -> Tensor:
        """Put the trigger on uint8 [n, 3, size, size]; returns new images of the same kind."""

    @classmethod
    def parameter_names(cls) -> tuple[str, ...]:
        """Names of the parameters that a user can set."""
        return tuple(f.name for f in fields(cls) if f.name != "state")

    def parameters(self) -> dict[str, Any]:
        """Parameter names and values."""
        return {name: getattr(self, name) for name in self.parameter_names()}


ATTACKS: dict[str, type[Attack]] = {}


def register(attack: type[Attack]) -> type[Attack]:
    """Class decorator: make the attack known under its name."""
    ATTACKS[attack.name] = attack
    return attack


def make_attack(name: str, **parameters: Any) -> Attack:
    """Make an attack by name.

    Raises:
        InputError: no such attack or parameter, or a value it does not accept.

    >>> make_attack("badnets", patch=4).parameters()
    {'patch': 4}
    """
    if name not in ATTACKS:
        raise InputError(f"attack {name!r} is unknown; there are {', '.join(sorted(ATTACKS))}")
    known = ATTACKS[name].parameter_names()
    for key in parameters:
        if key not in known and key != "state":
            raise InputError(f"{name} has no parameter {key!r}; it has {', '.join(known)}")
    return ATTACKS[name](**parameters)


@dataclass(frozen=True)
class Manifest:
    """What was done to a data set: the ground truth that only evaluation may read.

    Attributes:
        attack: name of the attack.
        family: dirty-label, clean-label or clean-image.
        parameters: the attack's parameters.
        rate: poisoned share of all samples that was asked for.
        target: the attacker's class.
        seed: drew the samples.
        poison: rows of the poisoned samples in the poisoned data set, ascending.
        cover: rows of samples that carry the trigger with their true label.
        original_labels: labels of the `poison` samples before the attack.
    """

    attack: str
    family: Family
    parameters: dict[str, Any]
    rate: float
    target: int
    seed: int
    poison: list[int]
    cover: list[int] = field(default_factory=list)
    original_labels: list[int] = field(default_factory=list)

    def poison_rows(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of the poisoned samples in data whose source rows are `index`."""
        return np.flatnonzero(np.isin(index, self.poison))


def poison(
    data: ImageData, attack: Attack, *, rate: float = 0.05, target: int = 0, seed: int = 0
) -> tuple[ImageData, Manifest]:
    """Poison a share of a data set.

    Dirty-label attacks draw from all samples, clean-label attacks from the target class, at most
    80 % of it. Clean-image attacks change labels only.

    Args:
        data: clean data.
        attack: the trigger.
        rate: poisoned share of all samples, in (0, 1].
        target: the class that the trigger shall call up.
        seed: draws the samples.

    Raises:
        InputError: rate or target out of range, or more poison than the class has room for.
    """
    _check(data, rate, target)
    rows = _draw(data, attack, rate, target, np.random.default_rng(seed))
    chosen = torch.from_numpy(rows)
    images = data.images.clone()
    if attack.family != "clean-image":
        images[chosen] = attack.trigger(images[chosen])
    new_labels = data.labels.clone()
    new_labels[chosen] = target
    manifest = Manifest(
        attack=attack.name,
        family=attack.family,
        parameters=attack.parameters(),
        rate=rate,
        target=target,
        seed=seed,
        poison=rows.tolist(),
        original_labels=data.labels[chosen].tolist(),
    )
    poisoned = replace(
        data,
        images=images,
        labels=new_labels,
        # Of what is there now: the originals' keys would tell poison from the rest.
        keys=content_keys(images),
        index=np.arange(len(data)),
        originals=None,
    )
    return poisoned, manifest


def _draw(
    data: ImageData, attack: Attack, rate: float, target: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Draw the rows that may be poisoned, ascending."""
    count = max(1, round(rate * len(data)))
    candidates = np.arange(len(data))
    if attack.family == "clean-label":
        candidates = np.flatnonzero(data.labels.numpy() == target)
        room = int(CLEAN_LABEL_SHARE * len(candidates))
        if count > room:
            raise InputError(
                f"{attack.name}: a rate of {rate} means {count} samples, but class "
                f"{data.classes[target]!r} has room for {room}; lower the rate"
            )
    return np.sort(generator.choice(candidates, count, replace=False))


def _check(data: ImageData, rate: float, target: int) -> None:
    if not 0 < rate <= 1:
        raise InputError(f"rate {rate}: must be above 0 and at most 1")
    if not 0 <= target < len(data.classes):
        raise InputError(f"target {target}: the classes are 0 to {len(data.classes) - 1}")


def write_poisoned(folder: Path, data: ImageData, attack: Attack, manifest: Manifest) -> None:
    """Write `data.parquet`, `trigger.safetensors` (if the trigger has state) and `poison.json`."""
    from cgd.data import write_parquet

    write_parquet(data, folder / "data.parquet")
    state = getattr(attack, "state", None)
    if state:
        write_tensors(folder / "trigger.safetensors", state)
    write_json(folder / "poison.json", asdict(manifest))


def read_manifest(folder: Path) -> Manifest:
    """Read the ground truth of a poisoned data set. For evaluation only.

    Raises:
        InputError: `poison.json` is missing or malformed.
    """
    path = folder / "poison.json"
    record = read_json(path)
    try:
        manifest = Manifest(**record)
    except TypeError as error:
        raise InputError(f"{path}: not a poison manifest ({error})") from error
    if not _is_sound(manifest):
        raise InputError(f"{path}: damaged; run `cgd attack` again")
    return manifest


def _is_sound(manifest: Manifest) -> bool:
    numbers = (manifest.poison, manifest.cover, manifest.original_labels, [manifest.target])
    return (
        isinstance(manifest.attack, str)
        and isinstance(manifest.parameters, dict)
        and all(isinstance(values, list) for values in numbers)
        and all(type(value) is int and value >= 0 for values in numbers for value in values)
        and len(manifest.original_labels) == len(manifest.poison)
    )


def read_poisoned(folder: Path) -> tuple[Attack, Manifest]:
    """Read the attack, with its trigger, and the ground truth. For evaluation only.

    Raises:
        InputError: a file is missing or malformed, or the attack is not registered.
    """
    manifest = read_manifest(folder)
    state = folder / "trigger.safetensors"
    extra = {"state": read_tensors(state)} if state.is_file() else {}
    try:
        return make_attack(manifest.attack, **manifest.parameters, **extra), manifest
    except TypeError as error:
        raise InputError(f"{folder}: attack and parameters do not fit ({error})") from error
