"""Data-poisoning attacks, one file each: importing the module registers the attack."""

from cgd.attacks import (  # noqa: F401
    adaptive_blend,
    adaptive_patch,
    badnets,
    blended,
    bpp,
    ctrl,
    flip,
    ftrojan,
    gcb,
    input_aware,
    lc,
    lf,
    narcissus,
    sig,
    ssba,
    trojannn,
    wanet,
)
from cgd.attacks.base import (
    ATTACKS,
    Attack,
    choose,
    make_attack,
    planted,
    planter,
    poison,
    read_parameters,
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
    "read_parameters",
    "read_poisoned",
    "register",
    "write_poisoned",
]
