"""``pyscore explain``: why a score is what it is, and what is about to change it."""

import shlex
from collections import Counter
from datetime import datetime
from typing import Any

import click
from psycopg import Connection, IsolationLevel
from psycopg.rows import DictRow
from rich.table import Table
from rich.text import Text

from pyscore import drawing
from pyscore.cli.console import console
from pyscore.cli.options import dsn_option, installed, json_option, print_json
from pyscore.cli.users import find_users
from pyscore.cli.wording import counted, duration, number, printable
from pyscore.scores import TIERS, Tier, tier_of

_SIGNALS = """
select e.signal, e.raw, e.points, e.max_points
from builder_score.explain(%s::text::builder_score.user_id)
    with ordinality as e(signal, raw, points, max_points, place)
order by e.place
"""

_STANDING = """
select u.id::text as user_id, u.username, u.builder_score::numeric as score,
       now.points, round(now.points, h.score_decimals) as score_now,
       s.computed_at, s.previous_score, coalesce(s.attempts, 0) as attempts, s.retry_at,
       v.standing, to_jsonb(d) - 'user_id' as dead_letter,
       g.debounce_window, s.computed_at + g.debounce_window as window_ends_at, g.refresh_after,
       g.paused, g.paused_reason, builder_score.scheduler() as scheduler,
       clock_timestamp() as looked_at
from builder_score.host_users as u
cross join builder_score.settings as g
cross join builder_score.host as h
cross join lateral (
    select round(least(greatest(sum(e.points), 0), 100)::numeric, 6) as points
    from builder_score.explain(u.id::builder_score.user_id) as e
) as now
left join builder_score.score_state as s on s.user_id = u.id
left join builder_score.score_dead_letter as d on d.user_id = u.id
left join lateral builder_score.verify(array[u.id]::builder_score.user_id[]) as v on true
where u.id = %s::text::builder_score.user_id
"""

_PENDING = "select * from builder_score.pending(%s::text::builder_score.user_id)"

PRIORITIES = {0: "high priority", 10: "medium priority", 20: "low priority"}


@click.command()
@click.argument("user")
@dsn_option
@json_option
def explain(user: str, dsn: str | None, as_json: bool) -> None:
    """Show why a score is what it is.

    USER is an id or a username; what is an id of somebody's is never taken for a username. Shows
    the five signals and what each is worth now, when the score was computed, and what is queued
    that will compute it again. Ids are text in JSON, whatever their type.
    """
    with installed(dsn) as connection:
        result = look(connection, user)
    if as_json:
        print_json(result)
    else:
        _print(result)


def look(connection: Connection[DictRow], user: str) -> dict[str, Any]:
    """Gather what there is to say about one user, as of one moment.

    Args:
        connection: From `pyscore.cli.options.installed`.
        user: An id or a username.

    Raises:
        UnknownUserError: There is no such user.
    """
    # one snapshot, so that a batch which commits meanwhile makes no contradiction
    connection.isolation_level = IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    with connection.transaction():
        (found,) = find_users(connection, [user])
        signals = connection.execute(_SIGNALS, [found.user_id]).fetchall()
        pending = connection.execute(_PENDING, [found.user_id]).fetchall()
        standing = connection.execute(_STANDING, [found.user_id]).fetchone() or {}
    score = standing["score"]
    return {
        "user": user,
        **standing,
        "tier": None if score is None else _as_dict(tier_of(float(score))),
        "due_at": min((row["due_at"] for row in pending), default=None),
        "signals": signals,
        "pending": pending,
    }


def _as_dict(tier: Tier) -> dict[str, Any]:
    return {"number": tier.number, "of": len(TIERS), "low": tier.low, "high": tier.high}


def _print(result: dict[str, Any]) -> None:
    screen = console()
    name = printable(result["username"] or result["user_id"])
    screen.print(f"{name}: {_headline(result)}", markup=False, style="bold")
    screen.print()
    screen.print(
        drawing.explanation(
            [
                (row["signal"], row["raw"], row["points"], row["max_points"])
                for row in result["signals"]
            ],
            ascii_only=screen.options.ascii_only,
            total=float(result["points"]),
        )
    )
    screen.print()
    facts = Table(box=None, pad_edge=False, show_header=False)
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for label, text in _facts(result):
        facts.add_row(label, Text(text))
    screen.print(facts)


