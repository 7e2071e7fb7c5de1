"""A scene: one poisoned (or benign) training set and its victim."""

import re
from dataclasses import dataclass, replace

from cgd.attacks import ATTACKS, Attack, make_attack, read_parameters
from cgd.errors import InputError

NONE = "none"
GIVEN = "given"
PER_BATCH = "per-batch"
AMONG = ("guide-wrong", "guide-target")


@dataclass(frozen=True)
class Scene:
    """What is poisoned how; all guides and defences share its victim.

    Attributes:
        attack: name, or `none`.
        rate: poisoned share.
        seed: draws poison, weights and order.
        settings: parameters of the attack as KEY=VALUE.
        per_batch: the attacker controls the training and poisons every batch anew.
        target: the attacker's class.
        names_target: the attack names its target, instead of taking that of the grid.
        among: which samples the attacker may poison: all (empty), `class:NUMBER`, `guide-wrong`
            (the guide already contradicts their label) or `guide-target` (it takes them for the
            target).
        model: architecture of the victim.
        labels: `given`, or where other labels come from.
    """

    attack: str
    rate: float
    seed: int
    settings: tuple[str, ...] = ()
    per_batch: bool = False
    target: int = 0
    names_target: bool = False
    among: str = ""
    model: str = "small_resnet"
    labels: str = GIVEN

    @property
    def title(self) -> str:
        """Name of the attack with its settings, for tables."""
        extra = [f"among={self.among}"] if self.among else []
        extra += [f"target={self.target}"] if self.names_target else []
        extra += [PER_BATCH] if self.per_batch else []
        return " ".join([self.attack, *self.settings, *extra])

    @property
    def key(self) -> str:
        """Name of the scene, for files and messages."""
        return f"{self.model} {self.labels} {self.title} {self.rate:g} {self.seed}"

    @property
    def source_class(self) -> int | None:
        """The class that alone is attacked, or None for all."""
        return int(self.among.partition(":")[2]) if self.among.startswith("class:") else None

    def make_attack(self) -> Attack:
        """Make the attack."""
        return make_attack(self.attack, **read_parameters(self.attack, self.settings))


def read_scene(entry: str, rate: float, benign: Scene) -> Scene:
    """Read an attack of a suite: a name, perhaps its rate, parameters, and circumstances.

    Args:
        entry: `NAME[@RATE] [KEY=VALUE ...]`; beside the attack's own parameters there are
            `target=NUMBER`, `among=class:NUMBER|guide-wrong|guide-target` and `per-batch`.
        rate: where the entry names none.
        benign: gives seed, model, labels, and the target where the entry names none.

    Raises:
        InputError: no such attack or parameter, or no such rate.

    >>> read_scene("blended@0.1 alpha=0.1", 0.05, Scene(NONE, 0.0, seed=0)).settings
    ('alpha=0.1',)
    """
    words = entry.split()
    name, _, own_rate = words[0].partition("@") if words else ("", "", "")
    if name not in {*ATTACKS, NONE}:
        raise InputError(f"no attack {name!r}; there are {', '.join(sorted({*ATTACKS, NONE}))}")
    target, among, settings = "", "", []
    for word in words[1:]:
        key, _, value = word.partition("=")
        if key == "target":
            target = value
        elif key == "among":
            among = value
        elif word != PER_BATCH:
            settings.append(word)
    if among and among not in AMONG and not re.fullmatch(r"class:\d+", among):
        raise InputError(f"{entry!r}: among must be class:NUMBER, {' or '.join(AMONG)}")
    try:
        numbers = float(own_rate or rate), int(target or benign.target)
    except ValueError as error:
        raise InputError(f"{entry!r}: the rate after @ and the target must be numbers") from error
    scene = replace(
        benign,
        attack=name,
        rate=numbers[0],
        settings=tuple(settings),
        per_batch=PER_BATCH in words,
        target=numbers[1],
        names_target=bool(target),
        among=among,
    )
    if name != NONE:
        scene.make_attack()
    return scene
