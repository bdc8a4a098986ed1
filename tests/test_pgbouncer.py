"""Applications behind PgBouncer in transaction mode; our own commands behind it, in either."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection
from sqlalchemy import create_engine

from pyscore import ScoreReader, address, pooler
from pyscore.cluster import PrivateCluster
from pyscore.errors import PyscoreError
from tests.commands import alembic, call, error_line, output
from tests.community import add_collaborator, add_project, add_user, configure, one, score
from tests.conftest import janitor
from tests.interleave import assert_right, settle
from tests.pgbouncer import PgBouncer

DATABASE = "behind_pgbouncer"


@pytest.fixture(scope="module")
def direct(server: PrivateCluster, template: str) -> Iterator[str]:
    """The address of the database itself."""
    with janitor(server, DATABASE, template=template) as address:
        yield address


@pytest.fixture(scope="module")
def bouncer(server: PrivateCluster, direct: str) -> Iterator[PgBouncer]:
    bouncer = PgBouncer(server, DATABASE)
    with bouncer.running():
        yield bouncer


@pytest.fixture
def db(direct: str) -> Iterator[Connection[Any]]:
    """An autocommit connection past PgBouncer."""
    with psycopg.connect(direct, autocommit=True) as db:
        configure(db, debounce_window="0")
        yield db
        db.execute("truncate users cascade")
        settle(db)


def through(bouncer: PgBouncer, pool: str) -> Connection[Any]:
    """Connect like an application: PgBouncer before 1.21 knows no prepared statements."""
    return psycopg.connect(
        bouncer.address(pool), autocommit=True, prepare_threshold=None, application_name="app"
    )


# The application ----------------------------------------------------------------------------------


def test_applications_behind_transaction_pooling_are_scored_right(
    bouncer: PgBouncer, db: Connection[Any]
) -> None:
    def live(name: str) -> UUID:
        """Be one of six clients that share three sessions of the server."""
        with through(bouncer, "wide") as app:
            user = add_user(app, name, bio="builds")
            for _ in range(5):
                with app.transaction():
                    project = add_project(app, user)
                    app.execute("update projects set status = 'shipped' where id = %s", [project])
            app.execute("update users set headline = 'ships' where id = %s", [user])
            return user

    with ThreadPoolExecutor(6) as clients:
        users = list(clients.map(live, [f"client{number}" for number in range(6)]))
    settle(db)
    with through(bouncer, "wide") as app:
        add_collaborator(app, add_project(app, users[0]), users[1])
        # the whole CALL is one statement, so it keeps one session, whatever it commits
        app.execute("call builder_score.drain()")
        assert score(app, users[1]) == 39  # 25.8 of 5 projects, 8 of a vouch, 5 of the profile
        app.execute("update projects set github_stars = 9 where owner_id = %s", [users[0]])
        app.execute("select builder_score.recalculate(%s)", [users[0]])
        app.execute("select builder_score.enqueue(%s)", [users[1]])
    settle(db)
    assert_right(db)


def test_readers_work_behind_transaction_pooling(bouncer: PgBouncer, db: Connection[Any]) -> None:
    users = [add_user(db, f"user{number}", bio="builds") for number in range(5)]
    add_project(db, users[3], status="shipped")
    settle(db)
    engine = create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(bouncer.address("narrow"), prepare_threshold=None),
    )
    with engine.connect() as first, engine.connect() as second:
        for connection in (first, second) * 4:  # more often than psycopg waits before it prepares
            reader = ScoreReader(connection)
            assert reader.score(users[3]) == 13
            assert [entry.score for entry in reader.leaderboard(limit=2)] == [13, 3]
            connection.rollback()
    engine.dispose()


# Our commands -------------------------------------------------------------------------------------

COMMANDS = [
    ("migrate",),
    ("uninstall", "--yes"),
    ("status",),
    ("worker", "--once"),
    ("worker",),
    ("recompute", "--all"),
    ("explain", "somebody"),
    ("leaderboard",),
]


def session_of(app: Connection[Any]) -> list[tuple[Any, ...]]:
    """What a session is left with: its settings, and the locks it holds beyond a transaction."""
    return app.execute("""
        select name, setting from pg_settings where source = 'session'
        union all
        select 'advisory lock', objid::text from pg_locks
        where locktype = 'advisory' and pid = pg_backend_pid()
        order by 1
    """).fetchall()


def test_commands_refuse_transaction_pooling_and_leave_the_session_as_it_was(
    bouncer: PgBouncer, db: Connection[Any]
) -> None:
    with through(bouncer, "narrow") as app:
        before = session_of(app)
        for command in COMMANDS:
            line = error_line(call(*command, "--dsn", bouncer.address("narrow")))
            assert "is a connection pooler in transaction mode" in line
            assert "expected the server itself" in line
        refused = alembic("upgrade", "head", DATABASE_URL=bouncer.address("narrow"))
        assert refused.returncode != 0
        assert "is a connection pooler in transaction mode" in refused.stderr + refused.stdout
        assert session_of(app) == before
        assert (
            one(app, "select count(*) from users") == 0
        )  # found: search_path is the application's


def refused(address_: str) -> bool:
    try:
        address.connect(address_).close()
    except PyscoreError as error:
        return "transaction mode" in str(error)
    return False


def test_transaction_pooling_is_told_from_session_pooling(
    bouncer: PgBouncer, direct: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not refused(direct)
    assert not refused(bouncer.address("sessions"))
    assert refused(bouncer.address("narrow"))
    assert refused(bouncer.address("wide"))
    # while others hold sessions
    with through(bouncer, "wide") as first, through(bouncer, "wide") as second:
        first.execute("begin; select 1")
        assert refused(bouncer.address("wide"))
        second.execute("begin; select 1")
        assert refused(bouncer.address("wide"))
        first.execute("commit")
        second.execute("commit")

    # while others take the very session that was ours
    def connect(*arguments: Any, **options: Any) -> Connection[Any]:
        first.execute("begin; select 1")
        return psycopg.connect(*arguments, **options)

    with through(bouncer, "taken") as first:
        stand_in = SimpleNamespace(connect=connect, OperationalError=psycopg.OperationalError)
        monkeypatch.setattr(pooler, "psycopg", stand_in)
        assert refused(bouncer.address("taken"))
        monkeypatch.undo()

    # where the one session is ours, a second client waits for it: that cannot be told
    monkeypatch.setattr(pooler, "_PATIENCE", 0.05)
    assert refused(bouncer.address("one_session"))


def test_transaction_pooling_that_takes_sessions_in_turn_is_told_too(
    server: PrivateCluster, direct: str
) -> None:
    bouncer = PgBouncer(server, DATABASE, 6433)
    with bouncer.running(round_robin=True), ExitStack() as stack:
        busy = [stack.enter_context(through(bouncer, "wide")) for _ in range(3)]
        for app in busy:  # so that there are three sessions to take
            app.execute("begin; select 1")
        for app in busy:
            app.execute("commit")
        backends = {one(busy[0], "select pg_backend_pid()") for _ in range(6)}
        assert len(backends) == 3
        assert refused(bouncer.address("wide"))


def test_commands_work_behind_session_pooling(bouncer: PgBouncer, db: Connection[Any]) -> None:
    user = add_user(db, "ada", bio="builds")
    at = bouncer.address("sessions")
    output(call("migrate", "--dsn", at))
    output(call("worker", "--once", "--dsn", at))
    assert score(db, user) == 3
    assert "ada: 3" in output(call("explain", "ada", "--dsn", at))
    assert "ada" in output(call("leaderboard", "--dsn", at))
    assert_right(db)
