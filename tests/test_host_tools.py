"""What an application's developers do to its tables while we are on them."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from sqlalchemy import Engine, ForeignKey, create_engine, inspect
from sqlalchemy.exc import InternalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import NullPool

from pyscore import migrator
from pyscore.cluster import PrivateCluster
from pyscore.models import BuilderScoreMixin
from tests.commands import running
from tests.community import add_project, add_user, configure, drain, one, queue, score
from tests.conftest import CRON_DATABASE, dsn, janitor
from tests.hosts import create_application
from tests.interleave import assert_right, settle, until
from tests.poison import poison

# create_all and drop_all --------------------------------------------------------------------------


class Plain(DeclarativeBase):
    """An application that does not know of us."""


class Mixed(DeclarativeBase):
    """An application whose model of users has our column and index."""


class PlainUser(Plain):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    bio: Mapped[str | None]


class MixedUser(BuilderScoreMixin, Mixed):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    bio: Mapped[str | None]


class _Project:
    __tablename__ = "projects"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    status: Mapped[str]


class _Collaborator:
    __tablename__ = "project_collaborators"
    project_id: Mapped[int] = mapped_column(
        ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True
    )
    user_id: Mapped[int] = mapped_column(
        ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    status: Mapped[str]


class PlainProject(_Project, Plain):
    pass


class MixedProject(_Project, Mixed):
    pass


class PlainCollaborator(_Collaborator, Plain):
    pass


class MixedCollaborator(_Collaborator, Mixed):
    pass


@pytest.fixture
def engine(empty_database: str) -> Iterator[Engine]:
    url = empty_database.replace("postgresql://", "postgresql+psycopg://")
    engine = create_engine(url, poolclass=NullPool)
    yield engine
    engine.dispose()


def inhabit(engine: Engine, user: type[Any], project: type[Any]) -> None:
    """Add one user, whose score is to be 18."""
    with Session(engine) as session:
        ada = user(bio="builds")
        session.add(ada)
        session.flush()
        session.add(project(owner_id=ada.id, status="shipped"))
        session.commit()


def scores(db: Connection[Any]) -> list[tuple[Any, ...]]:
    return db.execute("select id, builder_score from users").fetchall()


ADA = [(1, 25)]  # 10 for the project, 15 for a profile of one field


def test_tables_of_models_with_the_mixin_are_dropped_and_made_again(
    empty_database: str, engine: Engine
) -> None:
    Mixed.metadata.create_all(engine)
    migrator.upgrade(empty_database)
    Mixed.metadata.create_all(engine)  # finds all there
    with psycopg.connect(empty_database, autocommit=True) as db:
        configure(db, debounce_window="0")
        inhabit(engine, MixedUser, MixedProject)
        drain(db)
        assert scores(db) == ADA

        with pytest.raises(InternalError, match=r"view builder_score\.host_collaborations depends"):
            Mixed.metadata.drop_all(engine)
        assert len(inspect(engine).get_table_names()) == 3, "all or nothing"

        db.execute("select * from builder_score.detach()")
        Mixed.metadata.drop_all(engine)
        Mixed.metadata.create_all(engine)
        assert ("everyone is enqueued",) in db.execute(
            "select * from builder_score.attach()"
        ).fetchall()
        settle(db)
        assert one(db, "select count(*) from builder_score.score_state") == 0
        inhabit(engine, MixedUser, MixedProject)
        drain(db)
        assert scores(db) == ADA
        assert one(db, "select count(*) from builder_score.missing_index_statements()") == 0
        assert_right(db)


@pytest.mark.parametrize(
    "drop",
    [
        "drop table users, projects, project_collaborators cascade",
        "drop schema public cascade; create schema public",
    ],
)
def test_tables_dropped_with_cascade_are_attached_to_again(
    empty_database: str, engine: Engine, drop: str
) -> None:
    Mixed.metadata.create_all(engine)
    migrator.upgrade(empty_database)
    with psycopg.connect(empty_database, autocommit=True) as db:
        configure(db, debounce_window="0")
        inhabit(engine, MixedUser, MixedProject)
        drain(db)
        db.execute(drop.encode())
        Mixed.metadata.create_all(engine)
        inhabit(engine, MixedUser, MixedProject)  # no trigger saw it
        db.execute("select * from builder_score.attach()")
        settle(db)
        assert scores(db) == ADA
        assert_right(db)


def test_tables_of_models_without_the_column_are_installed_on_anew(
    empty_database: str, engine: Engine
) -> None:
    Plain.metadata.create_all(engine)
    migrator.upgrade(empty_database)
    with psycopg.connect(empty_database, autocommit=True) as db:
        inhabit(engine, PlainUser, PlainProject)
        drain(db)
        assert scores(db) == ADA

        db.execute("drop table users, projects, project_collaborators cascade")
        Plain.metadata.create_all(engine)
        with pytest.raises(psycopg.errors.UndefinedColumn, match=r"lacks users\.builder_score"):
            db.execute("select * from builder_score.attach()")

        migrator.downgrade(empty_database)
        migrator.upgrade(empty_database)
        inhabit(engine, PlainUser, PlainProject)
        drain(db)
        assert scores(db) == ADA
        assert_right(db)

        # without us nothing is in the way
        migrator.downgrade(empty_database)
        Plain.metadata.drop_all(engine)
        assert inspect(engine).get_table_names() == []


# TRUNCATE -----------------------------------------------------------------------------------------


def test_truncate_cascade_leaves_nobody_remembered(db: Connection[Any]) -> None:
    configure(db, debounce_window="0", max_attempts=1)
    poison(db)
    ada = add_user(db, "ada", bio="builds")
    add_user(db, "bob", bio="is in no queue")
    add_user(db, "eve", bio="is given up")
    drain(db)
    add_project(db, ada)  # still queued when its owner is gone
    remembered = """
        select (select count(*) from builder_score.score_state),
               (select count(*) from builder_score.score_dead_letter)
    """
    assert db.execute(remembered).fetchall() == [(3, 1)]
    db.execute("truncate users cascade")
    assert queue(db)[-1][:3] == (None, None, 20)  # one row that stands for everyone
    settle(db)
    assert db.execute(remembered).fetchall() == [(0, 0)]
    assert_right(db)
    carol = add_user(db, "carol", bio="comes after")
    settle(db)
    assert score(db, carol) == 3


# CREATE DATABASE ... TEMPLATE ---------------------------------------------------------------------

WORKERS = """
    select count(*) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid()
