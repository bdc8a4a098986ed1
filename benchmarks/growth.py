"""What a recalculation costs as an application grows, and as one user does."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, LiteralString, cast

from psycopg import Connection

from benchmarks import communities, hosts, servers
from benchmarks.communities import Communities, rest
from benchmarks.measuring import Ratio, alternate, wall
from benchmarks.plots import OTHER, OURS, Plot
from benchmarks.progress import say
from benchmarks.reports import Figure, Report, Table
from benchmarks.scales import Scale
from benchmarks.usage import backend_seconds

NAME = "growth"
TITLE = "What a recalculation costs as an application grows"

_REMARKS = (
    "Cost is processor time of the worker's backend (`call builder_score.drain()`) for each user; "
    "data is in memory (pg_prewarm), autovacuum as ever. All scores change: somebody has "
    "written others past the triggers, as a restore might, so each is computed and written, its "
    "index entry, state and NOTIFY included.",
    "*At random*: the same number of people, others in each round, queued by a row each; the sizes "
    "take turns. *Everyone*: as `pyscore recompute --all` does it, once, without its throttle; the "
    "first time that they are computed, so each gets a new row of state too. Blocks are shared "
    "buffers that the backend touched (pg_stat_database).",
    "The owner of many projects, and somebody who helps with as many of others: users like no "
    "other beside the ordinary ones. The plain query is that of peers/per_user.sql with the "
    "user's id written into it, so that it is planned for this user; it writes the score too. "
    "Both sides: processor time of the backend, which has no parallel workers, alternating.",
)

_SPOIL: LiteralString = """
    update users set builder_score = (builder_score + 1) %% 101 where id = any(%s)
"""

_ENQUEUE: LiteralString = """
    insert into builder_score.score_recalc_queue (user_id, priority, reason)
    select id, 10, 'benchmark' from unnest(%s::uuid[]) as t(id)
"""

_OWNER: LiteralString = """
    insert into users (id, email, username) values (person_id(0), 'owner@example.org', 'owner');
    insert into projects (id, owner_id, title, status, github_stars, impact_metrics)
    select project_id(10000000 + n), person_id(0), 'One of many', 'shipped', n % 7, '{{"users": 3}}'
    from generate_series(1, {projects}) as n;
    insert into project_collaborators (project_id, user_id, status)
    select project_id(10000000 + n), person_id(1 + (2 * n + k) % {people}), 'confirmed'
    from generate_series(1, {projects}) as n, generate_series(0, 1) as k;
"""

_HELPER: LiteralString = """
    insert into users (id, email, username) values (person_id(-1), 'helper@example.org', 'helper');
    insert into project_collaborators (project_id, user_id, status)
    select project_id(n), person_id(-1), 'confirmed' from generate_series(1, {projects}) as n;
"""

_NOT_THEM: LiteralString = """
    delete from project_collaborators where user_id = person_id(-1);
    delete from project_collaborators
    where project_id in (select project_id(10000000 + n) from generate_series(1, {projects}) as n);
    delete from projects where owner_id = person_id(0);
    delete from users where id in (person_id(0), person_id(-1));
"""

# Who was written in one transaction has the same moment of commit, subtransactions or not.
_TOGETHER: LiteralString = """
    with done as (
        select user_id = person_id(0) as is_owner, pg_xact_commit_timestamp(xmin) as at
        from builder_score.score_state where user_id = any(%s)
    )
    select count(*) filter (where not d.is_owner),
           count(*) filter (where not d.is_owner and d.at = o.at),
           count(*) filter (where not d.is_owner and d.at > o.at)
    from done as d, (select at from done where is_owner) as o
