"""What the worker does to its queue beside others, and what it waits for.

That nothing is lost, in any order: test_permutations.
"""

from typing import Any

import psycopg
import pytest
from psycopg import Connection, sql

from tests.community import (
    add_collaborator,
    add_project,
    add_user,
    configure,
    drain,
    one,
    queue,
    score,
)
from tests.interleave import (
    GATES,
    Sessions,
    assert_right,
    batch_stopped,
    close_windows,
    install_gates,
    is_quiet,
    settle,
)

SHIPPED = 10  # points of one shipped project, or of a second one's difference, rounded
VOUCH = 8  # points of the first confirmed collaboration

SHIP = "update projects set status = 'shipped' where id = %s"


@pytest.fixture
def no_window(db: Connection[Any]) -> None:
    """Every event may be recalculated at once, so that a lost one shows and is not merely late."""
    configure(db, debounce_window="0")


def totals(db: Connection[Any]) -> dict[str, int]:
    row = db.execute("select batches, recalculated, failed from builder_score.health").fetchone()
    assert row is not None
    return dict(zip(("batches", "recalculated", "failed"), row, strict=True))


def last_error(db: Connection[Any]) -> str | None:
    row = db.execute(
        "select last_error from builder_score.worker_status where worker = 'drain'"
    ).fetchone()
    assert row is not None
    return row[0]


def attempts(db: Connection[Any]) -> int:
    row = db.execute("select coalesce(sum(attempts), 0) from builder_score.score_state").fetchone()
    assert row is not None
    return row[0]


def test_an_event_committed_after_a_newer_recalculation_is_not_lost(
    db: Connection[Any], sessions: Sessions
) -> None:
    user = add_user(db, "ann")
    project = add_project(db, user)
    drain(db)
    close_windows(db)

    late = sessions("late")
    late.run("begin")
    late.run(SHIP, [project])  # its queue row's not_before is now
    db.execute("select builder_score.recalculate(%s)", [user])  # computed_at is later than that
    drain(db)
    late.run("commit")
    drain(db)

    # It looks due, and is not: the window that was opened meanwhile is still open.
    assert score(db, user) == 0
    put_off = db.execute(
        """
        select q.not_before = s.computed_at + interval '5 minutes'
        from builder_score.score_recalc_queue as q
        join builder_score.score_state as s using (user_id)
        """
    ).fetchall()
    assert put_off == [(True,)]
    close_windows(db)
    drain(db)
    assert score(db, user) == SHIPPED
    assert_right(db)


@pytest.mark.usefixtures("no_window")
def test_two_workers_that_chose_the_same_user_recalculate_it_once(
    db: Connection[Any], sessions: Sessions
) -> None:
    user = add_user(db, "ann")
    settle(db)
    before = totals(db)["recalculated"]
    project = add_project(db, user, status="shipped")
    install_gates(db)

    with batch_stopped(sessions("first"), sessions("keeper"), "after computing"):
        second = sessions("second")
        second.start("call builder_score.drain()")
        second.finish_without_waiting()
        assert score(db, user) == 0
        # What the first one has seen must stay, under its id; it is only put off for a second.
        assert [(row[0], row[3]) for row in queue(db)] == [(user, "project inserted")]
    assert totals(db)["recalculated"] == before + 1
    assert score(db, user) == SHIPPED
    assert attempts(db) == 0
    assert_right(db)

    db.execute(SHIP, [project])
    assert is_quiet(db), "the same value again appends nothing"


def test_a_recalculation_answers_the_rows_a_batch_has_chosen_but_not_locked(
    db: Connection[Any], sessions: Sessions
) -> None:
    user = add_user(db, "ann")
    install_gates(db)
    keeper = sessions("keeper")
    with batch_stopped(sessions("worker"), keeper, "after choosing"):
        insert = "insert into projects (owner_id, title, status) values (%s, '', 'shipped')"
        keeper.run(insert, [user])
        keeper.run("select builder_score.recalculate(%s)", [user])
        keeper.run(insert, [user])
    # One recalculation, not two within a window; the later event waits for the window's end.
    assert totals(db)["recalculated"] == 0
    assert score(db, user) == SHIPPED
    assert queue(db) == [(user, None, 10, "project inserted")]
    close_windows(db)
    drain(db)
    assert score(db, user) == 16
    assert_right(db)