"""


def test_a_paused_worker_lets_its_database_be_a_template(
    server: PrivateCluster, template: str
) -> None:
    with (
        janitor(server, "being_copied", template=template) as address,
        running("worker", "--dsn", address),
    ):
        with psycopg.connect(address, autocommit=True) as db:
            configure(db, debounce_window="0")
            add_user(db, "ada", bio="builds")
            until(lambda: score_of_all(db) == [3], "the worker has computed a score")
            # whoever is there keeps CREATE DATABASE from using it as a template
            until(lambda: one(db, WORKERS) == 1, "the worker is there")
            configure(db, paused=True)
            until(lambda: one(db, WORKERS) == 0, "the worker has left")
        # it looks in once a second, for an instant; CREATE DATABASE has five seconds of patience
        with janitor(server, "the_copy", template="being_copied") as the_copy:
            with psycopg.connect(the_copy, autocommit=True) as db:
                configure(db, paused=False)
                add_user(db, "bob", bio="in the copy alone")
                drain(db)
                assert_right(db)
                assert score_of_all(db) == [3, 3]
            with psycopg.connect(address, autocommit=True) as db:
                configure(db, paused=False)
                add_user(db, "carol", bio="in the original alone")
                until(lambda: score_of_all(db) == [3, 3], "the worker goes on")
                assert_right(db)


def score_of_all(db: Connection[Any]) -> list[Any]:
    rows = db.execute("select builder_score from users order by username").fetchall()
    return [value for (value,) in rows]


def test_pg_crons_own_database_is_no_template_even_when_paused(
    server: PrivateCluster, cron_database: str
) -> None:
    def others() -> set[str]:
        with psycopg.connect(dsn(server, "postgres"), autocommit=True) as db:
            rows = db.execute(
                "select backend_type from pg_stat_activity where datname = %s", [CRON_DATABASE]
            ).fetchall()
            return {kind for (kind,) in rows}

    with psycopg.connect(cron_database, autocommit=True) as db:
        configure(db, paused=True)
    # the worker leaves; what stays is pg_cron's launcher, which is connected for ever
    until(lambda: others() == {"pg_cron launcher"}, "only pg_cron's launcher is left")


# Prepared statements across ADD COLUMN and DROP COLUMN --------------------------------------------

PREPARED = {
    "named": ("select id, username from users where id = %s", [1]),
    "insert": ("insert into users (id, username, email) values (%s, 'new', '')", None),
    "insert without names": ("insert into users values (%s, 'new', 'new@example.org')", None),
    "update": ("update users set bio = %s where id = 1", ["builds"]),
    "upsert": (
        "insert into users (id, username, email) values (%s, 'new', '') on conflict do nothing",
        None,
    ),
    "insert a project": (
        "insert into projects (owner_id, title, status) values (%s, '', 'shipped')",
        [1],
    ),
    "delete": ("delete from users where id = %s", [-1]),
}
STARS = {
    "star": ("select * from users where id = %s", [1]),
    "returning star": ("update users set bio = %s where id = 1 returning *", ["builds"]),
}


def test_prepared_statements_go_on_but_for_those_that_say_star(empty_database: str) -> None:
    numbers = iter(range(100, 1000))
    with psycopg.connect(empty_database, autocommit=True) as app:
        create_application(app, key="bigint")
        app.execute(
            "insert into users (id, username, email) overriding system value values (1, 'ada', '')"
        )
        app.execute("alter table users alter id set generated by default")
        app.execute("alter table users drop constraint users_username_key")

        def execute(statement: tuple[str, list[Any] | None]) -> None:
            query, values = statement
            app.execute(query.encode(), values or [next(numbers)], prepare=True)

        def execute_all() -> set[str]:
            """Run every statement twice, and give those that fail, which they do each time."""
            failed: list[tuple[str, str]] = []
            for name, statement in [*PREPARED.items(), *STARS.items()] * 2:
                try:
                    execute(statement)
                except psycopg.errors.FeatureNotSupported as error:
                    failed.append((name, str(error)))
            names = {name for name, _ in failed}
            assert sorted(failed) == sorted(
                (name, "cached plan must not change result type") for name in [*names] * 2
            )
            return names

        for _ in range(4):  # beyond the fifth execution a plan may be a generic one
            assert execute_all() == set()
        prepared = "select count(*) from pg_prepared_statements where statement like '%users%'"
        assert one(app, prepared) >= len(STARS)

        migrator.upgrade(empty_database)
        assert execute_all() == set(STARS)
        app.execute("deallocate all")
        assert execute_all() == set()

        migrator.downgrade(empty_database)
        assert execute_all() == set(STARS)
        app.execute("discard all")
        assert execute_all() == set()

        # a column that was there before is no change
        app.execute("alter table users add column builder_score integer default 0")
        app.execute("deallocate all")
        assert execute_all() == set()
        migrator.upgrade(empty_database)
        assert execute_all() == set()
        configure(app, debounce_window="0")
        settle(app)
        assert_right(app)
