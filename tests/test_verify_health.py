"""verify(): whose score is wrong, and whether that will mend itself. health: one row for people."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
from psycopg import Connection

from tests.community import (
    add_collaborator,
    add_project,
    add_user,
    configure,
    drain,
    score,
)
from tests.interleave import Sessions, assert_right, settle, until


@pytest.fixture(autouse=True)
def no_window(db: Connection[Any]) -> None:
    configure(db, debounce_window="0")


@contextmanager
def behind_our_back(db: Connection[Any]) -> Generator[None]:
    """Write as a restore or a replication does: no trigger sees it."""
    db.execute("set session_replication_role = replica")
    yield
    db.execute("reset session_replication_role")


def wrong(db: Connection[Any]) -> list[tuple[Any, ...]]:
    return db.execute(
        "select user_id, stored, computed, standing from builder_score.verify() order by stored"
    ).fetchall()


def health(db: Connection[Any], columns: str) -> Any:
    """Give one column, or several as a tuple."""
    row = db.execute(f"select {columns} from builder_score.health".encode()).fetchone()
    assert row is not None
    return row if len(row) > 1 else row[0]


# verify() ---------------------------------------------------------------------------------------


def test_verify_finds_what_no_trigger_saw_and_says_both_values(db: Connection[Any]) -> None:
    ann, bob, carol = (add_user(db, name) for name in ("ann", "bob", "carol"))
    project = add_project(db, bob, status="shipped")
    settle(db)
    assert wrong(db) == []
    with behind_our_back(db):
        db.execute("update users set builder_score = 99 where id = %s", [ann])
        db.execute("update projects set status = 'archived' where id = %s", [project])
        db.execute("update users set builder_score = null where id = %s", [carol])
    assert wrong(db) == [(bob, 10, 0, "wrong"), (ann, 99, 0, "wrong"), (carol, None, 0, "wrong")]

    db.execute("select builder_score.enqueue(user_id) from builder_score.verify()")
    settle(db)
    assert_right(db)


def test_verify_looks_at_the_given_users_alone(db: Connection[Any]) -> None:
    ann, bob, _ = (add_user(db, name) for name in ("ann", "bob", "carol"))
    settle(db)
    with behind_our_back(db):
        db.execute("update users set builder_score = 99")
    query = "select user_id from builder_score.verify(%s)"
    nobody = UUID(int=0)
    assert set(db.execute(query, [[ann, bob, nobody]]).fetchall()) == {(ann,), (bob,)}
    assert db.execute(query, [[]]).fetchall() == []


def test_verify_looks_at_everyone_of_many(db: Connection[Any]) -> None:
    db.execute("""
        insert into users (email, username)
        select format('%s@example.org', n), format('user%s', n) from generate_series(1, 2500) as n
    """)
    configure(db, batch_size=5000)
    settle(db)
    with behind_our_back(db):
        db.execute("update users set builder_score = 1")
    found = db.execute("select count(*), count(distinct user_id) from builder_score.verify()")
    assert found.fetchone() == (2500, 2500)


def test_verify_takes_the_age_as_of_the_last_recalculation(db: Connection[Any]) -> None:
    user = add_user(db, "ann")
    db.execute("update users set created_at = now() - interval '100 days'")
    settle(db)
    assert score(db, user) == 3
    with behind_our_back(db):
        db.execute("update users set created_at = created_at - interval '200 days'")
        db.execute(
            "update builder_score.score_state set computed_at = computed_at - interval '200 days'"
        )
    assert wrong(db) == []


@pytest.mark.parametrize("whose", ["own", "owner's project", "collaborator's project", "everyone"])
def test_what_is_queued_is_pending_and_not_wrong(db: Connection[Any], whose: str) -> None:
    owner, helper, stranger = (add_user(db, name) for name in ("owner", "helper", "stranger"))
    project = add_project(db, owner)
    add_collaborator(db, project, helper)
    settle(db)
    user = helper if whose == "collaborator's project" else owner
    with behind_our_back(db):
        db.execute("update users set builder_score = 98 where id = %s", [user])
        db.execute("update users set builder_score = 99 where id = %s", [stranger])
    db.execute(
        "insert into builder_score.score_recalc_queue (user_id, project_id, priority, reason)"
        " values (%s, %s, 10, 'test')",
        [user if whose == "own" else None, project if "project" in whose else None],
    )
    assert wrong(db) == [
        (user, 98, 8, "pending"),
        (stranger, 99, 0, "pending" if whose == "everyone" else "wrong"),
    ]


def test_a_walk_makes_everyone_pending_but_a_refresh_of_ages_does_not(
    db: Connection[Any],
) -> None:
    user = add_user(db, "ann")
    settle(db)
    with behind_our_back(db):
        db.execute("update users set builder_score = 99")
    db.execute("select builder_score.start_backfill('age', true)")
    assert wrong(db) == [(user, 99, 0, "wrong")]
    db.execute("update builder_score.backfill set only_ageing = false")
    assert wrong(db) == [(user, 99, 0, "pending")]


def test_verify_tells_dead_letters_from_wrong_scores(db: Connection[Any]) -> None:
    user = add_user(db, "ann")
    settle(db)
    with behind_our_back(db):
        db.execute("update users set builder_score = 99")
    db.execute(
        "insert into builder_score.score_dead_letter values (%s, 5, 'P0001', '', now(), now())",
        [user],
    )
    assert wrong(db) == [(user, 99, 0, "dead letter")]
    db.execute("select builder_score.enqueue(%s)", [user])
    assert wrong(db) == [(user, 99, 0, "pending")]


def test_verify_and_health_write_and_lock_nothing(db: Connection[Any], sessions: Sessions) -> None:
    add_user(db, "ann", bio="bio")
    reader, worker = sessions("reader"), sessions("worker")
    reader.run("begin transaction isolation level repeatable read read only")
    assert len(reader.run("select * from builder_score.verify()")) == 1
    reader.run("select * from builder_score.health")
    worker.start("call builder_score.drain()")
    worker.finish_without_waiting()
    assert len(reader.run("select * from builder_score.verify()")) == 1
    reader.run("commit")
    assert_right(db)


# health -----------------------------------------------------------------------------------------


def test_health_is_one_row_from_the_start(db: Connection[Any]) -> None:
    assert db.execute("select count(*) from builder_score.health").fetchone() == (1,)
    assert health(db, "queue_depth, due_now, oldest_due_age, dead_letters, retrying") == (
        0,
        0,
        None,
        0,
        0,
    )
    assert health(db, "last_run_at, heartbeat_age, scheduler, paused, attached") == (
        None,
        None,
        "none",
        False,
        True,
    )


def test_health_shows_the_queue(db: Connection[Any]) -> None:
    user = add_user(db, "ann")
    settle(db)
    db.execute(
        """
        insert into builder_score.score_recalc_queue (user_id, priority, reason, not_before)
        select %s, 10, 'test', clock_timestamp() + d
        from unnest(array['-10 minutes', '-5 minutes', '1 hour']::interval[]) as d
        """,
        [user],
    )
    depth, due, age = health(db, "queue_depth, due_now, oldest_due_age")
    assert (depth, due) == (3, 2)
    assert 600 <= age.total_seconds() < 660


def test_health_shows_failures(db: Connection[Any]) -> None:
    configure(db, max_attempts=2)
    add_user(db, "ann", bio="bio")
    db.execute("""
        create function object() returns trigger language plpgsql as $$
        begin raise exception 'no, thank you'; end $$;
        create trigger object before update on users for each row execute function object();
    """)
    db.execute("call builder_score.run_worker('0')")
    assert health(db, "retrying, dead_letters, failed") == (1, 0, 1)
    assert health(db, "last_error, last_error_at is not null") == ("P0001: no, thank you", True)
    db.execute("update builder_score.score_state set retry_at = clock_timestamp()")
    db.execute("update builder_score.score_recalc_queue set not_before = clock_timestamp()")
    db.execute("call builder_score.run_worker('0')")
    assert health(db, "retrying, dead_letters, failed") == (0, 1, 2)


def test_health_shows_the_errors_of_drain_too(db: Connection[Any]) -> None:
    add_user(db, "ann", bio="bio")
    db.execute("""
        create function object() returns trigger language plpgsql as $$
        begin raise exception 'no, thank you'; end $$;
        create trigger object before update on users for each row execute function object();
    """)
    drain(db)
    assert health(db, "last_error, last_error_at is not null") == ("P0001: no, thank you", True)


def test_health_adds_up_what_workers_and_drains_did(db: Connection[Any]) -> None:
    add_user(db, "ann", bio="bio")
    drain(db)
    assert health(db, "batches, recalculated, changed, last_batch_at is not null") == (
        1,
        1,
        1,
        True,
    )
    add_user(db, "bob")
    db.execute("call builder_score.run_worker('0')")
    assert health(db, "batches, recalculated, changed") == (2, 2, 1)


def test_health_shows_the_resident_workers_run_and_heartbeat(db: Connection[Any]) -> None:
    drain(db)
    assert health(db, "last_run_at, heartbeat_age") == (None, None)
    db.execute("call builder_score.run_worker('0')")
    age, recent = health(db, "heartbeat_age, last_run_at > clock_timestamp() - interval '1 minute'")
    assert (age.total_seconds() < 60, recent) == (True, True)
    assert health(db, "scheduler") == "worker"
    db.execute(
        "update builder_score.worker_status set heartbeat_at = heartbeat_at - interval '2 minutes'"
    )
    assert health(db, "scheduler") == "none"


def test_health_shows_pause_and_detach(db: Connection[Any]) -> None:
    configure(db, paused=True, paused_reason="a restore")
    assert health(db, "paused, paused_reason") == (True, "a restore")
    db.execute("select builder_score.detach()")
    assert health(db, "attached") is False


# Whatever happens to us -------------------------------------------------------------------------


def test_scores_are_readable_with_the_worker_stopped_and_our_tables_locked(
    db: Connection[Any], sessions: Sessions
) -> None:
    user = add_user(db, "ann", bio="bio")
    settle(db)
    configure(db, paused=True)
    admin, app = sessions("admin"), sessions("app")
    admin.run("begin")
    tables = db.execute(
        "select string_agg(oid::regclass::text, ', ') from pg_class"
        " where relnamespace = 'builder_score'::regnamespace and relkind = 'r'"
    ).fetchall()
    admin.run(f"lock table {tables[0][0]} in access exclusive mode")
    app.start("select builder_score from users where id = %s", [user])
    assert app.finish_without_waiting() == [(3,)]
    admin.run("rollback")


def test_scores_are_readable_while_a_batch_writes_them(
    db: Connection[Any], sessions: Sessions
) -> None:
    user = add_user(db, "ann", bio="bio")
    app, reader = sessions("app"), sessions("reader")
    app.run("begin")
    app.run("select builder_score.recalculate(%s)", [user])
    reader.start("select builder_score from users order by builder_score desc")
    assert reader.finish_without_waiting() == [(0,)]
    app.run("commit")
    until(lambda: score(db, user) == 3, "the score is visible")
