"""What reading costs: pages anywhere in the ranking, and where a user stands."""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any, LiteralString, cast

from psycopg import Connection

from benchmarks import communities, servers
from benchmarks.communities import Communities, rest
from benchmarks.measuring import Ratio, alternate, wall
from benchmarks.progress import say
from benchmarks.reports import Figure, Report, Table
from benchmarks.scales import Scale
from pyscore.reading import binds, host, queries
from pyscore.reading.cursors import Position
from pyscore.reading.host import HostUsers

NAME = "reading"
TITLE = "What reading costs"

ROWS = 20
# as ScoreReader asks for: one row more tells whether another page follows
LIMIT = ROWS + 1

_REMARKS = (
    "Pages are what `ScoreReader.leaderboard()` and `.above()` send: by keyset, 20 rows, on users "
    "that the worker has scored and that were vacuumed. Blocks are shared buffers, hit or read, as "
    "EXPLAIN (ANALYZE, BUFFERS) counts them; each figure is of ten pages that follow one another, "
    "against the first ten, place by place. *Discovery*: from the middle of those who "
    "share a score of 60 at most.",
    "Rank and percentile are `builder_score.standing()`, for users at random, beside "
    "`select count(*) from users where builder_score > …`, as a rule an index-only scan of "
    "vacuumed pages, and where most people are above a scan of the table; among many it has two "
    "parallel workers. Each time the rank, the people and the percentile were compared with those "
    "counted over score_state. A look right after a count(*) finds the processor's caches full "
    "of that.",
)

Place = Position | None


def run(scale: Scale) -> Report:
    people = scale.pick(smoke=200, quick=100_000, ordinary=1_000_000)
    some = scale.pick(smoke=100, quick=10_000, ordinary=100_000)
    shared = communities.shared(scale)
    with shared.scored(people) as db:
        rest(db)
        # every statement is planned for its values, as the first five of a session are
        db.prepare_threshold = None
        reader = _Reader(db, people)
        pages, table = _pages(reader, scale)
        ranks, places = _ranks(reader, scale)
        health = _health(reader, scale)
    return Report(
        NAME,
        TITLE,
        figures=[*pages, *ranks],
        tables=[
            table,
            places,
            health,
            _while_written(shared, some),
            _beside_the_worker(shared, some),
        ],
        remarks=_REMARKS,
        server=servers.describe(shared.cluster),
    )


class _Reader:
    """Sends what a ScoreReader sends, and sees what it costs."""

    def __init__(self, db: Connection[Any], people: int) -> None:
        self.db = db
        self.people = people
        query, values = binds.compiled(host.relation(None, "users"))
        relation = host.relation_from(db.execute(query.encode(), values).fetchall())
        self.users: HostUsers = host.users_from(relation, None, "users")

    def statement(self, after: Place, above: int | None = None) -> tuple[str, Mapping[str, Any]]:
        users = queries.users_table(self.users)
        return binds.compiled(
            queries.ranking(
                self.users,
                users,
                limit=LIMIT,
                after=after,
                above=None if above is None else str(above),
            )
        )

    def ten(self, after: Place, above: int | None = None) -> list[Place]:
        """The places behind which ten pages that follow one another begin."""
        places: list[Place] = [after]
        while len(places) < 10:
            query, values = self.statement(places[-1], above)
            rows = self.db.execute(query.encode(), values).fetchall()
            if len(rows) < LIMIT:
                break
            places.append(Position(rows[ROWS - 1][3], rows[ROWS - 1][4]))
        return places

    def behind(self, place: int) -> Position:
        """The place of the row that has so many before it."""
        return self.position(
            "select builder_score::text, id::text from users where builder_score is not null"
            f" order by builder_score desc, id desc offset {place - 1} limit 1"
        )

    def position(self, query: str) -> Position:
        row = self.db.execute(query.encode()).fetchone()
        assert row is not None, query
        return Position(*row)

    def blocks(self, query: str, values: Mapping[str, Any] | None = None) -> int:
        explain = f"explain (analyze, buffers, timing off, format json) {query}"
        row = self.db.execute(explain.encode(), values).fetchone()
        assert row is not None
        plan = row[0][0]["Plan"] if not isinstance(row[0], str) else json.loads(row[0])[0]["Plan"]
        return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]

    def seconds(self, query: str, values: Mapping[str, Any] | None = None) -> float:
        return wall(lambda: self.db.execute(query.encode(), values).fetchall())