def _headline(result: dict[str, Any]) -> str:
    if result["score"] is None:
        return "no score yet"
    tier = tier_of(float(result["score"]))
    return f"{number(result['score'])}, tier {tier} ({tier.number} of {len(TIERS)})"


def _facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Say what there is to know beside the signals, the label of each first."""
    now: datetime = result["looked_at"]
    facts = [("id", result["user_id"]), ("computed", _computed(result, now))]
    if result["score_now"] != result["score"]:
        facts.append(("now", f"it would be {number(result['score_now'])}{_why_not_yet(result)}"))
    facts += [("queued", said) for said in _queued(result["pending"], now) or ["nothing"]]
    if result["pending"]:
        facts.append(("due", _due(result, now)))
    if result["dead_letter"]:
        facts.append(("given up", _given_up(result, now)))
    if result["paused"]:
        reason = printable(result["paused_reason"] or "no reason given")
        facts.append(("paused", f"{reason}; go on with: pyscore resume"))
    return facts


def _computed(result: dict[str, Any], now: datetime) -> str:
    at: datetime | None = result["computed_at"]
    if at is None:
        return "never"
    said = f"{duration(now - at)} ago, {at:%Y-%m-%d %H:%M:%S %Z}"
    before = result["previous_score"]
    if before is None:
        return said
    # many a recomputation since then may have changed nothing
    return f"{said}; before its last change it was {number(before)}"


def _why_not_yet(result: dict[str, Any]) -> str:
    """Say why what is stored is not what would be computed now."""
    command = f"pyscore recompute {shlex.quote(result['user'])}"
    if result["pending"]:
        return "; what is queued will see to it"
    if result["standing"] == "dead letter":
        return ""
    if result["standing"] == "wrong":
        return f", and nothing is queued: that should not be. Mend it with: {command}"
    # right when it was computed, and nothing has happened since: the account has aged
    return (
        f": the account is older now. Ages are counted in once a score is "
        f"{duration(result['refresh_after'])} old; at once with: {command}"
    )


def _queued(pending: list[DictRow], now: datetime) -> list[str]:
    """Say what is queued, most urgent first, like rows together."""
    counted = Counter((row["priority"], row["reason"], row["stands_for"]) for row in pending)
    first: dict[tuple[Any, ...], datetime] = {}
    for row in pending:
        key = (row["priority"], row["reason"], row["stands_for"])
        first[key] = min(first.get(key, row["enqueued_at"]), row["enqueued_at"])
    said: list[str] = []
    for key, count in counted.items():
        priority, reason, stands_for = key
        parts = [printable(reason)]
        if stands_for != "user":
            parts.append(
                {"project": "for a project of theirs", "everyone": "for everyone"}[stands_for]
            )
        if count > 1:
            parts.append(f"{count:,} times")
        parts.append(PRIORITIES[priority])
        since = "the first " if count > 1 else ""
        parts.append(f"{since}{duration(now - first[key])} ago")
        said.append(", ".join(parts))
    return said


def _due(result: dict[str, Any], now: datetime) -> str:
    at: datetime = result["due_at"]
    if at > now:
        return f"in {duration(at - now)}{_what_delays(result)}"
    if result["paused"]:
        return "now, but paused"
    if result["scheduler"] == "none":
        return "now, but nothing runs the worker: pyscore status"
    return "now"


def _what_delays(result: dict[str, Any]) -> str:
    if result["due_at"] == result["retry_at"]:
        return f": {counted(result['attempts'], 'failed attempt')} so far (backoff)"
    if result["due_at"] == result["window_ends_at"]:
        return f": at most one computation in {duration(result['debounce_window'])} (debounce)"
    return ""


def _given_up(result: dict[str, Any], now: datetime) -> str:
    letter = result["dead_letter"]
    at = datetime.fromisoformat(letter["last_failed_at"])
    return (
        f"after {counted(letter['attempts'], 'attempt')}, {duration(now - at)} ago: "
        f"{letter['sqlstate']} {printable(letter['message'])}. "
        f"Tried anew at the next event, or with: pyscore dead-letter retry "
        f"{shlex.quote(result['user'])}"
    )
