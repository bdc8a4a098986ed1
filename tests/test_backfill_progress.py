"""A large table is walked in small steps, and ``pyscore status`` shows how far the walk is."""

import json
from typing import Any

import pytest
from psycopg import Connection

from tests.commands import call
from tests.community import configure, one

PEOPLE = 15_000

AT_ONCE = 1_000
"""The most people that one step puts into the queue."""


@pytest.fixture
def crowd(db: Connection[Any]) -> Connection[Any]:
    """A database with many people, of whom we have yet to hear."""
    with db.transaction():
        db.execute("set local session_replication_role = replica")  # no trigger of ours fires
        db.execute(
            "insert into users (username, email)"
            " select 'user ' || n, n || '@example.org' from generate_series(1, %s) as n",
            [PEOPLE],
        )
    db.execute("analyze users")
    db.execute("select builder_score.enqueue_everyone('attach')")
    return db


def queued(db: Connection[Any]) -> int:
    return one(
        db, "select count(*) from builder_score.score_recalc_queue where user_id is not null"
    )


def step(db: Connection[Any]) -> int:
    """Let the throttle's time pass, and take a step; give how many people it enqueued."""
    before = queued(db)
    db.execute("update builder_score.backfill set resume_at = clock_timestamp()")
    db.execute("select builder_score.advance_backfill()")
    return queued(db) - before


def status(database: str) -> tuple[dict[str, Any], str]:
    data = json.loads(call("status", "--json", "--dsn", database).stdout)
    said = " ".join(call("status", "--dsn", database).stdout.split())
    return data, said


def test_every_step_is_small_and_leaves_its_time_to_the_others(crowd: Connection[Any]) -> None:
    for per_second, enqueued in [(5_000, AT_ONCE), (1_000_000, AT_ONCE), (200, 200)]:
        configure(crowd, backfill_per_second=per_second)
        assert step(crowd) == enqueued
        # what the step may take, by the rate; nothing is enqueued before it has passed
        seconds = (
            "select extract(epoch from resume_at - clock_timestamp()) from builder_score.backfill"
        )
        assert one(crowd, seconds) <= enqueued / per_second
        crowd.execute(
            "update builder_score.backfill set resume_at = clock_timestamp() + interval '1 second'"
        )
        before = queued(crowd)
        crowd.execute("select builder_score.advance_backfill()")
        assert queued(crowd) == before


def test_a_worker_takes_no_more_than_a_step_between_two_batches(crowd: Connection[Any]) -> None:
    configure(crowd, backfill_per_second=5_000, batch_size=100)
    # a trigger on our own queue counts what each transaction of the worker's appends
    crowd.execute("""
        create table appended (transaction xid8, people bigint);
        create function count_appended() returns trigger language plpgsql as $$
        begin
            insert into public.appended
            select pg_current_xact_id(), count(*) from new_rows where user_id is not null;
            return null;
        end $$;
        grant insert on appended to builder_score_owner;
        create trigger count_appended after insert on builder_score.score_recalc_queue
            referencing new table as new_rows
            for each statement execute function count_appended();
    """)
    crowd.execute("call builder_score.run_worker('1 second')")
    most = (
        "select max(people) from"
        " (select sum(people) from appended group by transaction) as t (people)"
    )
    assert 0 < one(crowd, most) <= AT_ONCE
    # by the rate, whatever the machine's speed: the walk's own clock is never ahead by more
    ahead = (
        "select sum(people) <= 1000 + 5000 * extract(epoch from max(b.resume_at - b.started_at))"
        " from appended cross join builder_score.backfill as b"
    )
    assert one(crowd, ahead)


def test_status_shows_how_far_it_is(crowd: Connection[Any], database: str) -> None:
    data, said = status(database)
    assert data["backfill"] is None
    assert "20 low 1 1" in said, "everyone is one row, until a worker comes by"

    for steps in range(1, 13):
        assert step(crowd) == AT_ONCE
        if steps in (1, 12):
            data, said = status(database)
            walk = data["backfill"]
            assert (walk["seen"], walk["estimated_total"]) == (steps * AT_ONCE, PEOPLE)
            assert (data["backfill_seen"], data["backfill_total"]) == (steps * AT_ONCE, PEOPLE)
            assert f" {steps * AT_ONCE:,} of about {PEOPLE:,} users seen" in said
            assert "everyone (attach), since " in said
            (low,) = (row for row in data["queue"] if row["priority"] == 20)
            assert low["queue_depth"] == steps * AT_ONCE

    configure(crowd, backfill_per_second=1_000_000)
    while one(crowd, "select exists (select from builder_score.backfill)"):
        step(crowd)
    assert queued(crowd) == PEOPLE
    data, said = status(database)
    assert data["backfill"] is None
    assert "users seen" not in said
