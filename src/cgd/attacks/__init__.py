"""Data-poisoning attacks, one file each: importing the module registers the attack."""

from cgd.attacks import badnets, blended, input_aware, lf, sig, ssba, trojannn  # noqa: F401
from cgd.attacks.base import (
    ATTACKS,
    Attack,
    choose,
    make_attack,
    planted,
    planter,
    poison,
    register,
)
from cgd.attacks.manifest import Manifest, read_manifest
from cgd.attacks.storing import read_poisoned, write_poisoned

__all__ = [
    "ATTACKS",
    "Attack",
    "Manifest",
    "choose",
    "make_attack",
    "planted",
    "planter",
    "poison",
    "read_manifest",
    "read_poisoned",
    "register",
    "write_poisoned",
]
