"""Migrations beside each other and beside the application's open transactions."""

import subprocess
import time
from collections.abc import Callable
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict

from pyscore import migrator
from tests.catalogue import catalogue
from tests.commands import PYSCORE, ROOT, alembic, environment, output
from tests.host_schemas import HOSTS
from tests.hosts import create_application
from tests.interleave import Sessions

INVALID = "select indexrelid::regclass::text from pg_index where not indisvalid"

# Whoever has come to stand behind the writer.
BLOCKED_BY = """
select count(*) from pg_stat_activity where %s = any(pg_blocking_pids(pid))
"""


def application(db: Connection[Any], score: str | None) -> None:
    create_application(db, key="bigint", score=score)
    db.execute(
        "insert into users (username, email)"
        " select 'user ' || n, n || '@example.org' from generate_series(1, 100) as n"
    )


def start_migrating(address: str, *command: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*PYSCORE, *(command or ("migrate",)), "--dsn", address],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.01)


def is_blocking(db: Connection[Any], writer: Connection[Any]) -> bool:
    found = db.execute(BLOCKED_BY, [writer.info.backend_pid]).fetchone()
    return found is not None and found[0] > 0


@pytest.mark.parametrize("score", [None, "integer default 0"], ids=["no column", "column"])
def test_five_migrations_at_once_beside_an_open_writer_all_succeed(
    empty_database: str, score: str | None
) -> None:
    with (
        psycopg.connect(empty_database, autocommit=True) as db,
        psycopg.connect(empty_database) as writer,
    ):
        application(db, score)
        writer.execute("update users set bio = 'an open transaction' where id = 1")
        migrations = [start_migrating(empty_database) for _ in range(5)]
        # with the column there it is the index that waits, else the column
        wait_until(lambda: is_blocking(db, writer), "a migration waits for the writer")
        connected = (
            "select count(*) from pg_stat_activity"
            " where datname = current_database() and application_name = 'pyscore'"
        )
        wait_until(lambda: db.execute(connected).fetchall() == [(5,)], "all five are connected")
        writer.commit()

        ends = [
            (migration.communicate(timeout=60)[1], migration.returncode) for migration in migrations
        ]
        assert ends == [("", 0)] * 5
        assert db.execute(INVALID).fetchall() == []
        together = catalogue(db)

        migrator.downgrade(empty_database)
        migrator.upgrade(empty_database)
        assert catalogue(db) == together


def test_while_migrate_retries_the_application_goes_on(empty_database: str) -> None:
    with (
        psycopg.connect(empty_database, autocommit=True) as db,
        psycopg.connect(empty_database, autocommit=True) as other,
        psycopg.connect(empty_database) as reader,
    ):
        application(db, score=None)
        reader.execute("select * from users, projects, project_collaborators")
        migration = start_migrating(empty_database)
        try:
            for _ in range(3):  # a request for a lock, withdrawn and made again
                wait_until(lambda: is_blocking(other, reader), "migrate waits for the reader")
                # behind the request it waits for no longer than that one does: not for the reader
                db.execute("update users set bio = 'the application goes on' where id = 2")
                wait_until(lambda: not is_blocking(other, reader), "migrate gives way")
            assert migration.poll() is None, "it was to wait for the reader"
        finally:
            reader.commit()
            stderr = migration.communicate(timeout=60)[1]
        assert (migration.returncode, stderr) == (0, "")


# Behind somebody's long transaction ---------------------------------------------------------------

PARTITIONED = HOSTS["partitioned"].tables + "alter table users add builder_score integer default 0;"

PLAIN = HOSTS["bigint ids and checked statuses"].tables

PEOPLE = """
insert into users (username) select 'user ' || n from generate_series(1, 9) as n;
insert into projects (owner_id) select id from users;
insert into project_collaborators (project_id, user_id)
select p.id, u.id from projects as p join users as u on u.id = p.id + 1
"""

# What an application does, on rows of its own each.
QUERIES = (
    "select count(*) from users",
    "insert into users (username) values ('new ' || random())",
    "update users set bio = 'goes on' where id = 2",
    "select count(*) from projects",
    "insert into projects (owner_id) values (3)",
    "update projects set github_stars = github_stars + 1 where id = 4",
    "select count(*) from project_collaborators",
    "insert into project_collaborators (project_id, user_id) values (5, 7)",
    "update project_collaborators set status = 'confirmed' where id = 6",
)

UNINSTALL = ("uninstall", "--yes")

BUILT = "0002, and the partitions of users have their indexes"


def build_unjoined(db: Connection[Any]) -> None:
    statements = db.execute("select builder_score.missing_index_statements()").fetchall()
    for (statement,) in statements:
        if "attach partition" in statement:
            return
        db.execute(statement)


