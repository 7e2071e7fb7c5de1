"""How values are written in the report."""

MISSING = "–"


def number(value: float) -> str:
    """Write a count.

    >>> number(1297)
    '1,297'
    """
    return f"{value:,.0f}"


def percent(value: float | None, digits: int = 1) -> str:
    r"""Write percent, or a dash where nothing was measured.

    >>> percent(97.123), percent(None)
    ('97.1\xa0%', '–')
    """
    return MISSING if value is None else f"{value:.{digits}f}\xa0%"


def share(part: float, whole: float) -> str:
    r"""Write a part of a whole in percent; a small part is never rounded to nothing.

    >>> share(1, 3), share(1, 100000), share(0, 3)
    ('33.3\xa0%', '<\xa00.1\xa0%', '0.0\xa0%')
    """
    value = 100 * part / whole if whole else 0.0
    return "<\xa00.1\xa0%" if 0 < value < 0.05 else percent(value)


def duration(seconds: float) -> str:
    """Write a time span.

    >>> duration(3.21), duration(75), duration(7320)
    ('3.2 s', '1 min 15 s', '2 h 2 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
