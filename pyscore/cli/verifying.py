"""Compares stored scores with what builder_score.verify() computes, and repairs them.

And what ranks rest on, how many people are counted to have each score, with how many have it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Literal, TypeAlias

import psycopg
from psycopg import Connection
from psycopg.rows import DictRow

from pyscore.cli.wording import number
from pyscore.errors import PyscoreError, from_database

BATCH = 1000
"""Users in one statement: its snapshot lives for some hundredths of a second."""

LOCK_TIMEOUT = "1s"

Standing: TypeAlias = Literal["wrong", "failing", "dead letter", "pending"]

_VERIFY = """
    select v.user_id::text as user_id, u.username, v.stored, v.computed, v.computed_at, v.standing,
           coalesce(d.sqlstate || ': ' || d.message, '') as message
    from builder_score.verify(%s::text[]::builder_score.user_id[]) as v
    left join lateral (
        select h.username from builder_score.host_users as h where h.id = v.user_id limit 1
    ) as u on true
    left join builder_score.score_dead_letter as d
        on v.standing = 'dead letter' and d.user_id = v.user_id
"""

_LOOK_UP = """
    select u.username, u.builder_score::numeric as stored, s.computed_at
    from builder_score.host_users as u
    left join builder_score.score_state as s on s.user_id = u.id
    where u.id = %s::text::builder_score.user_id
"""

_FIRST = """
    select u.id::text as user_id from builder_score.host_users as u order by u.id limit %(batch)s
"""

_NEXT = """
    select u.id::text as user_id from builder_score.host_users as u
    where u.id > %(after)s::text::builder_score.user_id order by u.id limit %(batch)s
"""

_SAMPLE = """
    select u.id::text as user_id from builder_score.host_users as u order by random() limit %s
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """A user whose stored score is not what compute says, or for whom compute raises.

    Attributes:
        user_id: users.id, as text.
        username: None where the host has no such column.
        stored: What the column holds.
        computed: What it should hold; None for a user who is failing.
        computed_at: The last recalculation; the account's age counts up to then.
        standing: pending (something is queued that will mend it), dead letter, wrong, or failing.
        message: The SQLSTATE and message of what is in the way: what compute raised for a user who
            is failing, the last failure of a dead letter; else "".
    """

    user_id: str
    username: str | None
    stored: Decimal | None
    computed: Decimal | None
    computed_at: datetime | None
    standing: Standing
    message: str = ""


@dataclass
class Findings:
    """What a walk has found so far.

    Attributes:
        checked: Users looked at.
        counts: How many by standing.
        details: The findings themselves; of the pending ones, of whom a backfill makes millions,
            the first few.
        most_pending: How many those are; None keeps all.
    """

    most_pending: int | None
    checked: int = 0
    counts: Counter[Standing] = field(default_factory=Counter[Standing])
    details: list[Finding] = field(default_factory=list[Finding])

    def add(self, checked: int, found: Sequence[Finding]) -> None:
        """Count one more batch."""
        self.checked += checked
        for finding in found:
            self.counts[finding.standing] += 1
            if (
                finding.standing != "pending"
                or self.most_pending is None
                or self.counts["pending"] <= self.most_pending
            ):
                self.details.append(finding)

    def of(self, standing: Standing) -> list[Finding]:
        """Give the findings of one standing."""
        return [finding for finding in self.details if finding.standing == standing]

    def replace(self, standing: Standing, found: Sequence[Finding]) -> None:
        """Put what was found later in the place of all findings of a standing."""
        self.details = [finding for finding in self.details if finding.standing != standing]
        del self.counts[standing]
        self.add(0, found)

    @property
    def right(self) -> int:
        """How many scores are what they should be."""
        return self.checked - self.counts.total()

    @property
    def healthy(self) -> bool:
        """Whether all is right, or will be without anybody's doing."""
        return self.counts.total() == self.counts["pending"]


@dataclass(frozen=True, slots=True)
class Repair:
    """What was done about a wrong score.

    Attributes:
        user_id: users.id, as text.
        username: None where the host has no such column.
        old: What the column held.
        new: What was written; None when it was enqueued.
        queued: Whether it was enqueued instead, because somebody held the row.
    """

    user_id: str
    username: str | None
    old: Decimal | None
    new: Decimal | None
    queued: bool = False

    def __str__(self) -> str:
        name = self.username or self.user_id
        if self.queued:
            return f"{name}: queued, since somebody holds the row"
        return f"{name}: {number(self.old)} -> {number(self.new)}"


@dataclass(frozen=True, slots=True)
class Miscount:
    """A score that not so many people have as are counted to have it.

    Attributes:
        score: The score.
        counted: How many people are counted to have it.
        people: How many have it.
    """

    score: Decimal
    counted: int
    people: int

    def __str__(self) -> str:
        return f"{number(self.score)}: counted {self.counted:,}, {self.people:,} have it"


def miscounts(connection: Connection[DictRow]) -> list[Miscount]:
    """Compare how many people are counted to have each score with how many have it.

    Args:
        connection: As `pyscore.cli.options.installed` gives it.
    """
    rows = connection.execute("select * from builder_score.verify_score_counts()").fetchall()
    return [Miscount(**row) for row in rows]


