"""Settings by name: a dataclass, perhaps of dataclasses, with some of them changed."""

import inspect
import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

from cgd.errors import InputError

_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


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
    old = known[name]
    value = changed(old, rest, text, whole) if rest else read_value(old, text, whole)
    if isinstance(value, int | float) and value < 0:
        raise InputError(f"{whole}: must be zero or more")
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


def read_value(old: Any, text: str, whole: str) -> Any:
    """Read a value in the type of another one.

    Raises:
        InputError: it is of another type, or not finite.
    """
    try:
        value: Any
        if isinstance(old, bool):
            value = _TRUTH[text.lower()]
        elif isinstance(old, tuple):
            value = tuple(float(number) for number in text.split(",") if number)
        else:
            value = type(old)(text)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{whole}: {text!r} is not of type {type(old).__name__}") from error
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise InputError(f"{whole}: must be finite")
    return value
