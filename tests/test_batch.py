"""What one batch takes, writes and leaves; and drain(), which runs batches."""

from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection

from tests.community import (
    add_collaborator,
    add_project,
    add_user,
    configure,
    drain,
    queue,
    score,
)
from tests.interleave import Sessions, assert_right, batch_stopped, install_gates, settle


@pytest.fixture(autouse=True)
def no_window(db: Connection[Any]) -> None:
    configure(db, debounce_window="0")


def batch(db: Connection[Any]) -> None:
    db.execute("select builder_score.run_batch('drain')")


def enqueue(db: Connection[Any], user: UUID, priority: int, minutes_ago: int) -> None:
    db.execute(
        """
        insert into builder_score.score_recalc_queue (user_id, priority, reason, not_before)
        values (%s, %s, 'test', clock_timestamp() - make_interval(mins => %s))
        """,
        [user, priority, minutes_ago],
    )


def queued_users(db: Connection[Any]) -> set[UUID | None]:
    return {row[0] for row in queue(db)}


def versions(db: Connection[Any]) -> dict[str, str]:
    """Name the version of every users row: it changes whenever the row is written."""
    return dict(
        db.execute("select username, ctid::text || ' ' || xmin::text from users").fetchall()
    )


# What is chosen ---------------------------------------------------------------------------------


def test_the_best_priority_comes_first_then_the_longest_due(db: Connection[Any]) -> None:
    users = [add_user(db, name) for name in "abcde"]
    settle(db)
    a, b, c, d, e = users
    enqueue(db, a, 20, 50)
    enqueue(db, b, 10, 10)
    enqueue(db, c, 10, 20)
    enqueue(db, d, 0, 1)
    enqueue(db, e, 0, 2)
    configure(db, batch_size=1)
    # the tenth place, which goes by age alone, is not among these
    db.execute("update builder_score.worker_status set batches = 0")
    order: list[UUID] = []
    for _ in users:
        before = queued_users(db)
        batch(db)
        (done,) = before - queued_users(db)
        assert done is not None
        order.append(done)
    assert order == [e, d, c, b, a]


@pytest.mark.parametrize("batch_size", [1, 3, 10, 25])
def test_under_endless_high_priority_load_a_low_row_is_processed_within_ten_batches(
    db: Connection[Any], batch_size: int
) -> None:
    low = add_user(db, "low")
    high = [add_user(db, f"high{n}") for n in range(batch_size * 2)]
    settle(db)
    configure(db, batch_size=batch_size)
    enqueue(db, low, 20, 60)
    for _ in range(10):
        for user in high:  # more than a batch takes, all the time
            enqueue(db, user, 0, 0)
        batch(db)
        if low not in queued_users(db):
            break
    assert low not in queued_users(db)
    assert set(high) & queued_users(db), "the load was not endless"


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_a_project_row_gets_the_tenth_place_too(db: Connection[Any], batch_size: int) -> None:
    owner = add_user(db, "owner")
    project = add_project(db, owner)
    high = [add_user(db, f"high{n}") for n in range(batch_size * 2)]
    settle(db)
    configure(db, batch_size=batch_size)
    db.execute(
        """
        insert into builder_score.score_recalc_queue (project_id, priority, reason, not_before)
        values (%s, 20, 'test', clock_timestamp() - interval '1 hour')
        """,
        [project],
    )
    for _ in range(10):
        for user in high:
            enqueue(db, user, 0, 0)
        batch(db)
    assert project not in {row[1] for row in queue(db)}


def test_a_batch_takes_no_more_users_than_batch_size(db: Connection[Any]) -> None:
    users = [add_user(db, f"user{n}") for n in range(7)]
    settle(db)
    for user in users:
        enqueue(db, user, 10, 1)
    configure(db, batch_size=3)
    batch(db)
    assert 4 <= len(queue(db)) <= 5


def test_a_row_that_is_not_due_is_not_looked_at(db: Connection[Any]) -> None:
    user = add_user(db, "ann")
    settle(db)
    enqueue(db, user, 0, -5)
    drain(db)
    assert queued_users(db) == {user}


def test_a_due_row_answers_the_users_later_rows_too(db: Connection[Any]) -> None:
    user = add_user(db, "ann")
    settle(db)
    enqueue(db, user, 10, 1)
    enqueue(db, user, 20, -5)
    drain(db)
    assert queue(db) == []


# What is written ----------------------------------------------------------------------------------


def test_an_unchanged_score_is_not_written(db: Connection[Any]) -> None:
    users = [add_user(db, name, bio="bio") for name in ("ann", "bob")]
    settle(db)
    before = versions(db)
    for user in users:
        db.execute("select builder_score.enqueue(%s)", [user])
    add_project(db, users[1], status="shipped")
    drain(db)
    after = versions(db)
    assert after["ann"] == before["ann"]
    assert after["bob"] != before["bob"]
    row = db.execute("select count(*) from builder_score.score_state").fetchone()
    assert row == (2,)
    assert_right(db)


