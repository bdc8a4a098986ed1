"""Everyone: one row, expanded in throttled steps; and the daily walk over ageing accounts."""

from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection

from pyscore import migrator
from tests.community import add_project, add_user, configure, drain, one, queue, score
from tests.interleave import Sessions, assert_right, is_quiet, settle


def step(db: Connection[Any]) -> None:
    """Take one step of the walk, as if the throttle's time had passed."""
    db.execute("update builder_score.backfill set resume_at = clock_timestamp()")
    db.execute("select builder_score.advance_backfill()")


def walk(db: Connection[Any]) -> tuple[Any, ...] | None:
    return db.execute("select reason, only_ageing, seen from builder_score.backfill").fetchone()


def add_people(db: Connection[Any], count: int) -> None:
    db.execute(
        """
        insert into users (email, username, bio)
        select format('%%s@example.org', n), format('user%%s', n), 'bio'
        from generate_series(1, %s) as n
        """,
        [count],
    )


def settled_people(db: Connection[Any], count: int) -> None:
    """Add people who have their scores already."""
    configure(db, debounce_window="0")
    add_people(db, count)
    settle(db)


def enqueue_everyone(db: Connection[Any], reason: str) -> None:
    db.execute("select builder_score.enqueue_everyone(%s)", [reason])


def test_attaching_to_a_database_that_has_people_enqueues_everyone_as_one_row(
    empty_database: str,
) -> None:
    migrator.upgrade(empty_database)
    with psycopg.connect(empty_database, autocommit=True) as db:
        users = [add_user(db, f"user{n}", bio="bio") for n in range(20)]
    migrator.downgrade(empty_database)
    migrator.upgrade(empty_database)
    with psycopg.connect(empty_database, autocommit=True) as db:
        assert queue(db) == [(None, None, 20, "attach")]
        drain(db)
        assert [score(db, user) for user in users] == [3] * 20
        assert_right(db)


def test_attaching_to_a_database_without_people_enqueues_nothing(db: Connection[Any]) -> None:
    db.execute("select builder_score.attach()")
    assert queue(db) == []


def test_a_walk_goes_on_where_it_stopped_and_sees_everyone_once(db: Connection[Any]) -> None:
    settled_people(db, 25)
    configure(db, backfill_per_second=10)
    enqueue_everyone(db, "test")
    seen: list[UUID] = []
    steps = 0
    while walk(db) is not None or steps == 0:
        step(db)
        steps += 1
        seen += [row[0] for row in queue(db) if row[0] is not None]
        assert {row[2:] for row in queue(db)} <= {(20, "test")}
        db.execute("delete from builder_score.score_recalc_queue")
    assert steps == 4  # 10, 10, 5, and one that finds nobody
    assert len(seen) == len(set(seen)) == 25
    assert seen == sorted(seen)  # by key, so that the index serves


def test_a_walk_keeps_to_backfill_per_second(db: Connection[Any]) -> None:
    settled_people(db, 30)
    configure(db, backfill_per_second=10)
    enqueue_everyone(db, "test")
    db.execute("select builder_score.advance_backfill()")
    lead = (
        "select extract(epoch from resume_at - started_at)::float8 * 10 from builder_score.backfill"
    )
    assert walk(db) == ("test", False, 10)
    assert one(db, lead) >= 10
    # not yet: the throttle says when
    db.execute("select builder_score.advance_backfill()")
    assert walk(db) == ("test", False, 10)
    assert one(
        db, "select builder_score.advance_backfill() = resume_at from builder_score.backfill"
    )

    # a walk that fell behind may catch up by a second's worth, not more
    db.execute(
        "update builder_score.backfill set resume_at = clock_timestamp() - interval '1 hour'"
    )
    db.execute("select builder_score.advance_backfill()")
    behind = "select clock_timestamp() - resume_at from builder_score.backfill"
    assert one(db, behind).total_seconds() < 1


def test_drain_walks_to_the_end_at_that_rate(db: Connection[Any]) -> None:
    settled_people(db, 60)
    configure(db, backfill_per_second=50)
    db.execute("update users set builder_score = 99")
    db.execute("delete from builder_score.score_recalc_queue")
    enqueue_everyone(db, "test")
    began = one(db, "select clock_timestamp()")
    drain(db)
    assert (one(db, "select clock_timestamp()") - began).total_seconds() >= 1  # 50, then 10
    assert_right(db)


