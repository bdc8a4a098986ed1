"""A pytest plugin for applications that use pyscore: real scores in their tests.

It is loaded with pyscore. In the application's ``conftest.py`` say where its test database is,
once the application's own tables are there:

    @pytest.fixture(scope="session")
    def builder_score_dsn(test_engine):
        return test_engine.url

and in a test write as the application does, then:

    def test_shipping_counts(session, drain_scores):
        ada = sign_up(session, "ada")
        ship(session, ada, "engine")
        drain_scores(session)
        assert ScoreReader(session).score(ada.id) == 10
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import pytest

if TYPE_CHECKING:  # loaded in every run of pytest: nothing heavy before a fixture is used
    import psycopg
    from sqlalchemy import URL
    from sqlalchemy import Connection as SqlalchemyConnection
    from sqlalchemy.orm import Session, scoped_session

    Bind = psycopg.Connection[Any] | SqlalchemyConnection | Session | scoped_session[Session]

Scope = Literal["session", "package", "module", "class", "function"]
_SCOPE = "builder_score_scope"
_LOCK_WAIT = (
    10.0  # seconds; a transaction that a test has left open is an error, not to be waited for
)


class DrainScores(Protocol):
    """The type of the fixture ``drain_scores``."""

    def __call__(self, bind: Bind | None = None) -> None:
        """Compute every score that is due.

        Args:
            bind: The connection or session of a test that never commits: scores are computed inside
                its transaction, after a flush, and what the session has loaded is expired. Without
                one, what is committed counts, and scores are committed.

        Raises:
            PyscoreError: Something is left that cannot be computed now, with the reason.
        """
        ...


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that says how long a test database lives."""
    parser.addini(
        _SCOPE,
        "how long the database of builder_score_dsn lives: session (default), package, module, "
        "class or function",
        default="session",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a scope that pytest does not have."""
    scope = config.getini(_SCOPE)
    if scope not in get_args(Scope):
        raise pytest.UsageError(f"{_SCOPE} = {scope}: expected one of {', '.join(get_args(Scope))}")


def _scope(fixture_name: str, config: pytest.Config) -> Scope:
    return config.getini(_SCOPE)


@pytest.fixture(scope=_scope)
def builder_score_dsn() -> str | URL:
    """The address of the application's test database; each application overrides this."""
    raise pytest.UsageError(
        "override the fixture builder_score_dsn in conftest.py: it returns the address of your "
        "test database (postgresql://..., or engine.url), with your own tables in it"
    )


@pytest.fixture(scope=_scope)
def builder_score_database(builder_score_dsn: str | URL) -> Iterator[str]:
    """The address of the application's test database, with the schema builder_score in it.

    Installed by this fixture, it is taken out again at the end; what was there before stays. Tests
    that run in several processes need a database each.
    """
    from pyscore import address, migrator

    dsn = address.resolve(_text(builder_score_dsn))
    with closing(address.connect(dsn, pinned=True)) as connection:
        was_there = migrator.database_revision(connection) is not None
    migrator.upgrade(dsn, lock_wait=_LOCK_WAIT)
    yield dsn
    if not was_there:
        migrator.downgrade(dsn, lock_wait=_LOCK_WAIT)


@pytest.fixture
def drain_scores(builder_score_database: str) -> DrainScores:
    """A function that computes every score that is due, past the debounce: ``drain_scores()``."""

    def drain(bind: Bind | None = None) -> None:
        from pyscore import address

        if bind is None:
            with closing(address.connect(builder_score_database, pinned=True)) as connection:
                run = _runner(connection)
                _drain(run, lambda: connection.execute("call builder_score.drain()"))
            return
        run, session = _runner(bind), _session(bind)
        if session is not None:
            session.flush()
        settings = ("lock_timeout", "synchronous_commit")  # a batch sets them for its transaction
        before = {name: run(f"select current_setting('{name}')")[0][0] for name in settings}
        _drain(run, lambda: _run_batches(run))
        for name, value in before.items():
            run(f"select set_config('{name}', '{value}', true)")
        if session is not None:
            session.expire_all()

    return drain


Run = Callable[[str], list[Any]]
"""Runs a query without parameters and returns its rows."""


_ROUNDS = 3
"""One for users and projects, one for everyone whom a walk has found, one more for who was held."""


def _text(dsn: str | URL) -> str:
    # str() of SQLAlchemy's URL hides the password
    return dsn if isinstance(dsn, str) else dsn.render_as_string(hide_password=False)


def _session(bind: Bind) -> Session | scoped_session[Session] | None:
    from sqlalchemy.orm import Session, scoped_session

    return bind if isinstance(bind, (Session, scoped_session)) else None


def _runner(bind: Bind) -> Run:
    import psycopg
    from psycopg.rows import tuple_row
    from sqlalchemy import Connection, text

    from pyscore.errors import BadArgumentError

    if isinstance(bind, psycopg.Connection):
        return lambda query: bind.cursor(row_factory=tuple_row).execute(query.encode()).fetchall()
    if isinstance(bind, Connection) or _session(bind) is not None:
        return lambda query: list(bind.execute(text(query)).all())
    raise BadArgumentError(
        "drain_scores() takes the connection or session of the test's own transaction, "
        f"or nothing where the test commits; not {type(bind).__name__}"
    )


def _run_batches(run: Run) -> None:
    """Do what drain() does, without its commits."""
    while True:
        ((chosen, resume_at, nap),) = run(
            "select chosen, resume_at, nap from builder_score.run_round('drain', 20, null)"
        )
        if chosen == 0 and resume_at is None:
            return
        if chosen == 0:
            run(f"select pg_sleep({nap})::text")  # a walk over everyone is throttled


def _drain(run: Run, work: Callable[[], object]) -> None:
    """Drain until nothing is queued; what is left is an error of the test's.

    Args:
        run: Where the queue can be seen and changed.
        work: Processes what is due.
    """
    from pyscore.errors import PyscoreError

    ((paused, attached),) = run("select paused, attached from builder_score.health")
    if paused or not attached:
        raise PyscoreError(
            f"no score is computed: builder_score is {'paused' if paused else 'detached'}"
        )
    for _ in range(_ROUNDS):
        # at priority 0 a row goes past the debounce
        run(
            "with forced as ("
            "update builder_score.score_recalc_queue set priority = 0, not_before = now()"
            " where priority > 0 or not_before > now() returning id)"
            " select count(*) from forced"
        )
        work()
        if not run("select from builder_score.score_recalc_queue limit 1"):
            break
    ((queued, retrying, dead, error),) = run(
        "select queue_depth, retrying, dead_letters, last_error from builder_score.health"
    )
    if retrying or dead:
        raise PyscoreError(f"{retrying + dead} scores cannot be computed: {error}")
    if queued:
        raise PyscoreError(
            f"{queued} queue rows are left: another transaction holds their users; end it, or pass "
            "its connection or session: drain_scores(session)"
        )
