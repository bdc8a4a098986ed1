"""How the queue and its worker are, for operators."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pyscore.cli.looking import Look
from pyscore.cli.problems import find_problems
from pyscore.cli.wording import counted, duration

_PRIORITIES = {0: "high", 10: "medium", 20: "low"}


@dataclass(frozen=True, slots=True)
class Waiting:
    """What of one priority is queued.

    Attributes:
        priority: Its name.
        rows: How many rows there are.
        due: How many of them are due.
        oldest: How long the oldest due one has waited; empty where none is due.
    """

    priority: str
    rows: int
    due: int
    oldest: str


@dataclass(frozen=True, slots=True)
class Health:
    """How everything is.

    Attributes:
        problems: What needs a person, each with what to do.
        facts: Names, each with how it is.
        queue: By priority, the highest first.
    """

    problems: tuple[tuple[str, str], ...]
    facts: tuple[tuple[str, str], ...]
    queue: tuple[Waiting, ...]


def health(seen: Look) -> Health:
    """Put a look into words.

    Args:
        seen: As `pyscore status` takes it.
    """
    row = seen.health
    facts = {
        "Worker": _worker(row),
        "Last heard of": _ago(row["heartbeat_age"]),
        "Recalculated": f"{row['recalculated_per_second']:,.1f} a second at present, "
        f"{row['recalculated'] or 0:,} so far; {row['changed'] or 0:,} scores changed",
        "Everyone": _backfill(seen),
        "Trying again": counted(row["retrying"], "user"),
        "Given up": counted(row["dead_letters"], "user"),
    }
    return Health(
        tuple((problem.what, problem.advice) for problem in find_problems(seen)),
        tuple((name, said) for name, said in facts.items() if said is not None),
        tuple(
            Waiting(
                _PRIORITIES[one["priority"]],
                one["queue_depth"],
                one["due_now"],
                "" if one["oldest_due_age"] is None else duration(one["oldest_due_age"]),
            )
            for one in seen.queue
        ),
    )


def _worker(row: dict[str, Any]) -> str:
    said = {"pg_cron": "run by pg_cron", "worker": "kept running by pyscore worker"}
    return said.get(row["scheduler"], "none")


def _ago(age: timedelta | None) -> str:
    return "never" if age is None else f"{duration(age)} ago"


def _backfill(seen: Look) -> str | None:
    walk = seen.backfill
    if walk is None:
        return None
    total = f" of about {walk['estimated_total']:,}" if walk["estimated_total"] else ""
    return f"being gone through: {walk['seen']:,}{total} users seen"
