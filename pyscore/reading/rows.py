"""From rows, as the statements of `pyscore.reading.queries` return them, to what readers return."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, TypeAlias

from pyscore.reading import cursors
from pyscore.reading.host import HostUsers
from pyscore.scores import Explanation, Number, Page, Signal, UserScore

Row: TypeAlias = Sequence[Any]
Rows: TypeAlias = Sequence[Row]


def number(host: HostUsers, text: str | None) -> Number | None:
    """Return a stored score; None for NULL."""
    return None if text is None else host.score_type.number(text)


def user_score(host: HostUsers, row: Row) -> UserScore:
    """Return a user: id, username, score."""
    user_id, username, score, *_ = row
    return UserScore(user_id, username, number(host, score))


def page(host: HostUsers, rows: Rows, limit: int) -> Page:
    """Return a page.

    Args:
        host: The host's users.
        rows: Of `queries.ranking`, asked for one more than the page holds.
        limit: How many the page holds.
    """
    entries = tuple(user_score(host, row) for row in rows[:limit])
    if len(rows) <= limit:
        return Page(entries, None)
    *_, exact_score, id_text = rows[limit - 1]
    place = cursors.Position(host.score_type.exact_text(exact_score), id_text)
    return Page(entries, cursors.encode(place, host.id_type))


def explanation(host: HostUsers, rows: Rows) -> Explanation:
    """Return an explanation from the rows of `queries.explanation`, one at least."""
    who = user_score(host, rows[0])
    signals = tuple(
        Signal(name, _raw(raw), float(points), float(max_points))
        for _, _, _, name, raw, points, max_points in rows
    )
    return Explanation(who.user_id, who.username, who.score, signals)


def _raw(text: str) -> Number:
    exact = Decimal(text)
    return int(exact) if exact == exact.to_integral_value() else float(exact)
