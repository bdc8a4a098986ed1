"""How the page says things: points, amounts, lists, and names that people chose."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

LONGEST_NAME = 60

_JOINERS = "\u200c\u200d"
"""Cf, as what turns a line around is, but parts of words and of emoji."""


def short(value: float) -> str:
    """Write points: one decimal at most.

    Args:
        value: Points.
    """
    text = f"{value:,.1f}"
    return text.removesuffix(".0")


def points_of(value: float) -> str:
    """Write how many points, with the word."""
    text = short(value)
    return f"{text} point" if text == "1" else f"{text} points"


def amount(count: float, one: str, many: str | None = None) -> str:
    """Write how many there are of something.

    Args:
        count: A whole number.
        one: The noun for one.
        many: For more; without it, with an s.
    """
    return f"{count:,.0f} {one if count == 1 else many or one + 's'}"


def either(names: Sequence[str]) -> str:
    """List what is the case for one or the other."""
    return _listed(names, "or")


def quoted(names: Sequence[str]) -> list[str]:
    """Put names that an application chose between quotation marks."""
    return [f"“{shown(name)}”" for name in names]


def those(names: Sequence[str], *, lower: bool = False) -> str:
    """List what belongs together, with a capital unless lower."""
    text = _listed([shown(name) for name in names], "and")
    return text if lower else text[:1].upper() + text[1:]


def shown(name: str) -> str:
    """Take out of a name what would turn the line around or is not there to be seen; shorten it.

    Args:
        name: As people chose it; of any length.
    """
    cut = name[: LONGEST_NAME * 4]
    kept = "".join(
        letter
        if letter in _JOINERS or unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Co", "Cn")
        else "\ufffd"
        for letter in cut
    )
    return kept if len(name) <= LONGEST_NAME else f"{kept[:LONGEST_NAME].rstrip()}…"


def _listed(names: Sequence[str], word: str) -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {word} {names[-1]}"
