"""Migrations beside each other and beside the application's open transactions."""

import subprocess
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from pyscore import migrator
from tests.catalogue import catalogue
from tests.commands import PYSCORE, ROOT, environment
from tests.hosts import create_application

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


def start_migrating(address: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*PYSCORE, "migrate", "--dsn", address],
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
def test_eight_migrations_at_once_beside_an_open_writer_all_succeed(
    empty_database: str, score: str | None
) -> None:
    with (
        psycopg.connect(empty_database, autocommit=True) as db,
        psycopg.connect(empty_database) as writer,
    ):
        application(db, score)
        writer.execute("update users set bio = 'an open transaction' where id = 1")
        migrations = [start_migrating(empty_database) for _ in range(8)]
        # with the column there it is the index that waits, else the column
        wait_until(lambda: is_blocking(db, writer), "a migration waits for the writer")
        connected = (
            "select count(*) from pg_stat_activity"
            " where datname = current_database() and application_name = 'pyscore'"
        )
        wait_until(lambda: db.execute(connected).fetchall() == [(8,)], "all eight are connected")
        writer.commit()

        ends = [
            (migration.communicate(timeout=60)[1], migration.returncode) for migration in migrations
        ]
        assert ends == [("", 0)] * 8
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
            longest = 0.0
            for _ in range(3):  # a request for a lock, withdrawn and made again
                wait_until(lambda: is_blocking(other, reader), "migrate waits for the reader")
                began = time.monotonic()
                db.execute("update users set bio = 'the application goes on' where id = 2")
                longest = max(longest, time.monotonic() - began)
                wait_until(lambda: not is_blocking(other, reader), "migrate gives way")
            assert migration.poll() is None, "it was to wait for the reader"
        finally:
            reader.commit()
            stderr = migration.communicate(timeout=60)[1]
        assert (migration.returncode, stderr) == (0, "")
        # a query that came behind the request waited for it, at most for its lock_timeout of 0.5 s
        assert longest < 1