def _pages(reader: _Reader, scale: Scale) -> tuple[list[Figure], Table]:
    page = scale.pick(smoke=5, quick=1000, ordinary=1000)
    middle = """
        with tied as (select max(builder_score) as score from users where builder_score <= 60)
        select builder_score::text, id::text from users, tied
        where builder_score = tied.score order by id
        offset (select count(*) / 2 from users, tied where builder_score = tied.score) limit 1
    """
    deep = reader.behind((page - 1) * ROWS)
    discovery = reader.position(middle)
    threshold = 40
    kinds: dict[str, tuple[Place, int | None]] = {
        "page 1": (None, None),
        f"leaderboard page {page:,}": (deep, None),
        "discovery page at score ≤ 60": (discovery, None),
        f"filter above {threshold}": (None, threshold),
        f"filter above {threshold}, from score 60 on": (discovery, threshold),
    }
    blocks = {
        kind: [reader.blocks(*reader.statement(place, above)) for place in reader.ten(after, above)]
        for kind, (after, above) in kinds.items()
    }
    sides: dict[str, Callable[[], float]] = {
        kind: partial(reader.seconds, *reader.statement(after, above))
        for kind, (after, above) in kinds.items()
    }
    offset = f"""
        select id, username, builder_score from users where builder_score is not null
        order by builder_score desc, id desc limit {LIMIT} offset """
    skipped = [(page - 1) * ROWS, reader.people // 2]
    for rows in skipped:
        kind = f"by OFFSET {rows:,}, for comparison"
        sides[kind] = partial(reader.seconds, offset + str(rows))
        blocks[kind] = [reader.blocks(offset + str(rows))]
    times = alternate(sides, scale.pick(smoke=2, quick=20, ordinary=50), tell=False)
    first = blocks["page 1"]
    figures = [
        Figure.of(f"{kind}, blocks at {reader.people:,} users", "page 1", "≤ 2",
                  Ratio.of(blocks[kind], first[: len(blocks[kind])]))
        for kind in list(kinds)[1:]
    ]  # fmt: skip
    table = Table(
        "Pages of 20 rows",
        ["page", "blocks, median", "most", "milliseconds, median"],
        [
            (kind, median(blocks[kind]), max(blocks[kind]), 1e3 * median(times[kind]))
            for kind in sides
        ],
    )
    return figures, table


def _ranks(reader: _Reader, scale: Scale) -> tuple[list[Figure], Table]:
    db = reader.db
    number = scale.pick(smoke=3, quick=15, ordinary=25)
    query = "select id, builder_score from users order by chance(hashtext(id::text), 7) limit %s"
    asked = db.execute(query, [number]).fetchall()
    count = "select count(*) from users where builder_score > %(score)s"
    stand = "select * from builder_score.standing(%(user)s)"
    counting: list[float] = []
    standing: list[float] = []
    blocks: dict[str, list[int]] = {count: [], stand: []}
    for user_id, score in asked:
        _expect_exact(db, user_id)
        times = alternate(
            {
                "count": partial(reader.seconds, count, {"score": score}),
                "standing": partial(reader.seconds, stand, {"user": user_id}),
            },
            scale.pick(smoke=1, quick=5, ordinary=7),
            tell=False,
        )
        counting.append(median(times["count"]))
        standing.append(median(times["standing"]))
        blocks[count].append(reader.blocks(count, {"score": score}))
        blocks[stand].append(reader.blocks(stand, {"user": user_id}))
    prepared = partial(db.execute, stand.encode(), prepare=True)
    again = [
        wall(partial(prepared, {"user": user_id}))
        for _ in range(scale.pick(smoke=2, quick=20, ordinary=20))
        for user_id, _score in asked
    ]
    say(f"count {1e3 * median(counting):.1f} ms, standing {1e3 * median(standing):.2f} ms")
    figures = [
        Figure.of(
            f"rank and percentile of a user among {reader.people:,}",
            "count(*) of those above",
            "≥ 100",
            Ratio.of(counting, standing),
            note=f"times faster: {1e3 * median(standing):.2f} ms against "
            f"{1e3 * median(counting):.1f} ms, medians of {number} users; exact for each",
        )
    ]
    table = Table(
        f"Where a user stands, {reader.people:,} users",
        ["", "blocks, median", "milliseconds, median"],
        [
            ("count(*) of those above", median(blocks[count]), 1e3 * median(counting)),
            ("standing(), after a count(*)", median(blocks[stand]), 1e3 * median(standing)),
            ("standing(), prepared, one after another", median(blocks[stand]), 1e3 * median(again)),
        ],
    )
    return figures, table


def _expect_exact(db: Connection[Any], user_id: object) -> None:
    counted = """
        select 1 + count(*) filter (where s.score > mine.score), count(*),
               100.0::double precision * count(*) filter (where s.score < mine.score)
                   / greatest(count(*) - 1, 1)
        from builder_score.score_state as s,
             (select score from builder_score.score_state where user_id = %s) as mine
        where s.score is not null
    """
    said = "select rank, people, percentile from builder_score.standing(%s)"
    true, got = db.execute(counted, [user_id]).fetchone(), db.execute(said, [user_id]).fetchone()
    assert true is not None
    assert got is not None
    if tuple(true[:2]) != tuple(got[:2]) or abs(true[2] - got[2]) > 1e-9:
        raise RuntimeError(f"standing({user_id}) is {got}, counted: {true}")


_RAISE: LiteralString = "update users set builder_score = (builder_score + 1) % 101"


def _while_written(shared: Communities, people: int) -> Table:
    """Pages after everyone's score has changed, again and again, with nobody vacuuming."""
    rows: list[Sequence[object]] = []
    with shared.scored(people) as db:
        db.execute("alter table users set (autovacuum_enabled = false)")
        db.execute("set session_replication_role = replica")
        rest(db)
        reader = _Reader(db, people)
        # Found once: whoever looks for them later reads, and what has been seen dead is not looked
        # at again. A place need not be anybody's.
        places: list[Place] = [None, reader.behind(people // 4), reader.behind(people // 2)]

        def look(when: str) -> None:
            costs = [[reader.blocks(*reader.statement(p)) for p in places] for _ in range(2)]
            query = "select pg_relation_size('idx_users_builder_score') / 1048576.0"
            row = db.execute(cast(LiteralString, query)).fetchone()
            assert row is not None
            size = float(row[0])
            rows.append((when, *costs[0], *costs[1], size))

        look("vacuumed")
        for times in range(1, shared.scale.pick(smoke=2, quick=3, ordinary=5)):
            db.execute(_RAISE)
            look(f"all changed {times} times, not vacuumed")
        with servers.connect(shared.cluster, db.info.dbname) as other:
            other.execute("begin isolation level repeatable read")
            other.execute("select from users limit 1")
            db.execute(_RAISE)
            look("once more, beside a transaction that is held open")
            other.execute("commit")
        rest(db)
        look("vacuumed again")
        db.execute("alter table users reset (autovacuum_enabled)")
        db.execute("set session_replication_role = origin")
        _settle(db)
    return Table(
        f"Blocks of a page while scores change, {people:,} users",
        ["", "page 1", "at a quarter", "in the middle", "page 1 again", "at a quarter again",
         "in the middle again", "index, MB"],
        rows,
    )  # fmt: skip


def _beside_the_worker(shared: Communities, people: int) -> Table:
    """Pages while the worker computes and writes everyone."""
    with shared.scored(people) as db, shared.connect(people) as worker:
        rest(db)
        reader = _Reader(db, people)
        places: list[Place] = [None, reader.behind(people // 4), reader.behind(people // 2)]
        alone = [
            _look(reader, places)
            for _ in range(shared.scale.pick(smoke=2, quick=100, ordinary=300))
        ]
        db.execute("set session_replication_role = replica")
        db.execute(_RAISE)
        db.execute("set session_replication_role = origin")
        db.execute("vacuum users")
        working = threading.Thread(target=_settle, args=[worker])
        working.start()
        beside = [_look(reader, places)]
        while working.is_alive():
            beside.append(_look(reader, places))
        working.join()
        rest(db)
    say(f"{len(beside)} looks beside the worker")

    def line(when: str, looks: Sequence[tuple[float, float]]) -> Sequence[object]:
        blocks, times = sorted(b for b, _ in looks), sorted(1e3 * t for _, t in looks)
        last = int(0.99 * (len(looks) - 1))
        return (when, median(blocks), blocks[last], median(times), times[last])

    return Table(
        f"Three pages (first, at a quarter, in the middle), {people:,} users",
        ["", "blocks, median", "blocks, 99 %", "milliseconds, median", "milliseconds, 99 %"],
        [line("alone", alone), line("while the worker writes everyone's score", beside)],
    )


def _look(reader: _Reader, places: Sequence[Place]) -> tuple[float, float]:
    statements = [reader.statement(place) for place in places]
    seconds = sum(reader.seconds(*statement) for statement in statements)
    return sum(reader.blocks(*statement) for statement in statements), seconds


def _health(reader: _Reader, scale: Scale) -> Table:
    """What is asked about the queue while it holds everyone."""
    db = reader.db
    db.execute(
        "insert into builder_score.score_recalc_queue (user_id, priority, reason)"
        " select id, 20, 'benchmark' from users"
    )
    db.execute("vacuum (analyze) builder_score.score_recalc_queue")
    asked = {
        "health": "select * from builder_score.health",
        "queue_by_priority": "select * from builder_score.queue_by_priority",
        "pending() of one user": "select builder_score.pending(id) from users limit 1",
    }
    sides = {name: partial(reader.seconds, query) for name, query in asked.items()}
    times = alternate(sides, scale.pick(smoke=1, quick=5, ordinary=9), tell=False)
    blocks = {name: reader.blocks(query) for name, query in asked.items()}
    db.execute("truncate builder_score.score_recalc_queue")
    return Table(
        f"A queue of {reader.people:,} rows",
        ["asked for", "milliseconds, median", "blocks"],
        [(name, 1e3 * median(times[name]), blocks[name]) for name in asked],
    )


def _settle(db: Connection[Any]) -> None:
    """Let the worker compute everyone."""
    db.execute(
        "insert into builder_score.score_recalc_queue (user_id, priority, reason)"
        " select id, 20, 'benchmark' from users"
    )
    db.execute("call builder_score.drain()")
