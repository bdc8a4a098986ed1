"""``pyscore recompute --all``: one row in the queue, and how to tell that it has been answered."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import NamedTuple

import click
import psycopg
from psycopg import Connection
from psycopg.rows import DictRow
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pyscore.cli.console import console
from pyscore.cli.options import installed, print_json
from pyscore.cli.problems import obstacles
from pyscore.cli.wording import counted, duration
from pyscore.errors import PyscoreError, from_database


class Phase(NamedTuple):
    """How far the recomputation is.

    Attributes:
        name: In three words.
        remark: More, for once; empty where the name says it all.
    """

    name: str
    remark: str = ""


Show = Callable[[DictRow, Phase], None]
"""Shows a look at the queue, and the phase it is in."""

# One snapshot. The walk appends rows; merging rows keeps the lowest id: so once the walk has ended,
# what is left of it has ids up to the highest one at that moment. Users in backoff are counted
# apart: they have been tried.
_LOOK = """
select exists (
           select from builder_score.score_recalc_queue where id = %(row_id)s
       ) as enqueued,
       b.started_at as walk, b.seen, b.estimated_total,
       q.highest, q.waiting, q.held, q.held_until, q.failing,
       h.recalculated, h.changed, h.dead_letters,
       h.attached, h.paused, h.paused_reason, h.scheduler, h.heartbeat_age, h.workers_heard,
       clock_timestamp() as looked_at