"""


def run(scale: Scale) -> Report:
    sizes = scale.pick(
        smoke=[100, 200],
        quick=[10_000, 100_000],
        ordinary=[10_000, 100_000, 1_000_000],
        full=[10_000, 100_000, 1_000_000, 5_000_000],
    )
    shared = communities.shared(scale)
    everyone = {people: _everyone(shared, people) for people in sizes}
    some = _at_random(shared, sizes)
    least = sizes[0]
    against = f"at {least:,}"
    figures = [
        Figure.of(f"cost per user at {people:,} users, {least:,} at random", against, "≤ 1.5",
                  Ratio.of(some[people], some[least]))
        for people in sizes[1:]
    ] + [
        Figure.of(f"cost per user at {people:,} users, everyone", against, "≤ 1.5",
                  Ratio.among([everyone[people][0] / everyone[least][0]]))
        for people in sizes[1:]
    ]  # fmt: skip
    costs = Table(
        "A user's cost, in microseconds and blocks",
        [
            "users",
            "at random, processor",
            "everyone, processor",
            "everyone, by the clock",
            "everyone, blocks",
        ],
        [
            (
                f"{people:,}",
                *_micro([Ratio.among(some[people]).got, *everyone[people][:2]]),
                everyone[people][2],
            )
            for people in sizes
        ],
    )
    heavy, of_them = _with_many_rows(shared, sizes[-1 if scale is Scale.SMOKE else 1])
    return Report(
        NAME,
        TITLE,
        figures=[*figures, *heavy],
        tables=[costs, of_them],
        remarks=_REMARKS,
        plots=[_plot(sizes, some, everyone)],
        server=servers.describe(shared.cluster),
    )


def _everyone(shared: Communities, people: int) -> tuple[float, float, float]:
    """Compute everyone for the first time.

    Gives seconds a user, of the processor and by the clock, and blocks a user.
    """
    with shared.connect(people) as db:
        if db.execute("select from builder_score.score_state limit 1").fetchone() is not None:
            raise RuntimeError("another benchmark has computed them")
        rest(db)
        before, touched = backend_seconds(db.info.backend_pid), _touched(db)
        seconds = wall(lambda: hosts.score_everyone(db))
        used, touched = backend_seconds(db.info.backend_pid) - before, _touched(db) - touched
        _expect(
            db, "select count(*) from builder_score.score_state where score is not null", people
        )
        rest(db)
    say(f"everyone of {people:,}: {1e6 * used / people:.0f} µs a user")
    return used / people, seconds / people, touched / people


def _at_random(shared: Communities, sizes: Sequence[int]) -> Mapping[int, list[float]]:
    """Compute as many people of each size; give seconds a user for each round."""
    rounds = shared.scale.pick(smoke=1, quick=3, ordinary=5)
    rows = {people: shared.connect(people) for people in sizes}
    numbers = dict.fromkeys(sizes, 0)

    def once(people: int) -> float:
        db = rows[people]
        numbers[people] += 1
        query = "select id from users order by chance(hashtext(id::text), %s) limit %s"
        (ids,) = _row(db, f"select array({query})", numbers[people], sizes[0])
        return _recalculate(db, ids) / sizes[0]

    sides = {f"{people:,}": partial(once, people) for people in sizes}
    try:
        found = alternate(sides, rounds)
    finally:
        for db in rows.values():
            db.close()
    return {people: found[f"{people:,}"] for people in sizes}


def _recalculate(db: Connection[Any], ids: Sequence[Any]) -> float:
    """Have the worker compute and write these users, whose scores are wrong; give seconds."""
    _spoil(db, ids)
    db.execute(_ENQUEUE, [ids])
    before = backend_seconds(db.info.backend_pid)
    db.execute("call builder_score.drain()")
    used = backend_seconds(db.info.backend_pid) - before
    wrong = "select count(*) from builder_score.verify(%s)"
    _expect(db, wrong, 0, list(ids[:1000]))
    db.execute("vacuum users, builder_score.score_state, builder_score.score_recalc_queue")
    return used


def _spoil(db: Connection[Any], ids: Sequence[Any]) -> None:
    db.execute("set session_replication_role = replica")
    db.execute(_SPOIL, [ids])
    db.execute("set session_replication_role = origin")


def _with_many_rows(shared: Communities, people: int) -> tuple[list[Figure], Table]:
    """Somebody who owns very many projects, and somebody who helps with very many."""
    projects = shared.scale.pick(smoke=100, quick=10_000, ordinary=100_000)
    with shared.connect(people) as db:
        db.execute("set session_replication_role = replica")
        db.execute((_OWNER + _HELPER).format(projects=projects, people=people).encode())
        db.execute("set session_replication_role = origin")
        owner, helper, ids = _row(
            db,
            "select person_id(0), person_id(-1), array_agg(person_id(n))"
            " from generate_series(1, %s) as n",
            min(people, 1000),
        )
        db.execute("call builder_score.drain()")
        _recalculate(db, [owner, helper, *ids])
        rest(db)
        found = {
            f"someone who owns {projects:,} projects with {2 * projects:,} collaborators": (
                _beside_the_plain_query(shared.scale, db, owner)
            ),
            f"someone who helps with {projects:,} projects of others": (
                _beside_the_plain_query(shared.scale, db, helper)
            ),
        }
        _recalculate_together(db, [owner, *ids])
        beside, together, later = _row(db, _TOGETHER, [owner, *ids])
        # the next benchmark wants ordinary people
        db.execute("set session_replication_role = replica")
        db.execute(_NOT_THEM.format(projects=projects).encode())
        db.execute("set session_replication_role = origin")
        db.execute("delete from builder_score.score_state where user_id = any(%s)",
                   [[owner, helper]])  # fmt: skip
        _recalculate(db, ids)
    figures = [
        Figure.of(who, "the plain query for that one user", "≤ 1.5",
                  Ratio.of(times["worker"], times["plain"]))
        for who, times in found.items()
    ] + [
        Figure(f"users of {beside:,} queued beside the owner who were written in the same "
               "transaction", "", "= 0", together, together, together,
               note=f"{later:,} were written later"),
    ]  # fmt: skip
    table = Table(
        f"Users with very many rows, among {people:,}",
        ["", "worker, milliseconds of the processor", "plain query"],
        [
            (who, *(Ratio.among(times[side]).got * 1e3 for side in ("worker", "plain")))
            for who, times in found.items()
        ],
    )
    return figures, table


def _beside_the_plain_query(
    scale: Scale, db: Connection[Any], user: object
) -> Mapping[str, list[float]]:
    """Seconds of the processor, for each round."""
    plain = _plain_query(user)

    def measured(action: Callable[[], object]) -> float:
        _spoil(db, [user])
        before = backend_seconds(db.info.backend_pid)
        action()
        used = backend_seconds(db.info.backend_pid) - before
        _expect(db, "select count(*) from builder_score.verify(%s)", 0, [user])
        return used

    def by_the_worker() -> float:
        db.execute(_ENQUEUE, [[user]])
        return measured(lambda: db.execute("call builder_score.drain()"))

    sides = {
        "worker": by_the_worker,
        "plain": lambda: measured(lambda: db.execute(plain)),
    }
    return alternate(sides, scale.pick(smoke=1, quick=5, ordinary=7))


def _recalculate_together(db: Connection[Any], ids: Sequence[Any]) -> None:
    _spoil(db, ids)
    db.execute(_ENQUEUE, [ids])
    db.execute("call builder_score.drain()")


def _plain_query(user: object) -> bytes:
    path = Path(__file__).parent / "peers" / "per_user.sql"
    text = path.read_text(encoding="utf-8").split("$function$")[1]
    return text.replace("the_user", f"'{user}'::uuid").encode()


def _plot(
    sizes: Sequence[int],
    some: Mapping[int, Sequence[float]],
    everyone: Mapping[int, tuple[float, float, float]],
) -> Plot:
    def draw(axes: Any) -> None:
        axes.plot(sizes, [Ratio.among(some[n]).got * 1e6 for n in sizes], "o-", color=OURS,
                  label=f"{sizes[0]:,} at random")  # fmt: skip
        axes.plot(
            sizes, [everyone[n][0] * 1e6 for n in sizes], "s--", color=OTHER, label="everyone"
        )
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xticks(sizes, [f"{n:,}" for n in sizes])
        axes.minorticks_off()
        axes.set_xlabel("users")
        axes.set_ylabel("µs a user")
        axes.legend()

    return Plot("growth.png", "Microseconds a recalculated user, by how many users there are", draw)


def _micro(seconds: Sequence[float]) -> list[float]:
    return [1e6 * value for value in seconds]


def _touched(db: Connection[Any]) -> int:
    """Shared buffers that sessions of a database have touched."""
    db.execute("select pg_stat_force_next_flush()")
    query = "select blks_hit + blks_read from pg_stat_database where datname = current_database()"
    return _row(db, query)[0]


def _row(db: Connection[Any], query: str, *values: Any) -> tuple[Any, ...]:
    row = db.execute(cast(LiteralString, query), values or None).fetchone()
    assert row is not None
    return row


def _expect(db: Connection[Any], query: str, expected: int, *values: Any) -> None:
    (found,) = _row(db, query, *values)
    if found != expected:
        raise RuntimeError(f"{found} instead of {expected}: {query}")
