"""Text from elsewhere, made safe to show: names, paths, messages of libraries."""

import re

LONGEST = 120
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def plain(value: object, longest: int = LONGEST) -> str:
    """Make a name or path safe to look at: one line, no invisible or reordering characters.

    Escaping for HTML comes later, in the template.

    >>> plain("a\\nb\\u202ec")
    'a\\\\nb\\\\u202ec'
    >>> plain("x" * 200, 9)
    'xxxx…xxxx'
    """
    text = str(value)
    if len(text) > longest:
        half = (longest - 1) // 2
        text = f"{text[:half]}…{text[-half:]}"
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def printable(name: str) -> str:
    r"""Replace control characters and undecodable bytes, which could spoil a terminal or a file.

    >>> printable("caf\udce9 \x1b[2J")
    'caf? ?[2J'
    """
    return _UNPRINTABLE.sub("?", name)


def first_line(error: Exception) -> str:
    """Return the first line of a message, or the kind of error where there is none.

    >>> first_line(ValueError("a\\nb")), first_line(ValueError())
    ('a', 'ValueError')
    """
    return (str(error).splitlines() or [type(error).__name__])[0]
