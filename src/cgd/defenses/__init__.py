"""Other defences, one file each: importing the module registers the defence."""

from cgd.defenses import (  # noqa: F401
    abl,
    ac,
    anp,
    asd,
    clp,
    d_br,
    d_st,
    dbd,
    ep,
    fp,
    ft,
    ftsam,
    ibau,
    mcr,
    nab,
    nad,
    nc,
    retrain,
    rnp,
    scan,
    ss,
    strip,
)
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