from builder_score.health as h
cross join (
    select max(r.id) as highest,
           count(distinct r.user_id) filter (where r.retry_at is null) as waiting,
           count(distinct r.user_id) filter (where r.retry_at is not null) as failing,
           count(distinct r.user_id) filter (where r.window_ends_at > clock_timestamp()) as held,
           max(r.window_ends_at) filter (where r.window_ends_at > clock_timestamp()) as held_until
    from (
        select w.id, w.user_id, s.retry_at,
               case when s.retry_at is null and w.priority > 0
                         and s.computed_at <= clock_timestamp()
                    then s.computed_at + g.debounce_window end as window_ends_at
        from builder_score.score_recalc_queue as w
        cross join builder_score.settings as g
        left join builder_score.score_state as s on s.user_id = w.user_id
        where w.user_id is not null
          and w.id <= coalesce(%(bound)s::bigint, 9223372036854775807)
    ) as r
) as q
left join builder_score.backfill as b on not b.only_ageing
"""


def recompute_everyone(dsn: str | None, *, wait: bool, as_json: bool) -> None:
    """Put one row into the queue that stands for everyone, and perhaps wait for its end.

    Args:
        dsn: As for `pyscore.address.resolve`.
        wait: Whether to return only when everyone has been computed.
        as_json: Whether to print JSON.

    Raises:
        PyscoreError: Waiting is in vain, or was interrupted; the row stays in the queue.
    """
    with installed(dsn) as connection:
        before = _look(connection, None, None)
        enqueued = connection.execute(
            "select builder_score.enqueue_everyone('pyscore recompute --all') as id"
        ).fetchone()
        row_id: int = (enqueued or {})["id"]
        if not wait:
            _say_enqueued(row_id, before, as_json)
            return
        try:
            with _display(before, as_json) as show:
                after = follow(connection, row_id, show)
        except KeyboardInterrupt:
            raise PyscoreError("stopped waiting; the recomputation goes on") from None
        except psycopg.OperationalError as error:
            raise PyscoreError(
                f"stopped waiting: {from_database(error)}; the recomputation goes on, "
                "see: pyscore status"
            ) from None
    _say_done(row_id, before, after, as_json)


def follow(connection: Connection[DictRow], row_id: int, show: Show) -> DictRow:
    """Wait until everyone whom a queue row stands for has been computed.

    Args:
        connection: From `pyscore.cli.options.installed`.
        row_id: The row, which names nobody.
        show: Is called with each look and its phase.

    Returns:
        The last look.

    Raises:
        PyscoreError: Nothing runs the worker.
    """
    began = time.monotonic()
    taken, walk, bound = False, None, None
    while True:
        asked = time.monotonic()
        look = _look(connection, row_id, bound)
        if not taken and not look["enqueued"]:
            # Taken in the transaction that began the walk. Should that one have ended already, and
            # another be under way, we wait for the other: longer, but not wrongly.
            taken, walk = True, look["walk"]
        if taken and bound is None and (walk is None or look["walk"] != walk):
            bound = look["highest"] or 0
        if bound is not None and look["waiting"] == 0:
            return look
        for obstacle in obstacles(look, unheard=timedelta(seconds=asked - began)):
            reason = str(obstacle).rstrip(";")
            raise PyscoreError(f"not waiting: {reason}; everyone stays enqueued", exit_code=3)
        show(look, _phase(look, taken, bound))
        # looking at a long queue takes a while: not more than a fifth of the time
        time.sleep(min(max(0.2, 4 * (time.monotonic() - asked)), 10))


def _look(connection: Connection[DictRow], row_id: int | None, bound: int | None) -> DictRow:
    row = connection.execute(_LOOK, {"row_id": row_id, "bound": bound}).fetchone()
    assert row is not None, "health is one row"
    return row


def _phase(look: DictRow, taken: bool, bound: int | None) -> Phase:
    if not taken:
        if look["walk"] is None:
            return Phase("waiting for the worker")
        return Phase("waiting", "another walk over everyone comes first")
    if bound is None:
        return Phase("walking over everyone")
    if look["waiting"] > look["held"]:
        return Phase("computing")
    until: datetime = look["held_until"]
    return Phase(
        "waiting for the debounce",
        f"{counted(look['held'], 'user')} inside the debounce window, which is over by "
        f"{until:%H:%M:%S %Z} at the latest, in {duration(until - look['looked_at'])}",
    )


@contextmanager
def _display(before: DictRow, as_json: bool) -> Generator[Show]:
    """Show progress: a bar on a terminal, else a line for each phase, nothing beside JSON."""
    screen = console(stderr=True)
    said: set[str] = set()
    if not screen.is_terminal:

        def say(look: DictRow, phase: Phase) -> None:
            if phase.name not in said and not as_json:
                click.echo(phase.remark or phase.name)
            said.add(phase.name)

        yield say
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=screen, transient=True) as progress:
        task = progress.add_task("", total=None)

        def draw(look: DictRow, phase: Phase) -> None:
            if phase.remark and phase.name not in said:
                progress.console.print(phase.remark, markup=False, highlight=False)
            said.add(phase.name)
            done = look["recalculated"] - before["recalculated"]
            ahead = max(0, look["estimated_total"] - look["seen"]) if look["walk"] else 0
            total = done + look["waiting"] + ahead
            progress.update(task, description=phase.name, completed=done, total=total or None)

        yield draw


def _say_enqueued(row_id: int, look: DictRow, as_json: bool) -> None:
    found = [str(obstacle) for obstacle in obstacles(look)]
    if as_json:
        print_json({"row_id": row_id, "done": False, "problems": found})
        return
    click.echo("everyone is enqueued; follow it with: pyscore status --watch")
    for obstacle in found:
        click.echo(f"! nothing happens yet: {obstacle}")


def _say_done(row_id: int, before: DictRow, after: DictRow, as_json: bool) -> None:
    counts = {name: int(after[name] - before[name]) for name in ("recalculated", "changed")}
    if as_json:
        left = {name: after[name] for name in ("dead_letters", "failing")}
        print_json({"row_id": row_id, "done": True, **counts, **left})
        return
    click.echo(
        f"done: {counted(counts['recalculated'], 'user')} recalculated, "
        f"{counted(counts['changed'], 'score')} changed; dead letters: {after['dead_letters']:,}"
    )
    if after["failing"]:
        click.echo(
            f"{counted(after['failing'], 'user')} failed and will be tried again: pyscore status"
        )
