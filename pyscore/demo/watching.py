"""Watches scores as an application would: by reading ``users.builder_score`` again and again."""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import datetime, timedelta

from pyscore.demo.stage import Stage
from pyscore.demo.waiting import last_known, look, refuse_failure
from pyscore.errors import PyscoreError

POLL = 0.015  # seconds

_VIEW = """
    select u.username, u.display_name, u.builder_score, s.computed_at,
           n.now, n.queued, n.recalculated
    from (
        select clock_timestamp() as now,
               (select count(*) from builder_score.score_recalc_queue) as queued,
               (select sum(recalculated)::bigint from builder_score.worker_status) as recalculated
    ) as n
    left join users as u on true
    left join builder_score.score_state as s on s.user_id = u.id
"""


@dataclass(frozen=True)
class Standing:
    """One person, as last seen.

    Attributes:
        name: For people.
        score: ``users.builder_score``.
        computed_at: When that was last computed; None: never.
    """

    name: str
    score: int | None
    computed_at: datetime | None


@dataclass(frozen=True)
class View:
    """Everything at one moment, seen in one statement.

    Attributes:
        now: The moment, by the server's clock.
        people: By username.
        queued: Rows in the queue. The worker deletes them in the transaction that writes the score,
            so when there are none, every score that will come is there.
        recalculated: How many recalculations the workers have counted so far.
    """

    now: datetime
    people: dict[str, Standing]
    queued: int
    recalculated: int

    def closes_in(self, username: str, window: timedelta) -> float:
        """Return the seconds until a person's debounce window closes; 0 when none is open."""
        standing = self.people.get(username)
        if standing is None or standing.computed_at is None:
            return 0.0
        return max(0.0, (standing.computed_at + window - self.now).total_seconds())


@dataclass(frozen=True)
class Arrival:
    """A score that was computed.

    Attributes:
        name: Whose.
        before: The score until then; None for a person who never had one.
        after: The score since then.
        last_at: When it had been computed before that; None: never.
        computed_at: When it was computed now.
    """

    name: str
    before: int | None
    after: int | None
    last_at: datetime | None
    computed_at: datetime


def view(stage: Stage) -> View:
    """Look at everything once."""
    people: dict[str, Standing] = {}
    rows = stage.connection.execute(_VIEW).fetchall()
    for username, name, score, computed_at, *_ in rows:
        if username is not None:
            people[username] = Standing(name, score, computed_at)
    *_, now, queued, recalculated = rows[0]
    return View(now, people, queued, recalculated)


def arrivals(
    stage: Stage, seen: View, *, patience: float, while_waiting: Callable[[View], None]
) -> Generator[Arrival, None, View]:
    """Wait until nothing is queued; yield each score as it is seen.

    Args:
        stage: Where to look.
        seen: The view from before the commits whose scores are awaited.
        patience: Seconds without a score after which something must be wrong.
        while_waiting: Called with each view.

    Yields:
        Each person whose score was computed.

    Returns:
        The last view.

    Raises:
        PyscoreError: The worker fails, or a score does not come.
    """
    since = seen.now
    moved = time.monotonic()
    while True:
        last, seen = seen, view(stage)
        while_waiting(seen)
        for username, now in seen.people.items():
            before = last.people.get(username)
            last_at = before.computed_at if before else None
            if now.computed_at is not None and now.computed_at != last_at:
                moved = time.monotonic()
                # a new row has its column's default, which nobody has computed
                score = before.score if before and last_at else None
                yield Arrival(now.name, score, now.score, last_at, now.computed_at)
        if seen.queued == 0:
            return seen
        refuse_failure(stage, since)
        if time.monotonic() - moved > patience:
            raise PyscoreError(
                f"no score arrived for {patience:g} s, though {seen.queued} events are queued;"
                f" {last_known(look(stage))}"
            )
        time.sleep(POLL)
