"""Logical replication: nothing is added that would stop a subscriber unannounced."""

import psycopg
import pytest

from pyscore import migrator
from pyscore.errors import PyscoreError


@pytest.fixture
def publisher(empty_database: str) -> str:
    with psycopg.connect(empty_database, autocommit=True) as db:
        db.execute("create table users (id bigint primary key)")
        db.execute("create table projects (id bigint primary key, owner_id bigint, status text)")
        db.execute(
            "create table project_collaborators (project_id bigint, user_id bigint, status text)"
        )
    return empty_database


def is_installed(dsn: str) -> bool:
    with psycopg.connect(dsn) as db:
        return migrator.database_revision(db) is not None


@pytest.mark.parametrize("tables", ["for all tables", "for table users"])
def test_migrate_refuses_until_subscribers_are_ready(publisher: str, tables: str) -> None:
    with psycopg.connect(publisher, autocommit=True) as db:
        db.execute(f"create publication feed {tables}")  # type: ignore[arg-type]
    with pytest.raises(PyscoreError, match=r"publication feed .* --subscribers-ready"):
        migrator.upgrade(publisher)
    assert not is_installed(publisher)
    migrator.upgrade(publisher, settings=migrator.install_settings(subscribers_ready=True))
    assert is_installed(publisher)


def test_a_publication_of_other_tables_is_no_obstacle(publisher: str) -> None:
    with psycopg.connect(publisher, autocommit=True) as db:
        db.execute("create publication feed for table projects")
    migrator.upgrade(publisher)
    assert is_installed(publisher)


def test_our_tables_alone_are_reason_enough(publisher: str) -> None:
    with psycopg.connect(publisher, autocommit=True) as db:
        db.execute("alter table users add column builder_score integer")
        db.execute("create publication feed for all tables")
    with pytest.raises(PyscoreError, match="publication feed is FOR ALL TABLES"):
        migrator.upgrade(publisher)
    assert not is_installed(publisher)
