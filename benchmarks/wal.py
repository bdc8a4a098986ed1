"""What recomputing writes into the server's log, a person: how much, and what kinds of records.

Without images of whole pages (full_page_writes off): those are as many as there are pages touched
since the last checkpoint, whoever touches them.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from psycopg import Connection

from benchmarks import servers
from benchmarks.measuring import Ratio
from benchmarks.progress import say
from benchmarks.recomputing import (
    EVERYONE,
    PLAIN,
    QUEUED,
    assert_all_right,
    assert_verified,
    copy,
    prepare,
)
from benchmarks.reports import Figure, Report, Table
from benchmarks.scales import Scale

NAME = "wal"
TITLE = "What recomputing writes into the log"

LOCK = "Heap LOCK"

_RECORDS = """
    select coalesce(case when (b.rel)[2]::oid = d.oid then pg_filenode_relation(
               case (b.rel)[1]::oid when d.dattablespace then 0 else (b.rel)[1]::oid end,
               (b.rel)[3]::oid)::regclass::text end, '') as relation,
           r.resource_manager || ' ' || r.record_type as kind,
           count(*) as records,
           sum(r.record_length)::bigint as bytes
    from pg_get_wal_records_info(%s, %s) as r
    cross join lateral (select regexp_match(r.block_ref, 'rel (\\d+)/(\\d+)/(\\d+)')) as b(rel)
    cross join pg_database as d
    where d.datname = current_database()
    group by 1, 2
    order by sum(r.record_length) desc
"""


@dataclass(frozen=True)
class Log:
    """What was written between two moments: bytes in all, and records by relation and kind."""

    bytes: int
    records: list[tuple[str, str, int, int]]

    def of(self, relations: Iterable[str]) -> dict[str, int]:
        """How many records of each kind some relations have."""
        counts: Counter[str] = Counter()
        for relation, kind, records, _ in self.records:
            if relation in relations:
                counts[kind] += records
        return dict(counts)

    def table(self, title: str, people: int) -> Table:
        """Records and bytes a person; what is less than a tenth of a byte is left out."""
        rows = [
            (relation, kind, round(records / people, 2), round(size / people, 1))
            for relation, kind, records, size in self.records
            if size / people >= 0.1
        ]
        total = sum(size for _, _, _, size in self.records)
        rows.append(("all", "", round(sum(row[2] for row in rows), 2), round(total / people, 1)))
        return Table(title, ("relation", "record", "records a person", "bytes a person"), rows)


def written_by(db: Connection[Any], action: Callable[[], object]) -> Log:
    """Act, and say what this has written into the log."""
    began = _position(db)
    action()
    ended = _position(db)
    size = db.execute("select pg_wal_lsn_diff(%s, %s)::bigint", [ended, began]).fetchall()[0][0]
    return Log(size, db.execute(_RECORDS, [began, ended]).fetchall())


def users_and_indexes(db: Connection[Any]) -> set[str]:
    """The names of the application's table of users and of its indexes."""
    query = """
        select 'users' union all
        select indexrelid::regclass::text from pg_index where indrelid = 'users'::regclass"""
    return {name for (name,) in db.execute(query)}


def _position(db: Connection[Any]) -> str:
    """The end of the log, after what may not be written yet has been."""
    db.execute("select pg_logical_emit_message(true, 'benchmark', '')")
    return db.execute("select pg_current_wal_flush_lsn()::text").fetchall()[0][0]


def run(scale: Scale) -> Report:
    people = scale.pick(smoke=300, quick=20_000, ordinary=100_000)
    with servers.server(scale, autovacuum=False, full_page_writes=False) as cluster:
        prepare(cluster, people)
        with copy(cluster, QUEUED) as db:
            db.execute("create extension pg_walinspect")
            changed = written_by(db, lambda: db.execute("call builder_score.drain()"))
            say(f"a change: {changed.bytes / people:,.1f} bytes a person")
            assert_all_right(db)
            assert_verified(db)
            db.execute("update builder_score.settings set debounce_window = '0'")
            db.execute(
                "insert into builder_score.score_recalc_queue (user_id, priority, reason)"
                " select id, 10, 'benchmark' from users order by md5('order' || id)"
            )
            db.execute("vacuum (analyze)")
            unchanged = written_by(db, lambda: db.execute("call builder_score.drain()"))
            say(f"none: {unchanged.bytes / people:,.1f} bytes a person")
            assert_verified(db)
            of_users = unchanged.of(users_and_indexes(db))
        with copy(cluster, PLAIN) as db:
            db.execute("create extension pg_walinspect")
            db.execute("set work_mem = '256MB'")
            one_statement = written_by(db, lambda: db.execute(EVERYONE.encode()))
            say(f"one statement: {one_statement.bytes / people:,.1f} bytes a person")
            assert_all_right(db)
        server = servers.describe(cluster)

    locks = of_users[LOCK]
    ratio = changed.bytes / one_statement.bytes
    return Report(
        NAME,
        TITLE,
        figures=[
            Figure.of(
                "log a person whose score changes",
                "one UPDATE of everyone",
                "≤ 2",
                Ratio.among([ratio]),
                note=f"{changed.bytes / people:,.0f} against "
                f"{one_statement.bytes / people:,.0f} bytes",
            ),
            Figure.of(
                "records of users and its indexes, of a person whose score does not change",
                "the lock's",
                "= 1",
                Ratio.among([sum(of_users.values()) / locks]),
                note=f"{locks / people:.2f} locks a person; {unchanged.bytes / people:,.0f} bytes "
                "a person in all",
            ),
        ],
        tables=[
            changed.table("The worker, a score that changes", people),
            unchanged.table("The worker, a score that does not change", people),
            one_statement.table("One UPDATE of everyone, all scores change", people),
        ],
        remarks=[
            f"{people:,} people, a batch's worth at a time or all in one statement; bytes by "
            "pg_wal_lsn_diff, records by pg_walinspect. Each has a row in the queue, whose own "
            "coming is the application's to pay and is not counted here.",
        ],
        server=server,
    )