def test_exactly_the_rows_that_were_seen_are_deleted(
    db: Connection[Any], sessions: Sessions
) -> None:
    user, other = add_user(db, "ann", bio="bio"), add_user(db, "bob")
    settle(db)
    db.execute("update users set headline = 'headline' where id = %s", [user])
    install_gates(db)
    app = sessions("app")
    app.run("begin")
    app.run("select builder_score.enqueue(%s, 10, 'uncommitted when seen')", [user])
    with batch_stopped(sessions("worker"), sessions("keeper"), "after re-reading"):
        app.run("commit")
        db.execute("select builder_score.enqueue(%s, 10, 'later')", [user])
        db.execute("select builder_score.enqueue(%s, 10, 'later')", [other])
        configure(db, paused=True)  # the drain ends after this batch
    assert queue(db) == [
        (user, None, 10, "uncommitted when seen"),
        (user, None, 10, "later"),
        (other, None, 10, "later"),
    ]


def test_a_project_row_becomes_rows_of_its_owner_and_confirmed_collaborators(
    db: Connection[Any],
) -> None:
    owner, helper, invited, stranger = (add_user(db, name) for name in "ohis")
    project = add_project(db, owner)
    add_collaborator(db, project, helper)
    add_collaborator(db, project, invited, "pending")
    add_project(db, stranger)
    settle(db)
    db.execute(
        "insert into builder_score.score_recalc_queue (project_id, priority, reason)"
        " values (%s, 10, 'transfer'), (%s, 20, 'transfer')",
        [project, project],
    )
    db.execute("select builder_score.expand_projects(10)")
    assert sorted(queue(db)) == sorted(
        [(owner, None, 10, "transfer"), (helper, None, 10, "transfer")]
    )
    settle(db)
    assert_right(db)


def test_a_row_of_a_project_that_is_gone_disappears(db: Connection[Any]) -> None:
    owner = add_user(db, "ann")
    project = add_project(db, owner)
    db.execute("delete from projects")
    db.execute(
        "insert into builder_score.score_recalc_queue (project_id, priority, reason)"
        " values (%s, 10, 'late')",
        [project],
    )
    settle(db)
    assert_right(db)


def test_state_and_dead_letter_of_a_deleted_user_are_removed(db: Connection[Any]) -> None:
    user, other = add_user(db, "ann"), add_user(db, "bob")
    settle(db)
    db.execute(
        "insert into builder_score.score_dead_letter values (%s, 5, 'P0001', '', now(), now())",
        [user],
    )
    db.execute("delete from users where id = %s", [user])
    drain(db)
    known = db.execute("select user_id from builder_score.score_state").fetchall()
    assert known == [(other,)]
    assert db.execute("select * from builder_score.score_dead_letter").fetchall() == []
    assert_right(db)


def test_rows_of_somebody_who_never_was_disappear(db: Connection[Any]) -> None:
    db.execute("select builder_score.enqueue(gen_random_uuid(), 0)")
    drain(db)
    assert queue(db) == []
    assert db.execute("select * from builder_score.score_state").fetchall() == []


def test_state_keeps_the_score_the_one_before_and_the_formula(db: Connection[Any]) -> None:
    user = add_user(db, "ann")
    settle(db)
    add_project(db, user, status="shipped")
    settle(db)
    db.execute("select builder_score.enqueue(%s)", [user])  # unchanged: the one before stays
    settle(db)
    state = """
        select score, previous_score, formula_stamp = builder_score.formula_stamp(),
               computed_at between clock_timestamp() - interval '1 minute' and clock_timestamp()
        from builder_score.score_state
    """
    assert db.execute(state).fetchall() == [(10, 0, True, True)]
    db.execute("update builder_score.signals set scale = 5 where signal = 'shipped'")
    assert db.execute(state).fetchall() == [(10, 0, False, True)]
    settle(db)
    assert db.execute(state).fetchall() == [(5, 10, True, True)]
    assert_right(db)


def test_totals_count_batches_recalculations_and_changes(db: Connection[Any]) -> None:
    ann, bob = add_user(db, "ann", bio="bio"), add_user(db, "bob")
    drain(db)
    row = db.execute(
        "select batches, passes, recalculated, changed, failed from builder_score.worker_status"
        " where worker = 'drain'"
    ).fetchone()
    assert row == (1, 1, 2, 1, 0)
    assert (score(db, ann), score(db, bob)) == (3, 0)


# The host's own triggers ------------------------------------------------------------------------