def test_a_second_row_during_a_walk_gets_a_walk_of_its_own(db: Connection[Any]) -> None:
    settled_people(db, 15)
    configure(db, backfill_per_second=10)
    enqueue_everyone(db, "first")
    step(db)
    assert walk(db) == ("first", False, 10)
    # what the first walk has passed, the second one means too
    enqueue_everyone(db, "second")
    enqueue_everyone(db, "third")
    step(db)
    assert walk(db) == ("first", False, 15)
    step(db)
    assert walk(db) is None
    step(db)
    assert walk(db) == ("second, third", False, 10)


def test_a_formula_changed_during_a_walk_reaches_those_already_passed(
    db: Connection[Any],
) -> None:
    settled_people(db, 30)
    configure(db, backfill_per_second=10)
    enqueue_everyone(db, "first")
    step(db)
    db.execute("update builder_score.signals set scale = 12 where signal = 'profile'")
    configure(db, backfill_per_second=1000)
    settle(db)
    assert one(db, "select array_agg(distinct builder_score) from users") == [2]
    assert_right(db)


def test_somebody_who_signs_up_during_a_walk_gets_a_score(db: Connection[Any]) -> None:
    settled_people(db, 15)
    configure(db, backfill_per_second=10)
    enqueue_everyone(db, "test")
    step(db)
    # the walk goes by key, and is beyond the first of these
    passed = add_user(db, "passed", bio="bio", id=UUID(int=1))
    ahead = add_user(db, "ahead", bio="bio", id=UUID(int=2**128 - 1))
    settle(db)
    assert (score(db, passed), score(db, ahead)) == (3, 3)
    assert_right(db)


def test_a_walk_shows_in_health(db: Connection[Any]) -> None:
    settled_people(db, 15)
    db.execute("analyze users")
    health = "select backfill_seen, backfill_total from builder_score.health"
    assert db.execute(health).fetchone() == (None, None)
    configure(db, backfill_per_second=10)
    enqueue_everyone(db, "test")
    step(db)
    assert db.execute(health).fetchone() == (10, 15)


def test_truncate_removes_what_we_remember_of_the_gone(db: Connection[Any]) -> None:
    settled_people(db, 5)
    db.execute(
        "insert into builder_score.score_dead_letter"
        " select id, 5, 'P0001', '', now(), now() from users limit 1"
    )
    db.execute("truncate users cascade")
    reasons = {"truncate: users", "truncate: projects", "truncate: project_collaborators"}
    assert {row[3] for row in queue(db)} == reasons
    late = add_user(db, "late", bio="bio")
    settle(db)
    assert db.execute("select user_id from builder_score.score_state").fetchall() == [(late,)]
    assert db.execute("select user_id from builder_score.score_dead_letter").fetchall() == []
    assert_right(db)


@pytest.mark.parametrize("table", ["projects", "project_collaborators"])
def test_truncating_what_scores_are_made_of_recomputes_everyone(
    db: Connection[Any], table: str
) -> None:
    configure(db, debounce_window="0")
    owner, helper = add_user(db, "owner"), add_user(db, "helper")
    project = add_project(db, owner, status="shipped")
    db.execute(
        "insert into project_collaborators (project_id, user_id, status)"
        " values (%s, %s, 'confirmed')",
        [project, helper],
    )
    settle(db)
    assert (score(db, owner), score(db, helper)) == (18, 8)
    db.execute(f"truncate {table} cascade".encode())
    settle(db)
    assert (score(db, owner), score(db, helper)) == (10 if table != "projects" else 0, 0)
    assert_right(db)


def test_two_workers_and_one_everyone_row_make_one_walk(
    db: Connection[Any], sessions: Sessions
) -> None:
    settled_people(db, 5)
    enqueue_everyone(db, "test")
    first = sessions("first")
    first.run("begin")
    first.run("select builder_score.advance_backfill()")
    second = sessions("second")
    second.run("call builder_score.drain()")  # gives up after lock_timeout
    assert not is_quiet(db)
    first.run("commit")
    settle(db)
    row = db.execute("select recalculated from builder_score.health").fetchone()
    assert row == (10,)  # five first scores, five of the walk
    assert_right(db)


