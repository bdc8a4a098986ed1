"""A change of statuses beside a transaction whose snapshot is older: its triggers cannot see it."""

from typing import Any

import pytest
from psycopg import Connection

from tests.community import add_collaborator, add_project, add_user, configure, drain, queue, score
from tests.host_databases import HostDatabases
from tests.host_schemas import HOSTS
from tests.interleave import Session, Sessions, assert_right, settle

VOUCH = 8
LEVELS = ("repeatable read", "serializable")

WRITES = {
    "insert": "insert into project_collaborators (project_id, user_id, status)"
    " select p.id, u.id, 'accepted' from projects as p, users as u"
    " where p.title = 'second' and u.username = 'bob'",
    "delete": "delete from project_collaborators",
    "end": "update project_collaborators set status = 'declined'",
    "move": "update project_collaborators set project_id ="
    " (select id from projects where title = 'second')",
}


def with_older_snapshot(sessions: Sessions, isolation: str) -> Session:
    application = sessions("application")
    application.run(f"begin isolation level {isolation}")
    application.run("select count(*) from users")
    return application


def let_count(db: Connection[Any], status: str) -> None:
    """Let a status mean confirmed, and finish all that follows, the second walk included."""
    db.execute("insert into builder_score.statuses values ('confirmed', %s)", [status])
    drain(db)
    drain(db)
    assert queue(db) == []


@pytest.mark.parametrize("isolation", LEVELS)
@pytest.mark.parametrize("write", WRITES)
def test_what_it_writes_after_everyone_was_walked_is_not_lost(
    db: Connection[Any], sessions: Sessions, write: str, isolation: str
) -> None:
    configure(db, debounce_window="0")
    ann, bob, eve = (add_user(db, name) for name in ("ann", "bob", "eve"))
    project, _ = add_project(db, ann), add_project(db, eve, title="second")
    if write != "insert":
        add_collaborator(db, project, bob, "accepted")
    drain(db)
    application = with_older_snapshot(sessions, isolation)
    let_count(db, "accepted")
    before = (score(db, ann), score(db, bob), score(db, eve))
    application.run(WRITES[write])
    application.run("commit")
    settle(db)
    assert (score(db, ann), score(db, bob), score(db, eve)) != before
    assert_right(db)


@pytest.mark.parametrize("write", ["insert", "delete"])
def test_nor_where_triggers_are_for_each_row(host_databases: HostDatabases, write: str) -> None:
    with (
        host_databases.installed(HOSTS["partitioned"]) as host,
        Sessions(host.address) as sessions,
    ):
        db, app = host.db, host.app
        ann, bob = app.sign_up("ann"), app.sign_up("bob")
        project = app.start(ann)
        if write == "delete":
            app.invite(project, bob)
        settle(db)
        application = with_older_snapshot(sessions, "repeatable read")
        let_count(db, "pending")
        if write == "insert":
            application.run(
                "insert into project_collaborators (project_id, user_id, status)"
                " values (%s, %s, 'pending')",
                [project, bob],
            )
        else:
            application.run("delete from project_collaborators")
        application.run("commit")
        settle(db)
        assert score(db, bob) == (VOUCH if write == "insert" else 0)
        assert_right(db)


def test_two_changes_at_once_come_one_after_the_other(
    db: Connection[Any], sessions: Sessions
) -> None:
    # else the first to write its id could be the last to commit, and be taken for long seen
    first, second = sessions("first"), sessions("second")
    first.run("begin")
    first.run("insert into builder_score.statuses values ('confirmed', 'accepted')")
    second.start("insert into builder_score.statuses values ('confirmed', 'agreed')")
    second.waits_for(first)
    first.run("commit")
    second.finish()


@pytest.mark.parametrize("isolation", ["read committed", *LEVELS])
def test_what_does_not_count_appends_nothing_when_no_list_has_changed(
    db: Connection[Any], sessions: Sessions, isolation: str
) -> None:
    ann, bob = add_user(db, "ann"), add_user(db, "bob")
    project = add_project(db, ann)
    let_count(db, "accepted")
    application = with_older_snapshot(sessions, isolation)
    add = (
        "insert into project_collaborators (project_id, user_id, status) values (%s, %s, 'pending')"
    )
    application.run(add, [project, bob])
    application.run("commit")
    assert queue(db) == []
