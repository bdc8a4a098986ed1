"""How things are said in words: durations, numbers, lists, and what people typed."""

from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def duration(length: timedelta) -> str:
    """Say how long something takes, in whole seconds and at most two units.

    Args:
        length: Not negative; less than a second counts as one.

    Returns:
        For instance ``4 min 10 s``, ``3 h``, ``2 d 5 h``.
    """
    rest = max(1, round(length.total_seconds()))
    place = next(place for place, (seconds, _) in enumerate(_UNITS) if rest >= seconds)
    said: list[str] = []
    for seconds, unit in _UNITS[place : place + 2]:
        count, rest = divmod(rest, seconds)
        if count:
            said.append(f"{count} {unit}")
    return " ".join(said)


def number(value: Decimal | float | None) -> str:
    """Write a score without zeros that say nothing; ``none`` where there is none.

    Args:
        value: As the database holds it.
    """
    if value is None:
        return "none"
    if not Decimal(value).is_finite():
        return str(Decimal(value))  # as PostgreSQL writes it
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def counted(count: int, noun: str) -> str:
    """Say how many there are of something.

    Args:
        count: How many.
        noun: For one; its plural ends with s.
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def printable(text: str) -> str:
    """Replace what would move the cursor, colour the terminal or turn the line around.

    Usernames are chosen by people, and operators read them on a terminal.

    Args:
        text: From the application's tables, or as it was typed.
    """
    return "".join(character if character.isprintable() else "?" for character in text)


def some(names: Sequence[str], most: int = 10) -> str:
    """Name the first few, and say how many more there are.

    Args:
        names: What to name.
        most: How many at most.
    """
    said = ", ".join(names[:most])
    return said if len(names) <= most else f"{said} and {len(names) - most} more"