@pytest.mark.parametrize(
    ("tables", "installed", "held", "mode", "command"),
    [
        # revision 0002 wants users; 0004 has users when it wants the others
        (PLAIN, None, "users", "access share", ("migrate",)),
        (PLAIN, "0003", "project_collaborators", "row exclusive", ("migrate",)),
        (PLAIN, "0005", "projects", "row exclusive", UNINSTALL),
        # what cannot be done concurrently to an index of a partitioned table: made, joined, dropped
        (PARTITIONED, "0002", "users_0", "row exclusive", ("migrate",)),
        (PARTITIONED, BUILT, "users_1", "access share", ("migrate",)),
        (PARTITIONED, "0003", "users", "access share", UNINSTALL),
    ],
    ids=["column", "attach", "detach", "index shell", "index joined", "index dropped"],
)
def test_no_query_stays_behind_us_while_we_wait_for_a_long_transaction(
    empty_database: str,
    tables: str,
    installed: str | None,
    held: LiteralString,
    mode: LiteralString,
    command: tuple[str, ...],
) -> None:
    with (
        psycopg.connect(empty_database, autocommit=True) as db,
        psycopg.connect(empty_database) as long,
        Sessions(empty_database) as sessions,
    ):
        db.execute(tables.encode())
        db.execute(PEOPLE)
        if installed:
            at = "0002" if installed == BUILT else installed
            output(alembic("upgrade", at, DATABASE_URL=empty_database))
        if installed == BUILT:
            build_unjoined(db)
            long.execute("select count(*) from users_1")  # locks its indexes, too
        long.execute("lock table " + held + " in " + mode + " mode")
        application = [sessions(f"query {number}") for number in range(len(QUERIES))]
        ours = start_migrating(empty_database, *command)
        try:
            seen_behind_us = False
            for _ in range(20):
                wait_until(lambda: is_blocking(db, long), f"it waits for {held}")
                for session, query in zip(application, QUERIES, strict=True):
                    session.start(query)
                waiting = [session.blockers() for session in application]
                seen_behind_us |= any(
                    pids and long.info.backend_pid not in pids for pids in waiting
                )
                # each ends although the long transaction is still open
                for session in application:
                    session.finish()
                if seen_behind_us:
                    break
            assert seen_behind_us, "no query came to wait behind us: nothing was tried"
            assert ours.poll() is None, "it was to wait for the long transaction"
        finally:
            long.commit()
            stderr = ours.communicate(timeout=60)[1]
        assert (ours.returncode, stderr) == (0, "")
        assert db.execute(INVALID).fetchall() == []
        at = migrator.database_revision(db)
        assert at == (migrator.head() if command == ("migrate",) else None)


@pytest.mark.parametrize("deadlock_timeout", ["400ms", "10s"])
def test_whoever_wants_what_we_have_while_we_want_what_they_have_is_no_deadlock(
    database: str, db: Connection[Any], deadlock_timeout: str
) -> None:
    name = conninfo_to_dict(database)["dbname"]
    db.execute(f"alter database {name} set deadlock_timeout = '{deadlock_timeout}'".encode())
    with Sessions(database) as sessions:
        ours, application = sessions("ours"), sessions("application")
        ours.run("set builder_score.lock_wait = '1 min'")
        application.run("begin")
        application.run("update projects set title = 'mine'")
        ours.start("begin; select builder_score.lock_host_tables()")
        for _ in range(3):
            ours.waits_for(application)
            # the server would end a deadlock by an error here: its check comes after
            # deadlock_timeout, in the session that began to wait last
            application.run("savepoint before; select count(*) from users; rollback to before")
        application.run("commit")
        ours.finish()
        ours.run("commit")


def test_all_tables_or_none_are_locked_and_with_them_their_partitions(
    empty_database: str,
) -> None:
    with (
        psycopg.connect(empty_database, autocommit=True) as db,
        psycopg.connect(empty_database) as ours,
        psycopg.connect(empty_database, application_name="a report") as long,
    ):
        db.execute(PARTITIONED.encode())
        migrator.upgrade(empty_database)
        locked = (
            "select l.relation::regclass::text from pg_locks as l"
            " where l.pid = %s and l.granted and l.mode = 'AccessExclusiveLock'"
            " and l.relation::regclass::text ~ '^(users|project)' order by 1"
        )
        pid = ours.info.backend_pid
        ours.execute("select builder_score.lock_host_tables()")
        assert [name for (name,) in db.execute(locked, [pid])] == [
            "project_collaborators",
            "projects",
            "projects_0",
            "projects_1",
            "users",
            "users_0",
            "users_1",
        ]
        ours.rollback()

        long.execute("select from projects_1")
        ours.execute("savepoint before")
        with pytest.raises(psycopg.errors.LockNotAvailable) as caught:
            ours.execute("select builder_score.lock_host_tables()")
        diag = caught.value.diag
        assert diag.message_primary == "public.projects_1 could not be locked within 0.5 s"
        assert f"pid {long.info.backend_pid} (a report, role postgres, " in str(diag.message_detail)
        ours.execute("rollback to before")
        assert db.execute(locked, [pid]).fetchall() == []

        # who only reads is not in the way of a lock against writers
        ours.execute("select builder_score.lock_host_tables(array['projects'], 'share')")
        ours.rollback()
        long.execute("update projects_1 set status = 'shipped'")
        with pytest.raises(psycopg.errors.LockNotAvailable, match=r"public\.projects_1"):
            ours.execute("select builder_score.lock_host_tables(array['projects'], 'share')")
        ours.rollback()
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="not one that a migration"):
            ours.execute("select builder_score.lock_host_tables(array['projects'], 'exclusive')")