def test_the_hosts_triggers_find_their_unqualified_names(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("""
            create schema audit;
            create table audit.log (username text, score integer);
            create function audit.note(text, integer) returns void language sql
                as 'insert into audit.log values ($1, $2)';
            create function note() returns trigger language plpgsql as $$
            begin
                perform note(new.username, new.builder_score) from projects;
                insert into log values (new.username, new.builder_score);
                return null;
            end $$;
            create trigger note after update on users for each row execute function note();
            grant usage on schema audit to builder_score_owner;
            grant insert on audit.log to builder_score_owner;
        """)
        db.execute("set search_path = public, audit")
        db.execute("select builder_score.attach()")
        db.execute("reset search_path")
        user = add_user(db, "ann", bio="bio")
        add_project(db, user)
        drain(db)
        assert score(db, user) == 3
        assert db.execute("select * from audit.log").fetchall() == [("ann", 3), ("ann", 3)]


def test_the_hosts_search_path_is_for_the_write_alone(db: Connection[Any]) -> None:
    # names in front of pg_catalog's would be taken, were the host's path in force elsewhere
    db.execute("""
        create schema trap;
        create function trap.unnest(anyarray) returns setof anyelement language plpgsql
            as $$ begin raise 'trapped'; end $$;
        create function trap.clock_timestamp() returns timestamptz language plpgsql
            as $$ begin raise 'trapped'; end $$;
        create function trap.set_config(text, text, boolean) returns text language plpgsql
            as $$ begin raise 'trapped'; end $$;
        grant usage on schema trap to public;
    """)
    db.execute("set search_path = trap, pg_catalog, public")
    db.execute("select builder_score.attach()")
    user = add_user(db, "ann", bio="bio")
    drain(db)
    assert score(db, user) == 3


def test_a_host_trigger_that_swallows_the_write_is_reported_as_the_users_failure(
    db: Connection[Any],
) -> None:
    swallowed, other = add_user(db, "ann", bio="bio"), add_user(db, "bob", bio="bio")
    db.execute("""
        create function swallow() returns trigger language plpgsql as $$ begin return null; end $$;
        create trigger swallow before update on users
            for each row when (old.username = 'ann') execute function swallow();
    """)
    configure(db, max_attempts=1)
    drain(db)
    assert (score(db, swallowed), score(db, other)) == (0, 3)
    (letter,) = db.execute(
        "select user_id, message from builder_score.score_dead_letter"
    ).fetchall()
    assert letter == (swallowed, "users.builder_score was not written for 1 of 1 users")


# drain() ------------------------------------------------------------------------------------------


def test_drain_in_a_transaction_block_raises_2d000_and_does_nothing(
    db: Connection[Any], database: str
) -> None:
    user = add_user(db, "ann", bio="bio")
    with psycopg.connect(database) as block:
        with pytest.raises(psycopg.errors.InvalidTransactionTermination):
            drain(block)
        block.rollback()
    assert queued_users(db) == {user}
    assert score(db, user) == 0
    row = db.execute("select started_at from builder_score.worker_status where worker = 'drain'")
    assert row.fetchone() == (None,)


def test_drain_commits_each_batch(db: Connection[Any], sessions: Sessions) -> None:
    configure(db, batch_size=1)
    first, second = add_user(db, "ann", bio="bio"), add_user(db, "bob", bio="bio")
    install_gates(db)
    db.execute("""
        create or replace function gate() returns trigger language plpgsql as $$
        begin
            if new.username = 'bob' then perform pg_advisory_xact_lock_shared(7); end if;
            return new;
        end $$
    """)
    with batch_stopped(sessions("worker"), sessions("keeper"), "after computing"):
        assert (score(db, first), score(db, second)) == (3, 0)
    assert score(db, second) == 3


def test_drain_does_nothing_when_paused_and_says_so(db: Connection[Any]) -> None:
    user = add_user(db, "ann", bio="bio")
    configure(db, paused=True, paused_reason="a restore")
    notices: list[tuple[str | None, str | None]] = []
    db.add_notice_handler(
        lambda notice: notices.append((notice.message_primary, notice.message_detail))
    )
    drain(db)
    assert notices == [("builder_score is paused: nothing is processed", "Reason: a restore")]
    assert (score(db, user), queued_users(db)) == (0, {user})
    configure(db, paused=False)
    drain(db)
    assert_right(db)


def test_drain_does_nothing_when_detached(db: Connection[Any]) -> None:
    user = add_user(db, "ann", bio="bio")
    db.execute("select builder_score.detach()")
    drain(db)
    assert (score(db, user), queued_users(db)) == (0, {user})
    db.execute("select builder_score.attach()")
    settle(db)
    assert_right(db)


def test_drain_does_not_take_a_batch_of_few_people_for_the_end(db: Connection[Any]) -> None:
    configure(db, batch_size=3)
    people = [add_user(db, name) for name in ("ann", "bob", "cid", "dee")]
    drain(db)
    for user in people:
        for _ in range(4):
            db.execute("select builder_score.enqueue(%s)", [user])
    drain(db)
    assert queue(db) == []


def test_drain_on_an_empty_queue_returns(db: Connection[Any]) -> None:
    drain(db)
    assert_right(db)
