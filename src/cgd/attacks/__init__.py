"""Data-poisoning attacks, one file each: importing the module registers the attack."""

from cgd.attacks import badnets, blended, sig  # noqa: F401
from cgd.attacks.base import (
    ATTACKS,
    Attack,
    Manifest,
    make_attack,
    poison,
    read_manifest,
    read_poisoned,
    register,
    write_poisoned,
)

__all__ = [
    "ATTACKS",
    "Attack",
    "Manifest",
    "make_attack",
    "poison",
    "read_manifest",
    "read_poisoned",
    "register",
    "write_poisoned",
]