@pytest.mark.usefixtures("no_window")
@pytest.mark.parametrize("gate", ["after re-reading", "after computing"])
def test_a_recalculation_beside_a_batch_waits_for_it_and_sees_more(
    db: Connection[Any], sessions: Sessions, gate: str
) -> None:
    user = add_user(db, "ann", bio="bio")
    install_gates(db)
    worker, caller = sessions("worker"), sessions("caller")
    with batch_stopped(worker, sessions("keeper"), gate):
        add_project(db, user, status="shipped")
        caller.start("select builder_score.recalculate(%s)", [user])
        caller.waits_for(worker)
    assert caller.finish() == [(13,)]
    settle(db)
    assert score(db, user) == 13
    assert_right(db)


@pytest.mark.usefixtures("no_window")
def test_a_thousand_locked_users_do_not_keep_five_hundred_free_ones_from_their_scores(
    db: Connection[Any], sessions: Sessions
) -> None:
    configure(db, lock_timeout="10 seconds")
    # the thousand came first, so they are first in the queue
    db.execute("""
        insert into users (email, username, bio, headline)
        select format('%s@example.org', n), format('locked%s', n), 'bio', 'headline'
        from generate_series(1, 1000) as n;
        insert into users (email, username, bio, headline)
        select format('%s@example.org', n), format('free%s', n), 'bio', 'headline'
        from generate_series(1001, 1500) as n;
    """)
    scored = """
        select count(*) filter (where username like 'locked%' and builder_score = 5),
               count(*) filter (where username like 'free%' and builder_score = 5)
        from users
    """
    app, worker = sessions("app"), sessions("worker")
    app.run("begin")
    app.run("select id from users where username like 'locked%' for update")

    worker.start("call builder_score.drain()")
    worker.finish_without_waiting()
    assert db.execute(scored).fetchone() == (0, 500)
    assert (attempts(db), last_error(db), len(queue(db))) == (0, None, 1000)

    app.run("commit")
    settle(db)
    assert db.execute(scored).fetchone() == (1000, 500)
    assert attempts(db) == 0
    assert_right(db)


@pytest.mark.usefixtures("no_window")
@pytest.mark.parametrize("lock", ["for update", "for no key update", "for share", "for key share"])
def test_the_worker_waits_for_no_row_that_the_application_holds(
    db: Connection[Any], sessions: Sessions, lock: str
) -> None:
    configure(db, lock_timeout="10 seconds")
    owner, helper = add_user(db, "owner"), add_user(db, "helper")
    project = add_project(db, owner, status="shipped")
    add_collaborator(db, project, helper)

    app, worker = sessions("app"), sessions("worker")
    app.run("begin")
    for table in ("users", "projects", "project_collaborators"):
        app.run(f"select id from {table} {lock}")
    worker.start("call builder_score.drain()")
    worker.finish_without_waiting()
    assert last_error(db) is None
    # FOR KEY SHARE is what an insert into projects takes on its owner.
    assert score(db, owner) == (18 if lock == "for key share" else 0)

    app.run("commit")
    settle(db)
    assert (score(db, owner), score(db, helper)) == (18, VOUCH)
    assert_right(db)


@pytest.mark.usefixtures("no_window")
def test_rows_that_another_worker_puts_off_meanwhile_are_deleted_all_the_same(
    db: Connection[Any], sessions: Sessions
) -> None:
    user = add_user(db, "ann", bio="bio")
    install_gates(db)
    worker, other, keeper = sessions("worker"), sessions("other"), sessions("keeper")
    keeper.run(GATES["after computing"])
    worker.start("call builder_score.drain()")
    worker.waits_for(keeper)
    # The other one found the user locked, and has not committed yet.
    other.run("begin")
    other.run("select builder_score.defer_blocked_users(array[%s::uuid])", [user])
    keeper.run("select pg_advisory_unlock(7)")
    worker.waits_for(other)
    other.run("commit")
    worker.finish()
    assert score(db, user) == 3
    assert_right(db)


