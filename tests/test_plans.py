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
