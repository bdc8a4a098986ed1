"""A batch costs what the batch is worth: no plan reads a whole table, whatever the statistics."""

from typing import Any, LiteralString, cast

import psycopg
import pytest
from psycopg import Connection

from tests.community import one

# Bigger than a batch by so much that a single scan shows.
PEOPLE = 20_000

FILL = f"""
    set session_replication_role = replica;
    insert into users (id, email, username)
        select md5(i::text)::uuid, i || '@example.org', 'user' || i
        from generate_series(1, {PEOPLE}) as i;
    insert into projects (id, owner_id, title, status)
        select md5('p' || i)::uuid, md5((i % {PEOPLE} + 1)::text)::uuid, 'p', 'shipped'
        from generate_series(1, {2 * PEOPLE}) as i;
    insert into project_collaborators (project_id, user_id, status)
        select md5('p' || i)::uuid, md5((i * 7 % {PEOPLE} + 1)::text)::uuid, 'confirmed'
        from generate_series(1, {2 * PEOPLE}) as i;
    insert into builder_score.score_state (user_id, score, computed_at)
        select id, 0, now() - interval '1 hour' from users;
    set session_replication_role = origin;
"""

READ = """
    select relname, seq_tup_read from pg_stat_xact_user_tables
    where relname in ('users', 'projects', 'project_collaborators', 'score_state')
      and seq_tup_read > 0
"""


@pytest.mark.parametrize("statistics", ["none", "analyzed"])
def test_a_batch_reads_no_table_from_end_to_end(
    db: Connection[Any], database: str, statistics: str
) -> None:
    for table in ("users", "projects", "project_collaborators"):
        db.execute(f"alter table {table} set (autovacuum_enabled = false)")
    db.execute(cast(LiteralString, FILL))
    if statistics == "analyzed":
        db.execute("analyze")
    with psycopg.connect(database) as worker:  # whose counters hold nothing but its own work
        # more than five times: a session's first five plans are made for their parameters
        for batch in range(8):
            db.execute(
                "insert into builder_score.score_recalc_queue (user_id, priority, reason)"
                " select md5(i::text)::uuid, 10, 'test' from generate_series(%s::integer, %s) as i",
                [batch * 500 + 1, batch * 500 + 500],
            )
            work = "select recalculated from builder_score.run_batch('drain')"
            assert worker.execute(work).fetchone() == (500,)
            assert worker.execute(READ).fetchall() == [], f"batch {batch}"
            worker.commit()


# Rows that a session has read from tables, by index or not.
FETCHED = """
    select coalesce(sum(seq_tup_read + idx_tup_fetch), 0) from pg_stat_xact_user_tables
    where schemaname in ('public', 'builder_score')
"""


@pytest.mark.parametrize("statistics", ["none", "analyzed"])
@pytest.mark.parametrize("stands_for", ["user", "project", "nothing"])
def test_who_is_pending_is_found_however_long_the_queue_is(
    db: Connection[Any], database: str, stands_for: str, statistics: str
) -> None:
    db.execute("alter table builder_score.score_recalc_queue set (autovacuum_enabled = false)")
    db.execute(cast(LiteralString, FILL))
    db.execute("""
        insert into builder_score.score_recalc_queue (user_id, priority, reason)
            select id, 20, 'test' from users;
        insert into builder_score.score_recalc_queue (project_id, priority, reason)
            select id, 10, 'test' from projects;
    """)
    mine: LiteralString = "(select md5(i::text)::uuid from generate_series(1, 100) as i)"
    if stands_for != "user":
        db.execute(f"delete from builder_score.score_recalc_queue where user_id in {mine}")
    if stands_for == "nothing":
        db.execute("delete from builder_score.score_recalc_queue where project_id is not null")
    if statistics == "analyzed":
        db.execute("analyze")
    for function in ("pending", "is_pending"):
        with psycopg.connect(database) as reader:
            found = reader.execute(
                f"select count(*) from unnest(array{mine}) as u(id),"
                f" builder_score.{function}(u.id) as p where p::text <> 'false'"
            ).fetchall()
            assert (found[0][0] > 0) == (stands_for != "nothing")
            assert one(reader, FETCHED) < 100 * 50, function


def test_a_batch_looks_for_rows_for_everyone_without_reading_the_queue(
    db: Connection[Any], database: str
) -> None:
    db.execute("""
        insert into builder_score.score_recalc_queue (user_id, priority, reason, not_before)
            select md5(i::text)::uuid, 20, 'test', now() + '1 hour'
            from generate_series(1, 20000) as i;
        insert into builder_score.score_recalc_queue (project_id, priority, reason, not_before)
            select md5(i::text)::uuid, 10, 'test', now() + '1 hour'
            from generate_series(1, 20000) as i;
        analyze builder_score.score_recalc_queue;
    """)
    with psycopg.connect(database) as worker:
        worker.execute("select builder_score.run_batch('drain')")
        worker.execute("select builder_score.refresh_ages()")
        assert one(worker, FETCHED) < 100


def test_the_leaderboard_is_read_from_its_index(db: Connection[Any]) -> None:
    db.execute(cast(LiteralString, FILL))
    db.execute("update users set builder_score = abs(hashtext(username)) % 101")
    db.execute("analyze users")
    page = """
        explain (format text) select username, builder_score from users
        where builder_score is not null and (builder_score, id) < (50, %s)
        order by builder_score desc, id desc limit 20
    """
    plan = "\n".join(
        line for (line,) in db.execute(page, ["80000000-0000-0000-0000-000000000000"]).fetchall()
    )
    assert "idx_users_builder_score" in plan
    assert "Sort" not in plan


def test_health_is_planned_as_the_one_row_that_it_is(db: Connection[Any]) -> None:
    (plan,) = db.execute("explain (format json) select * from builder_score.health").fetchall()[0]
    threshold = one(db, "select current_setting('jit_above_cost')::float8")
    # compiling it would take a hundred times as long as running it
    assert plan[0]["Plan"]["Total Cost"] < threshold / 10
