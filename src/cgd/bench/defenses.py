"""A defence of a suite: a preset, perhaps with some of its settings changed."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

from cgd.errors import InputError
from cgd.presets import PRESETS, Preset
from cgd.suspect import SUSPECTS

VICTIM = "victim"


@dataclass(frozen=True)
class Defense:
    """A way to repair a victim.

    Attributes:
        title: as the suite names it.
        preset: its settings.
        own_suspect: the victim itself is the suspect.
    """

    title: str
    preset: Preset
    own_suspect: bool = False


def read_defense(entry: str) -> Defense:
    """Read a defence of a suite.

    Args:
        entry: name of a preset, then settings of it as PATH=VALUE, and `suspect=NAME` for another
            suspect: a recipe, or `victim`.

    Raises:
        InputError: no such preset or setting.

    >>> read_defense("released split.s1=0.3 unlearning.a=0").preset.unlearning.a
    0.0
    """
    name, *words = entry.split() or [""]
    if name not in PRESETS:
        raise InputError(f"no defense {name!r}; there are {', '.join(sorted(PRESETS))}")
    preset, own_suspect = PRESETS[name], False
    for word in words:
        path, _, text = word.partition("=")
        if path == "suspect" and text == VICTIM:
            own_suspect = True
        elif path == "suspect":
            if text not in SUSPECTS:
                known = ", ".join((*SUSPECTS, VICTIM))
                raise InputError(f"{word}: there is no suspect {text!r}; there are {known}")
            preset = replace(preset, suspect=SUSPECTS[text])
        else:
            preset = changed(preset, path, text, word)
    return Defense(entry, preset, own_suspect)


def changed(settings: Any, path: str, text: str, whole: str) -> Any:
    """Return settings with one of them changed.

    Args:
        settings: a dataclass, perhaps of dataclasses; or a function, whose keywords can be set.
        path: names, joined by dots.
        text: the new value, read in the type of the old one.
        whole: what to name in errors.

    Raises:
        InputError: no such setting, or a value of another type.
    """
    name, _, rest = path.partition(".")
    known = _settings_of(settings)
    if name not in known:
        raise InputError(f"{whole}: there is no setting {name!r}; there are {', '.join(known)}")
    value = changed(known[name], rest, text, whole) if rest else _read(known[name], text, whole)
    choices = _choices(settings, name)
    if choices and value not in choices:
        raise InputError(f"{whole}: {name} must be {' or '.join(choices)}")
    if is_dataclass(settings):
        return replace(settings, **{name: value})  # type: ignore[type-var]
    return partial(settings, **{name: value})


def _settings_of(settings: Any) -> dict[str, Any]:
    if is_dataclass(settings):
        return {field.name: getattr(settings, field.name) for field in fields(settings)}
    if callable(settings):
        function: Callable[..., Any] = settings
        parameters = inspect.signature(function).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not p.empty}
    return {}


def _choices(settings: Any, name: str) -> tuple[str, ...]:
    """The words that a setting may be, where its type names them."""
    kind = get_type_hints(type(settings)).get(name) if is_dataclass(settings) else None
    return get_args(kind) if get_origin(kind) is Literal else ()


def _read(old: Any, text: str, whole: str) -> Any:
    try:
        if isinstance(old, bool):
            return {"true": True, "false": False}[text]
        if isinstance(old, tuple):
            return tuple(float(number) for number in text.split(",") if number)
        return type(old)(text)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{whole}: {text!r} is not of type {type(old).__name__}") from error
