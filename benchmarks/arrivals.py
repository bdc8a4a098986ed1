"""Events of an application, sent when they are scheduled whatever becomes of those before them.

Both functions run in processes of their own (`in_processes`), so that neither waits for the other's
interpreter. All moments are seconds of the system's clock, which is the server's clock too.
"""

import multiprocessing
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

import psycopg

LANES = 4
"""Connections that take turns: a commit that hangs delays every fourth event, and no other."""

EVENT = "update projects set github_stars = github_stars + 100000 where id = %s"

WARM_UP = 15
"""Tasks a lane sends before the first event: they find nothing to write."""

_LOOK_EVERY_S = 0.001
_AT_ONCE = 20
"""So many people the observer looks at together: where scores are late it is not to add to it."""


@dataclass(frozen=True)
class Event:
    """A person's project gets stars, at a moment."""

    person: UUID
    project: UUID
    at: float


@dataclass(frozen=True)
class Sent:
    """An event whose COMMIT returned to the application."""

    event: Event
    committed: float


@contextmanager
def in_processes(number: int) -> Generator[Executor]:
    """Fresh processes: a forked one would share this one's connections."""
    with ProcessPoolExecutor(number, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def send(database: str, events: Sequence[Event], broker: str | None = None) -> list[Sent]:
    """Send each event at its moment, and return when each was committed.

    Args:
        database: Where the application's tables are.
        events: In the order of their moments.
        broker: Celery's: tell it whose score to compute, once the event is committed.
    """
    tell = _teller(broker)
    sent: list[Sent] = []
    failures: list[BaseException] = []

    def run(lane: Sequence[Event]) -> None:
        try:
            with psycopg.connect(database, autocommit=True) as db:
                db.execute(EVENT, [None], prepare=True)
                tell(event.person for event in lane[:WARM_UP])
                for event in lane:
                    _sleep_until(event.at)
                    db.execute(EVENT, [event.project], prepare=True)
                    sent.append(Sent(event, time.time()))
                    tell([event.person])
        except BaseException as error:
            failures.append(error)

    lanes = [threading.Thread(target=run, args=(events[n::LANES],)) for n in range(LANES)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    if failures:
        raise failures[0]
    return sent


def watch(database: str, events: Sequence[Event], patience: float) -> dict[UUID, float]:
    """Read the scores of these people, as anybody would, until they have changed; return when.

    Args:
        database: Where the scores are.
        events: What changes them, in the order of its moments.
        patience: Seconds after the last event when it gives up.
    """
    seen: dict[UUID, float] = {}
    with psycopg.connect(database, autocommit=True) as db:
        query = "select id, builder_score from users where id = any(%s)"
        before = dict(db.execute(query, [[event.person for event in events]], prepare=True))
        waiting = list(reversed(events))
        pending: set[UUID] = set()
        until = max((event.at for event in events), default=0.0) + patience
        while (waiting or pending) and time.time() < until:
            if not pending:
                _sleep_until(waiting[-1].at)
            while waiting and waiting[-1].at <= time.time():
                event = waiting.pop()
                if len(pending) < _AT_ONCE:
                    pending.add(event.person)
            rows = db.execute(query, [list(pending)], prepare=True).fetchall()
            now = time.time()
            for person, score in rows:
                if score != before[person]:
                    seen[person] = now
                    pending.remove(person)
            time.sleep(_LOOK_EVERY_S)
    return seen


def _teller(broker: str | None) -> Callable[[Iterable[UUID]], None]:
    """What an application does after a commit: with triggers, nothing."""
    if broker is None:
        return lambda people: None
    # Here, so that whoever measures nothing with Celery does not load it.
    from benchmarks.peers import celery_tasks

    celery_tasks.app.conf.broker_url = broker

    def tell(people: Iterable[UUID]) -> None:
        for person in people:
            celery_tasks.recalculate.delay(str(person))

    return tell


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.time()))