@pytest.mark.usefixtures("no_window")
def test_what_a_savepoint_takes_back_appends_nothing(
    db: Connection[Any], sessions: Sessions
) -> None:
    ann, bob = add_user(db, "ann"), add_user(db, "bob")
    settle(db)
    app = sessions("app")
    insert = "insert into projects (owner_id, title, status) values (%s, '', 'shipped')"
    app.run("begin")
    app.run(insert, [ann])
    app.run("savepoint s")
    app.run(insert, [bob])
    app.run("rollback to s")
    app.run("commit")
    assert queue(db) == [(ann, None, 10, "project inserted")]
    settle(db)
    assert (score(db, ann), score(db, bob)) == (SHIPPED, 0)
    assert_right(db)


@pytest.mark.usefixtures("no_window")
def test_a_table_locked_as_a_whole_makes_the_batch_give_up_and_loses_nothing(
    db: Connection[Any], sessions: Sessions
) -> None:
    configure(db, lock_timeout="50 ms")
    user = add_user(db, "ann")
    add_project(db, user, status="shipped")
    before = queue(db)

    app, worker = sessions("app"), sessions("worker")
    app.run("begin")
    app.run("alter table users add column nickname text")
    worker.run("call builder_score.drain()")
    assert queue(db) == before
    assert (attempts(db), totals(db)["failed"]) == (0, 0)
    assert (last_error(db) or "").startswith("55P03: ")

    app.run("commit")
    drain(db)
    assert score(db, user) == SHIPPED
    assert_right(db)


DEFAULTS = [
    ("default_transaction_isolation", "repeatable read"),
    ("default_transaction_isolation", "serializable"),
    ("default_transaction_read_only", "on"),
    ("default_transaction_deferrable", "on"),
]


@pytest.fixture(params=DEFAULTS, ids=[" = ".join(default) for default in DEFAULTS])
def unusual_database(database: str, request: pytest.FixtureRequest) -> str:
    name, value = request.param
    with psycopg.connect(database, autocommit=True) as admin:
        configure(admin, debounce_window="0")
        query = sql.SQL("alter database {} set {} = {}").format(
            sql.Identifier(admin.info.dbname), sql.Identifier(name), value
        )
        admin.execute(query)
    return database


def writer(conninfo: str) -> Connection[Any]:
    """An application that knows that this database is unusual."""
    options = (
        "-c default_transaction_isolation=read\\ committed -c default_transaction_read_only=off"
    )
    return psycopg.connect(conninfo, autocommit=True, options=options)


@pytest.mark.parametrize("call", ["drain()", "run_worker('0')"])
def test_a_databases_default_isolation_and_read_only_do_not_reach_the_worker(
    unusual_database: str, call: str
) -> None:
    with writer(unusual_database) as db, Sessions(unusual_database) as sessions:
        ann, bob = add_user(db, "ann"), add_user(db, "bob")
        install_gates(db)
        add_project(db, ann, status="shipped")
        worker, keeper = sessions("worker"), sessions("keeper")
        # An older snapshot would not see what happens between choosing and locking.
        keeper.run("begin transaction isolation level read committed read write")
        keeper.run(GATES["after choosing"])
        worker.start(f"call builder_score.{call}")
        worker.waits_for(keeper)
        keeper.run("delete from users where id = %s", [bob])
        keeper.run("update users set bio = 'bio' where id = %s", [ann])
        keeper.run("commit")
        worker.finish()
        assert last_error(db) is None
        assert score(db, ann) == 13
        settle(db)
        assert_right(db)


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_a_status_that_comes_to_count_beside_a_transaction_that_ends_such_a_collaboration(
    db: Connection[Any], sessions: Sessions, isolation: str
) -> None:
    configure(db, debounce_window="0")
    ann, bob = add_user(db, "ann"), add_user(db, "bob")
    add_collaborator(db, add_project(db, ann), bob, "accepted")
    drain(db)
    application = sessions("application")
    application.run(f"begin isolation level {isolation}")
    # by the list that its trigger sees, this row never counted
    application.run("delete from project_collaborators")
    db.execute("insert into builder_score.statuses values ('confirmed', 'accepted')")
    drain(db)
    assert score(db, ann) == 8
    application.run("commit")
    settle(db)
    assert_right(db)
    assert score(db, ann) == 0
    assert one(db, "select walk_again_after is null from builder_score.host"), "walks for ever"