def test_an_everyone_row_beside_a_refresh_that_is_just_starting_is_not_lost(
    db: Connection[Any], sessions: Sessions
) -> None:
    configure(db, debounce_window="0")
    settled_people(db, 5)
    refresher, worker = sessions("refresher"), sessions("worker")
    refresher.run("begin")
    refresher.run("select builder_score.refresh_ages()")
    db.execute("update builder_score.signals set scale = 12 where signal = 'profile'")
    worker.start("call builder_score.drain()")
    worker.finish_without_waiting()  # one of them can start a walk
    assert one(db, "select count(*) from builder_score.score_recalc_queue") == 1
    refresher.run("commit")
    settle(db)
    assert one(db, "select array_agg(distinct builder_score) from users") == [2]
    assert_right(db)


# Ageing accounts ----------------------------------------------------------------------------------


def test_refresh_enqueues_exactly_the_ageing_accounts_whose_score_is_old(
    db: Connection[Any],
) -> None:
    configure(db, debounce_window="0", refresh_after="7 days")
    people = {
        # name: (account's age in days, score's age in days)
        "young, old score": (100, 8),
        "young, new score": (100, 6),
        "capped since the score": (370, 8),
        "capped when scored": (374, 8),
        "capped long ago": (4000, 30),
    }
    for name, (account, _) in people.items():
        add_user(db, name)
        db.execute(
            "update users set created_at = now() - make_interval(days => %s) where username = %s",
            [account, name],
        )
    settle(db)
    add_user(db, "never scored")
    db.execute("delete from builder_score.score_recalc_queue")
    for name, (_, computed) in people.items():
        db.execute(
            "update builder_score.score_state as s"
            " set computed_at = clock_timestamp() - make_interval(days => %s)"
            " from users as u where u.id = s.user_id and u.username = %s",
            [computed, name],
        )

    assert one(db, "select builder_score.refresh_ages()") is True
    assert one(db, "select builder_score.refresh_ages()") is False  # one walk at a time
    step(db)
    names = db.execute(
        "select u.username, q.priority, q.reason from builder_score.score_recalc_queue as q"
        " join users as u on u.id = q.user_id order by 1"
    ).fetchall()
    # nothing is known of whoever was loaded past the triggers: that is as old as can be
    due = ("capped since the score", "never scored", "young, old score")
    assert names == [(name, 20, "age") for name in due]
    assert one(db, "select refreshed_at is not null from builder_score.host")


def test_refresh_moves_the_score_with_the_age(db: Connection[Any]) -> None:
    configure(db, debounce_window="0")
    user = add_user(db, "ann")
    db.execute("update users set created_at = now() - interval '100 days'")
    settle(db)
    assert score(db, user) == 3  # 10 * 100 / 365
    # forty days later
    db.execute("""
        alter table users disable trigger user;
        update users set created_at = created_at - interval '40 days';
        alter table users enable trigger user;
        update builder_score.score_state set computed_at = computed_at - interval '40 days';
    """)
    assert_right(db)  # a score is right as of the moment it was computed
    db.execute("select builder_score.refresh_ages()")
    settle(db)
    assert score(db, user) == 4
    assert_right(db)


def test_the_resident_worker_refreshes_once_a_day(db: Connection[Any]) -> None:
    db.execute("call builder_score.run_worker('0')")
    first = one(db, "select refreshed_at from builder_score.host")
    assert first is not None
    db.execute("call builder_score.run_worker('0')")
    assert one(db, "select refreshed_at from builder_score.host") == first
    db.execute("update builder_score.host set refreshed_at = refreshed_at - interval '25 hours'")
    db.execute("delete from builder_score.backfill")
    db.execute("call builder_score.run_worker('0')")
    assert one(db, "select refreshed_at from builder_score.host") > first


def test_with_the_age_signal_off_nobody_is_refreshed(db: Connection[Any]) -> None:
    configure(db, debounce_window="0")
    add_user(db, "ann")
    settle(db)
    db.execute("update builder_score.signals set max_points = 0 where signal = 'age'")
    settle(db)
    db.execute("update builder_score.score_state set computed_at = now() - interval '30 days'")
    db.execute("select builder_score.refresh_ages()")
    step(db)
    assert queue(db) == []
