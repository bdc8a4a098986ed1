"""Errors as the server itself raises them in a batch: nobody is blamed, nothing lost, all heals.

A deadlock, a full disk, a timeout; rights that were taken away, and a function that was dropped.
"""

from typing import Any, LiteralString
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection

from tests.community import add_project, add_user, configure, drain, one, queue, score
from tests.interleave import (
    Sessions,
    assert_right,
    batch_stopped,
    install_gates,
    make_due,
    settle,
)


@pytest.fixture
def eve(db: Connection[Any]) -> UUID:
    """Somebody whom the host's triggers treat differently, among others: all of them are queued."""
    configure(db, debounce_window="0")
    for number in range(9):
        add_user(db, f"user{number}", bio="bio")
    return add_user(db, "eve", bio="bio")


def host_trigger(db: Connection[Any], body: LiteralString, options: LiteralString = "") -> None:
    """Have a trigger of the host's run a statement whenever eve's score is written."""
    db.execute(
        "create function host_trigger() returns trigger language plpgsql security definer"
        f" {options} as $$ begin {body}; return new; end $$;"
        " create trigger host_trigger before update of builder_score on users"
        " for each row when (new.username = 'eve') execute function host_trigger()"
    )


def last_error(db: Connection[Any]) -> str:
    return one(db, "select last_error from builder_score.health") or ""


def blamed(db: Connection[Any]) -> tuple[int, int, int]:
    """Failures counted, users in backoff, dead letters."""
    return db.execute("select failed, retrying, dead_letters from builder_score.health").fetchall()[
        0
    ]


def test_a_deadlock_with_a_trigger_of_the_hosts_costs_neither_side_anything(
    db: Connection[Any], sessions: Sessions, eve: UUID
) -> None:
    db.execute("create table counters (n integer); insert into counters values (0)")
    host_trigger(db, "update counters set n = n + 1")
    install_gates(db)
    app, worker, keeper = sessions("app"), sessions("worker"), sessions("keeper")
    app.run("set deadlock_timeout = '1min'")  # it is the worker that looks, and gives way
    worker.run("set deadlock_timeout = '10ms'")
    app.run("begin")
    app.run("update counters set n = n + 100")
    with batch_stopped(worker, keeper, "after computing"):
        app.start("update users set bio = 'more' where username = 'eve'")
        app.waits_for(worker)
    app.finish()
    assert last_error(db).startswith("40P01: ")
    assert blamed(db) == (0, 0, 0)
    app.run("commit")
    settle(db)
    assert_right(db)
    assert one(db, "select n from counters") == 101


def test_a_full_disk_strikes_one_user_and_the_rest_commit(db: Connection[Any], eve: UUID) -> None:
    sort = "perform count(*) from (select g from generate_series(1, 50000) as g order by -g) as s"
    host_trigger(db, sort, "set temp_file_limit = 0 set work_mem = '64kB'")
    with psycopg.connect(db.info.dsn, autocommit=True) as worker:
        worker.execute("set deadlock_timeout = '10min'")  # a batch may split for as long
        worker.execute("call builder_score.drain()")
    # PostgreSQL 18 has quotes around the name
    said = last_error(db).replace('"', "")
    assert said.startswith("53400: temporary file size exceeds temp_file_limit")
    assert blamed(db) == (0, 0, 0)
    assert [user for user, *_ in queue(db)] == [eve]
    assert one(db, "select count(*) from users where builder_score = 3") == 9
    db.execute("drop trigger host_trigger on users")
    settle(db)
    assert_right(db)


def test_a_statement_timeout_takes_the_batch_back_and_blames_nobody(
    db: Connection[Any], sessions: Sessions, eve: UUID
) -> None:
    configure(db, lock_timeout="10 seconds", max_attempts=1)
    host_trigger(db, "perform pg_advisory_xact_lock(8)")
    keeper, worker = sessions("keeper"), sessions("worker")
    keeper.run("select pg_advisory_lock(8)")
    before = queue(db)
    worker.run("set statement_timeout = '50ms'")
    for _ in range(3):
        with pytest.raises(psycopg.errors.QueryCanceled):
            worker.run("call builder_score.drain()")
    assert (queue(db), blamed(db)) == (before, (0, 0, 0))
    keeper.run("select pg_advisory_unlock(8)")
    settle(db)
    assert_right(db)


TAKEN_AWAY: list[tuple[LiteralString, LiteralString]] = [
    (
        "revoke select on users from builder_score_owner",
        "grant select on users to builder_score_owner",
    ),
    (
        "revoke update (builder_score) on users from builder_score_owner",
        "grant update (builder_score) on users to builder_score_owner",
    ),
    (
        "revoke select on projects from builder_score_owner",
        "grant select on projects to builder_score_owner",
    ),
    (
        "revoke select on project_collaborators from builder_score_owner",
        "select builder_score.attach()",
    ),
]


@pytest.mark.parametrize(("taken", "given_back"), TAKEN_AWAY, ids=lambda done: done[:40])
def test_without_a_right_that_everybodys_score_needs_the_worker_stops_and_blames_nobody(
    db: Connection[Any], eve: UUID, taken: LiteralString, given_back: LiteralString
) -> None:
    configure(db, max_attempts=1)
    before = queue(db)
    db.execute(taken)
    for _ in range(2):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            drain(db)
    add_project(db, eve, status="shipped")  # the application goes on
    assert queue(db)[: len(before)] == before
    assert blamed(db) == (0, 0, 0)
    db.execute(given_back)
    settle(db)
    assert score(db, eve) == 13
    assert_right(db)


def test_a_function_that_a_hosts_trigger_misses_fails_everyone_until_it_is_there_again(
    db: Connection[Any], eve: UUID
) -> None:
    configure(db, max_attempts=2, batch_size=4)
    db.execute("""
        create function stamp() returns integer language sql as 'select 1';
        create function host_trigger() returns trigger language plpgsql as
        'begin perform stamp(); return new; end';
        create trigger host_trigger before update on users
            for each row execute function host_trigger();
        drop function stamp();
    """)
    drain(db)
    assert blamed(db) == (10, 10, 0)
    assert last_error(db).startswith("42883: function stamp() does not exist")
    db.execute(
        "update builder_score.score_state set retry_at = null where attempts = 1 and user_id = %s",
        [eve],
    )
    make_due(db)
    drain(db)
    assert blamed(db) == (11, 9, 1)

    db.execute("create function stamp() returns integer language sql as 'select 1'")
    # who is in backoff needs nobody; who was given up is listed, and retried with one command
    db.execute("update builder_score.score_state set retry_at = now() where attempts > 0")
    settle(db)
    assert blamed(db) == (11, 0, 1)
    assert db.execute("select builder_score.retry_dead_letters()").fetchall() == [(1,)]
    settle(db)
    assert_right(db)
