"""Databases in which every score has to change, and what all who change them must agree on.

    prepare(cluster, 100_000)
    with copy(cluster, QUEUED) as db:
        db.execute("call builder_score.drain()")
        assert_all_right(db)

In QUEUED each person has a row in our queue, in an order that is nobody's. PLAIN is the same for
those who have a queue of their own or need none: our triggers are off, so that they write as if
we were not there, and its table batches holds the same people by the batch.
"""

import itertools
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from psycopg import Connection

from benchmarks import hosts, servers
from pyscore.cluster import PrivateCluster

QUEUED = "queued"
PLAIN = "plain"

EVERYONE = (Path(__file__).parent / "peers" / "everyone.sql").read_text(encoding="utf-8")
"""One statement that recomputes everyone, as a good author of SQL would write it."""

_CHANGE_EVERYONE = """
    create table expected as select id, builder_score as score from users;
    alter table expected add primary key (id);
    alter table users disable trigger user;
    update users set builder_score = (builder_score + 37) % 101;
    alter table users enable trigger user;
    update builder_score.score_state as s
    set score = u.builder_score, computed_at = s.computed_at - interval '1 day'
    from users as u where u.id = s.user_id;
    insert into builder_score.score_recalc_queue (user_id, priority, reason)
    select id, 10, 'benchmark' from users order by md5('order' || id);
"""

_WITHOUT_US = """
    alter table users disable trigger user;
    alter table projects disable trigger user;
    alter table project_collaborators disable trigger user;
    create table batches as
    select o.place / s.batch_size as number, array_agg(o.id order by o.id) as user_ids
    from (select id, row_number() over (order by md5('order' || id)) - 1 as place from users) as o
    cross join builder_score.settings as s
    group by 1;
    alter table batches add primary key (number);
"""

# What recomputing needs and no more: compute, write, commit. The write probes the index, as ours
# does: left alone, the planner would scan all users for a batch.
_COMPUTE_AND_WRITE = """
    create function write_scores(user_ids uuid[], scores integer[]) returns void language plpgsql
    set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $function$
    begin
        update users as u set builder_score = w.score
        from unnest(user_ids, scores) as w(id, score) where u.id = w.id;
    end
    $function$;
    create procedure compute_and_write() language plpgsql as $procedure$
    declare
        v_number bigint;
        v_ids builder_score.user_id[];
    begin
        for v_number in 0..(select max(number) from batches) loop
            select b.user_ids into v_ids from batches as b where b.number = v_number;
            perform write_scores(array_agg(c.user_id::uuid), array_agg(round(c.score)::integer))
            from builder_score.compute(
                v_ids, array_fill(clock_timestamp(), array[cardinality(v_ids)])) as c;
            commit;
        end loop;
    end
    $procedure$;
"""

_numbers = itertools.count(1)


def prepare(cluster: PrivateCluster, people: int) -> None:
    """Make both."""
    hosts.fill(cluster, QUEUED, people)
    hosts.install(cluster, QUEUED)
    with servers.connect(cluster, QUEUED) as db:
        assert_verified(db)
        db.execute(_CHANGE_EVERYONE)
        if db.execute("select from pg_available_extensions where name = 'pg_prewarm'").fetchone():
            db.execute("create extension pg_prewarm")
        db.execute("vacuum (analyze)")
    hosts.twin(cluster, QUEUED, PLAIN)
    with servers.connect(cluster, PLAIN) as db:
        db.execute(_WITHOUT_US)
        db.execute(_COMPUTE_AND_WRITE)
        db.execute("vacuum (analyze)")


@contextmanager
def copy(cluster: PrivateCluster, database: str) -> Generator[Connection[Any]]:
    """Connect to a copy that is in memory, and drop it afterwards."""
    name = f"copy_{next(_numbers)}"
    hosts.twin(cluster, database, name)
    try:
        with servers.connect(cluster, name) as db:
            if db.execute("select from pg_extension where extname = 'pg_prewarm'").fetchone():
                db.execute(
                    "select pg_prewarm(oid::regclass) from pg_class where relkind in ('r', 'i')"
                    " and relnamespace in ('public'::regnamespace, 'builder_score'::regnamespace)"
                )
            yield db
    finally:
        cluster.psql("-c", f"drop database {name} with (force)")


def assert_all_right(db: Connection[Any], people: Sequence[UUID] | None = None) -> None:
    """Everyone, or these people, have the score that our worker gave and verify() confirmed."""
    wrong = count_wrong(db, people)
    assert wrong == 0, f"{wrong} scores are not as they should be"


def count_wrong(db: Connection[Any], people: Sequence[UUID] | None = None) -> int:
    """How many people do not have the score that they should have."""
    query = """
        select count(*) from users as u full join expected as e using (id)
        where u.builder_score is distinct from e.score"""
    if people is None:
        rows = db.execute(query).fetchall()
    else:
        query = """
            select count(*)
            from unnest(%s::uuid[]) as i(id)
            left join users as u using (id) left join expected as e using (id)
            where u.builder_score is distinct from e.score"""
        rows = db.execute(query, [list(people)]).fetchall()
    return rows[0][0]


def assert_verified(db: Connection[Any]) -> None:
    """Nothing is queued, and every score is what compute() says."""
    left = db.execute("select count(*) from builder_score.score_recalc_queue").fetchall()[0][0]
    assert left == 0, f"{left} rows are still queued"
    wrong = db.execute("select count(*) from builder_score.verify()").fetchall()[0][0]
    assert wrong == 0, f"verify() finds {wrong} scores"
