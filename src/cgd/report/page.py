"""What all pages of a report share."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cgd.report import numbers
from cgd.text import plain

SHOWN_ELSEWHERE = {"classes", "fingerprint", "version"}
"""Entries of `config.json` that are no settings to list."""


def template(name: str) -> Any:
    """Load a template of this folder; what it is given is escaped."""
    environment = Environment(
        loader=PackageLoader("cgd.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = plain
    for written in ("number", "percent", "share", "duration"):
        environment.filters[written] = getattr(numbers, written)
    return environment.get_template(name)
