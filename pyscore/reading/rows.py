"""From rows, as the statements of `pyscore.reading.queries` return them, to what readers return."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeAlias

from pyscore.reading import cursors
from pyscore.reading.host import MOMENTS, HostUsers
from pyscore.scores import Explanation, Number, Page, Profile, Signal, UserScore

Row: TypeAlias = Sequence[Any]
Rows: TypeAlias = Sequence[Row]


def number(host: HostUsers, text: str | None) -> Number | None:
    """Return a stored score; None for NULL."""
    return None if text is None else host.score_type.number(text)


def user_score(host: HostUsers, row: Row) -> UserScore:
    """Return a user: id, username, score."""
    user_id, username, score, *_ = row
    return UserScore(user_id, username, number(host, score))


def profile(host: HostUsers, row: Row) -> Profile:
    """Return a profile from a row of `queries.profile`."""
    user_id, username, score, *values = row
    kept = dict(zip(host.profile, values, strict=True))
    return Profile(
        user_id,
        username,
        number(host, score),
        avatar_url=kept.get("avatar_url"),
        headline=kept.get("headline"),
        bio=kept.get("bio"),
        primary_role=kept.get("primary_role"),
        timezone=kept.get("timezone"),
        contact_links=_json(host.profile.get("contact_links"), kept.get("contact_links")),
        created_at=_moment(host.profile.get("created_at"), kept.get("created_at")),
    )


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


def _json(type_name: str | None, text: str | None) -> Any:
    if text is None:
        return None
    try:
        value: Any = json.loads(text, parse_int=_whole)
    except (ValueError, RecursionError):  # no JSON, or deeper than Python reads
        return text
    # whatever JSON there may be in a column of that type; in text only what can be nothing else
    return value if type_name in ("json", "jsonb") or text.lstrip()[:1] == "{" else text


def _whole(digits: str) -> int | Decimal:
    try:
        return int(digits)
    except ValueError:
        return Decimal(digits)


def _moment(type_name: str | None, seconds: str | None) -> datetime | None:
    if seconds is None or type_name not in MOMENTS:
        return None
    try:
        return _EPOCH + timedelta(microseconds=int(Decimal(seconds) * 1_000_000))
    except OverflowError:
        # infinity, or beyond the years of Python's
        return None


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