def recount(connection: Connection[DictRow]) -> None:
    """Count anew how many people have each score.

    Args:
        connection: To a server that can be written.
    """
    connection.execute("select builder_score.repair_score_counts()")


def batches(connection: Connection[DictRow], sample: int | None) -> Generator[list[str]]:
    """Give the ids of everyone in order, or of some users at random, a batch at a time.

    Args:
        connection: As `pyscore.cli.options.installed` gives it.
        sample: How many users; None: all.
    """
    if sample is not None:
        rows = connection.execute(_SAMPLE, [sample]).fetchall()
        for start in range(0, len(rows), BATCH):
            yield [row["user_id"] for row in rows[start : start + BATCH]]
        return
    rows = connection.execute(_FIRST, {"batch": BATCH}).fetchall()
    while rows:
        ids = [row["user_id"] for row in rows]
        yield ids
        if len(ids) < BATCH:
            return
        rows = connection.execute(_NEXT, {"batch": BATCH, "after": ids[-1]}).fetchall()


def verify_batch(connection: Connection[DictRow], ids: Sequence[str]) -> list[Finding]:
    """Compare some users' scores, in one statement; where that raises, find out for whom.

    Args:
        connection: Every statement is a transaction of its own.
        ids: Users' ids, as text.

    Raises:
        psycopg.Error: What is nobody's fault: the connection, a lock, a full disk.
    """
    try:
        rows = connection.execute(_VERIFY, [list(ids)]).fetchall()
    except psycopg.Error as error:
        if not ids or not _is_users_fault(error):
            raise
        if len(ids) == 1:
            return [_failing(connection, ids[0], error)]
        half = len(ids) // 2
        return [*verify_batch(connection, ids[:half]), *verify_batch(connection, ids[half:])]
    return [Finding(**row) for row in rows]


def require_attached(connection: Connection[DictRow]) -> None:
    """Find out at once what stands in everybody's way: detached, or no right to verify.

    Raises:
        psycopg.Error: What does.
    """
    connection.execute("select from builder_score.verify('{}')")


def require_writable(connection: Connection[DictRow]) -> None:
    """Refuse to repair where nothing can be written.

    Raises:
        PyscoreError: This is a replica, or the session is read only.
    """
    row = connection.execute(
        "select pg_is_in_recovery() as replica,"
        " current_setting('transaction_read_only')::boolean as read_only"
    ).fetchone()
    assert row is not None
    if row["replica"]:
        raise PyscoreError(
            "this server is a replica, where nothing can be repaired: run it on "
            "the primary, or leave --repair out"
        )
    if row["read_only"]:
        raise PyscoreError(
            "the session is read only, so nothing can be repaired: set "
            "default_transaction_read_only to off, or leave --repair out"
        )


def repair(
    connection: Connection[DictRow], wrong: Sequence[Finding]
) -> Generator[tuple[Repair | None, list[Finding]]]:
    """Recalculate users one by one, each in a transaction of their own, and verify them again.

    Whoever is held by somebody else for more than a second is enqueued past the debounce.

    Args:
        connection: To a server that can be written.
        wrong: Whose scores to repair.

    Returns:
        For each: what was done, None for users who are gone or cannot be scored; what verify says
        about them now.
    """
    for finding in wrong:
        try:
            done = _repair_one(connection, finding)
        except psycopg.errors.NoDataFound:
            yield None, []
        except psycopg.Error as error:
            if not _is_users_fault(error):
                raise
            yield None, [_failing(connection, finding.user_id, error)]
        else:
            yield done, verify_batch(connection, [finding.user_id])


def _repair_one(connection: Connection[DictRow], finding: Finding) -> Repair:
    try:
        with connection.transaction():
            connection.execute("select set_config('lock_timeout', %s, true)", [LOCK_TIMEOUT])
            row = connection.execute(
                "select builder_score.recalculate(%s::text::builder_score.user_id) as score",
                [finding.user_id],
            ).fetchone()
    except (psycopg.errors.LockNotAvailable, psycopg.errors.TransactionRollback):
        connection.execute(
            "select builder_score.enqueue(%s::text::builder_score.user_id, 0, 'verify repair')",
            [finding.user_id],
        )
        return Repair(finding.user_id, finding.username, finding.stored, None, queued=True)
    assert row is not None
    return Repair(finding.user_id, finding.username, finding.stored, row["score"])


def _is_users_fault(error: psycopg.Error) -> bool:
    """Decide as builder_score.is_users_fault() does; without a SQLSTATE the connection is lost."""
    return error.sqlstate is not None and error.sqlstate[:2] not in ("40", "53", "55", "57")


def _failing(connection: Connection[DictRow], user_id: str, error: psycopg.Error) -> Finding:
    message = f"{error.sqlstate}: {from_database(error)}"
    row = connection.execute(_LOOK_UP, [user_id]).fetchone() or {}
    return Finding(
        user_id,
        row.get("username"),
        row.get("stored"),
        None,
        row.get("computed_at"),
        "failing",
        message,
    )
