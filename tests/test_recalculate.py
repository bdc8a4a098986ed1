"""recalculate(): one score now, in the caller's transaction."""

from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection

from tests.community import add_collaborator, add_project, add_user, configure, drain, queue, score
from tests.interleave import Sessions, assert_right, settle

RECALCULATE = "select builder_score.recalculate(%s)"
NOBODY = UUID(int=0)


def recalculate(db: Connection[Any], user: UUID) -> Any:
    row = db.execute("select builder_score.recalculate(%s)", [user]).fetchone()
    assert row is not None
    return row[0]


def test_it_writes_and_returns_the_new_score(db: Connection[Any]) -> None:
    user = add_user(db, "ann", bio="bio")
    assert recalculate(db, user) == 3
    assert score(db, user) == 3
    assert_right(db)


def test_it_returns_what_the_column_holds(db: Connection[Any]) -> None:
    db.execute("""
        select builder_score.detach();
        alter table users alter builder_score type double precision;
        select builder_score.attach();
    """)
    user = add_user(db, "ann", bio="bio", headline="headline", timezone="UTC", avatar_url="x")
    add_project(db, user, github_stars=1)
    # 15 * 4/6 + 4 * log10(2)
    assert float(recalculate(db, user)) == 11.2
    assert score(db, user) == 11.2


def test_it_goes_past_the_window_and_opens_a_new_one(db: Connection[Any]) -> None:
    user = add_user(db, "ann")
    recalculate(db, user)
    add_project(db, user, status="shipped")
    assert recalculate(db, user) == 10
    add_project(db, user, status="shipped")
    drain(db)
    assert score(db, user) == 10
    (due,) = db.execute("""
        select q.not_before = s.computed_at + interval '5 minutes'
        from builder_score.score_recalc_queue as q
        join builder_score.score_state as s using (user_id)
    """).fetchall()
    assert due == (True,)


def test_it_deletes_exactly_the_rows_it_sees(db: Connection[Any], sessions: Sessions) -> None:
    user, other = add_user(db, "ann"), add_user(db, "bob")
    project = add_project(db, user)
    add_collaborator(db, project, other)
    app = sessions("app")
    app.run("begin")
    app.run("select builder_score.enqueue(%s, 10, 'not yet visible')", [user])
    db.execute(
        "insert into builder_score.score_recalc_queue (user_id, priority, reason, not_before)"
        " values (%s, 20, 'due in an hour', now() + interval '1 hour')",
        [user],
    )
    theirs = [row for row in queue(db) if row[0] != user]
    assert len(theirs) < len(queue(db))
    recalculate(db, user)
    assert queue(db) == theirs
    app.run("commit")
    assert (user, None, 10, "not yet visible") in queue(db)
    configure(db, debounce_window="0")
    settle(db)
    assert_right(db)


def test_an_unknown_user_is_an_error_that_names_it(db: Connection[Any]) -> None:
    with pytest.raises(psycopg.errors.NoDataFound) as caught:
        recalculate(db, NOBODY)
    told = caught.value.diag
    assert told.sqlstate == "P0002"
    assert told.message_primary == f'user "{NOBODY}" does not exist'
    assert told.message_detail == "There is no row with this id in the host's users table."
    assert told.message_hint == "Check the id; ids are those of users.id."
    assert db.execute("select * from builder_score.score_state").fetchall() == []


def test_null_is_an_error(db: Connection[Any]) -> None:
    with pytest.raises(psycopg.errors.NoDataFound):
        db.execute("select builder_score.recalculate(null)")


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_under_an_older_snapshot_it_refuses_and_says_what_to_do(
    db: Connection[Any], sessions: Sessions, isolation: str
) -> None:
    user = add_user(db, "ann", bio="bio")
    app = sessions("app")
    app.run(f"begin transaction isolation level {isolation}")
    with pytest.raises(psycopg.errors.ActiveSqlTransaction) as caught:
        app.run(RECALCULATE, [user])
    told = caught.value.diag
    assert told.sqlstate == "25001"
    assert told.message_primary == f"recalculate() cannot run at isolation level {isolation}"
    assert (told.message_hint or "").startswith(f"SELECT builder_score.enqueue('{user}', 0);")
    app.run("rollback")

    # and what it says works, there too
    drain(db)
    add_project(db, user, status="shipped")
    app.run(f"begin transaction isolation level {isolation}")
    app.run("select builder_score.enqueue(%s, 0)", [user])
    app.run("commit")
    drain(db)
    assert score(db, user) == 13
    assert_right(db)


def test_it_sees_the_callers_own_changes_and_rolls_back_with_them(
    db: Connection[Any], sessions: Sessions
) -> None:
    user = add_user(db, "ann")
    configure(db, debounce_window="0")
    settle(db)
    kept = "select user_id, score, previous_score, computed_at from builder_score.score_state"
    before = db.execute(kept).fetchall()
    app = sessions("app")
    app.run("begin")
    app.run("insert into projects (owner_id, title, status) values (%s, '', 'shipped')", [user])
    assert app.run(RECALCULATE, [user]) == [(10,)]
    app.run("rollback")
    assert (score(db, user), queue(db)) == (0, [])
    assert db.execute(kept).fetchall() == before
    assert_right(db)

    app.run("begin")
    app.run("insert into projects (owner_id, title, status) values (%s, '', 'shipped')", [user])
    app.run(RECALCULATE, [user])
    app.run("commit")
    assert (score(db, user), queue(db)) == (10, [])
    assert_right(db)


def test_one_user_at_once_from_two_sessions(db: Connection[Any], sessions: Sessions) -> None:
    user = add_user(db, "ann")
    one, other = sessions("one"), sessions("other")
    one.run("begin")
    assert one.run(RECALCULATE, [user]) == [(0,)]
    add_project(db, user, status="shipped")
    other.start(RECALCULATE, [user])
    other.waits_for(one)
    one.run("commit")
    # it waited for the row, and computed after that
    assert other.finish() == [(10,)]
    assert score(db, user) == 10
    assert_right(db)


def test_two_users_at_once_do_not_meet(db: Connection[Any], sessions: Sessions) -> None:
    ann, bob = add_user(db, "ann", bio="bio"), add_user(db, "bob", bio="bio")
    one, other = sessions("one"), sessions("other")
    one.run("begin")
    one.run(RECALCULATE, [ann])
    other.start(RECALCULATE, [bob])
    assert other.finish_without_waiting() == [(3,)]
    one.run("commit")
    assert_right(db)


def test_the_callers_search_path_and_settings_are_as_before(
    db: Connection[Any], sessions: Sessions
) -> None:
    user = add_user(db, "ann", bio="bio")
    app = sessions("app")
    app.run("begin")
    app.run("set local search_path = pg_catalog")
    app.run(RECALCULATE, [user])
    assert app.run("show search_path") == [("pg_catalog",)]
    assert app.run("show lock_timeout") == [("0",)]
    # a later write of the application's own is not taken for ours
    app.run("update public.users set builder_score = 99 where id = %s", [user])
    app.run("commit")
    assert queue(db) == [(user, None, 20, "score overwritten")]
