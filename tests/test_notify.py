"""NOTIFY builder_score_changed: whose scores changed, once a batch, at its COMMIT."""

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from pyscore import migrator
from tests.community import add_project, add_user, configure, drain
from tests.interleave import Sessions, batch_stopped, install_gates


@pytest.fixture(autouse=True)
def no_window(db: Connection[Any]) -> None:
    configure(db, debounce_window="0")


@pytest.fixture
def listener(database: str) -> Iterator[Connection[Any]]:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("listen builder_score_changed")
        yield connection


def heard(listener: Connection[Any]) -> list[Any]:
    """Give every message that was sent before this call.

    A message of one's own comes after all that were committed before it.
    """
    listener.execute("select pg_notify('builder_score_changed', '\"the end\"')")
    messages: list[Any] = []
    for notice in listener.notifies(timeout=10):
        message = json.loads(notice.payload)
        if message == "the end":
            return messages
        messages.append(message)
    raise AssertionError("one's own message did not come")


def add_people(db: Connection[Any], count: int) -> list[str]:
    rows = db.execute(
        """
        insert into users (email, username, bio)
        select format('%%s@example.org', n), format('user%%s', n), 'bio'
        from generate_series(1, %s) as n returning id::text
        """,
        [count],
    ).fetchall()
    return [row[0] for row in rows]


def test_one_message_names_those_whose_score_changed(
    db: Connection[Any], listener: Connection[Any]
) -> None:
    changed = [str(add_user(db, name, bio="bio")) for name in ("ann", "bob")]
    add_user(db, "unchanged")
    drain(db)
    (message,) = heard(listener)
    assert list(message) == ["user_ids"]
    assert sorted(message["user_ids"]) == sorted(changed)


def test_each_batch_sends_its_own(db: Connection[Any], listener: Connection[Any]) -> None:
    configure(db, batch_size=1)
    changed = [[str(add_user(db, name, bio="bio"))] for name in ("ann", "bob")]
    drain(db)
    assert [message["user_ids"] for message in heard(listener)] == changed


def test_nothing_is_sent_when_no_score_changed(
    db: Connection[Any], listener: Connection[Any]
) -> None:
    user = add_user(db, "ann")
    drain(db)
    db.execute("select builder_score.recalculate(%s)", [user])
    assert heard(listener) == []


def test_triggers_send_nothing(db: Connection[Any], listener: Connection[Any]) -> None:
    user = add_user(db, "ann", bio="bio")
    add_project(db, user, status="shipped")
    db.execute("truncate projects cascade")
    db.execute("delete from users")
    db.execute("update builder_score.signals set scale = 1")
    assert heard(listener) == []


def test_recalculate_sends_at_the_callers_commit(
    db: Connection[Any], sessions: Sessions, listener: Connection[Any]
) -> None:
    user = add_user(db, "ann", bio="bio")
    app = sessions("app")
    for end, expected in (("rollback", []), ("commit", [{"user_ids": [str(user)]}])):
        app.run("begin")
        app.run("select builder_score.recalculate(%s)", [user])
        assert heard(listener) == []
        app.run(end)
        assert heard(listener) == expected


def test_a_batch_that_is_rolled_back_sends_nothing(
    db: Connection[Any], sessions: Sessions, listener: Connection[Any]
) -> None:
    user = add_user(db, "ann", bio="bio")
    install_gates(db)
    worker, keeper = sessions("worker"), sessions("keeper")
    with (
        pytest.raises(psycopg.errors.AdminShutdown),
        batch_stopped(worker, keeper, "after computing"),
    ):
        db.execute("select pg_terminate_backend(%s)", [worker.pid])
    assert heard(listener) == []
    drain(db)
    assert heard(listener) == [{"user_ids": [str(user)]}]


def test_a_user_whose_write_failed_is_not_named(
    db: Connection[Any], listener: Connection[Any]
) -> None:
    add_user(db, "poison", bio="bio")
    user = add_user(db, "ann", bio="bio")
    # an AFTER trigger: the message of the failed half was already queued
    db.execute("""
        create function poison() returns trigger language plpgsql as $$
        begin raise exception 'no'; end $$;
        create constraint trigger poison after update on users
            for each row when (new.username = 'poison') execute function poison();
    """)
    drain(db)
    assert heard(listener) == [{"user_ids": [str(user)]}]


def test_a_long_list_is_split_at_the_payloads_limit(
    db: Connection[Any], listener: Connection[Any]
) -> None:
    configure(db, batch_size=1000)
    changed = add_people(db, 500)
    db.execute("select builder_score.run_batch('drain')")  # of all, which a worker comes to later
    messages = heard(listener)
    assert len(messages) == 3  # 500 ids of 40 bytes
    assert sorted(user for message in messages for user in message["user_ids"]) == sorted(changed)


def test_above_notify_max_ids_one_message_says_all(
    db: Connection[Any], listener: Connection[Any]
) -> None:
    configure(db, notify_max_ids=20, batch_size=1000)
    users = add_people(db, 21)
    drain(db)
    assert heard(listener) == [{"all": True}]
    db.execute("update users set headline = 'headline' where id::text <> %s", [users[0]])
    drain(db)
    (message,) = heard(listener)
    assert sorted(message["user_ids"]) == sorted(users[1:])


def test_ids_of_any_text_make_json_that_fits(empty_database: str) -> None:
    awkward = ['quote "', "back\\slash", "new\nline", ""]
    awkward += [f"{n} {'é' * n}" for n in range(0, 900, 30)]
    with psycopg.connect(empty_database, autocommit=True) as host:
        host.execute("""
            create table users (id text primary key, bio text);
            create table projects (id text primary key, owner_id text, status text);
            create table project_collaborators (project_id text, user_id text, status text);
        """)
        migrator.upgrade(empty_database)
        for user in awkward:
            host.execute("insert into users values (%s, 'bio')", [user])
        host.execute("listen builder_score_changed")
        drain(host)
        told = [user for message in heard(host) for user in message["user_ids"]]
        assert sorted(told) == sorted(awkward)
