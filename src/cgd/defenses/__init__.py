"""Other defences, one file each: importing the module registers the defence."""

from cgd.defenses import anp, fp, ft, ftsam, ibau, mcr, nad, nc, rnp  # noqa: F401
from cgd.defenses.base import (
    DEFENSES,
    Defended,
    Defense,
    Repair,
    Scheme,
    Terms,
    make_defense,
    register,
)

__all__ = [
    "DEFENSES",
    "Defended",
    "Defense",
    "Repair",
    "Scheme",
    "Terms",
    "make_defense",
    "register",
]
