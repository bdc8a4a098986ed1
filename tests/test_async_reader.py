"""AsyncScoreReader: it answers as ScoreReader does, over everything that it may be given."""

import asyncio
import inspect
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar, cast
from unittest.mock import Mock
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row, tuple_row
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pyscore import (
    AsyncScoreReader,
    BadArgumentError,
    PyscoreError,
    ScoreReader,
    UnknownUserError,
)
from pyscore.cluster import PrivateCluster
from pyscore.reading import queries
from tests.community import add_project
from tests.community import score as stored
from tests.conftest import janitor
from tests.reading import BAD_ARGUMENTS, NOBODY, Community, engine_for, settle

T = TypeVar("T")

BINDS = (
    *("engine", "engine asyncpg", "connection", "connection asyncpg", "session"),
    *("scoped session", "psycopg", "psycopg autocommit"),
)
"""All that a reader may be given."""

CALLERS = [kind for kind in BINDS if not kind.startswith("engine") and kind[-10:] != "autocommit"]
"""Those that bring a transaction."""


@asynccontextmanager
async def async_engine_for(
    address: str, driver: str, **options: Any
) -> AsyncGenerator[AsyncEngine]:
    url = address.replace("postgresql:", f"postgresql+{driver}:", 1)
    engine = create_async_engine(url, **options)
    try:
        yield engine
    finally:
        await engine.dispose()


@asynccontextmanager
async def bind_for(kind: str, address: str) -> AsyncGenerator[Any]:
    """One of BINDS."""
    if kind.startswith("psycopg"):
        factory = cast(Any, dict_row)
        raw = await psycopg.AsyncConnection[Any].connect(
            address, autocommit=kind.endswith("autocommit"), row_factory=factory
        )
        try:
            yield raw
        finally:
            await raw.close()
        return
    driver = "asyncpg" if kind.endswith("asyncpg") else "psycopg"
    async with async_engine_for(address, driver) as engine:
        match kind.split()[0]:
            case "engine":
                yield engine
            case "connection":
                async with engine.connect() as connection:
                    yield connection
            case "session":
                async with AsyncSession(engine) as session:
                    yield session
            case _:
                maker = async_sessionmaker(engine)
                scoped = async_scoped_session(maker, scopefunc=asyncio.current_task)
                yield scoped
                await scoped.remove()


async def execute(bind: Any, statement: str) -> list[tuple[Any, ...]]:
    """Run a statement in the caller's transaction and return its rows."""
    if isinstance(bind, psycopg.AsyncConnection):
        raw = psycopg.AsyncCursor(cast(Any, bind), row_factory=tuple_row)
        cursor = await raw.execute(statement.encode())
        return await cursor.fetchall() if cursor.description else []
    if isinstance(bind, AsyncEngine):
        async with bind.begin() as connection:
            return await execute(connection, statement)
    connection = bind if isinstance(bind, AsyncConnection) else await bind.connection()
    result = await connection.exec_driver_sql(statement)
    return [tuple(row) for row in result] if result.returns_rows else []


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


@pytest.fixture(params=BINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def people(server: PrivateCluster, template: str) -> Iterator[Community]:
    """For tests that commit nothing: one database for all of them."""
    with janitor(server, "async_reader", template=template) as address:
        yield settle(address)


@pytest.fixture
def own(database: str) -> Community:
    """For tests that commit."""
    return settle(database)


def methods(reader: type[Any]) -> dict[str, Callable[..., Any]]:
    return {
        name: method
        for name, method in inspect.getmembers(reader, inspect.isfunction)
        if not name.startswith("_")
    }


def test_both_readers_have_the_same_methods() -> None:
    asynchronous = methods(AsyncScoreReader)
    assert len(asynchronous) > 10
    assert {name: inspect.signature(method) for name, method in asynchronous.items()} == {
        name: inspect.signature(method) for name, method in methods(ScoreReader).items()
    }
    assert all(map(inspect.iscoroutinefunction, asynchronous.values()))

    def summary(method: Callable[..., Any]) -> str:
        return (method.__doc__ or "").splitlines()[0]

    assert {name: summary(method) for name, method in asynchronous.items()} == {
        name: summary(method) for name, method in methods(ScoreReader).items()
    }
    mine, theirs = (inspect.signature(reader) for reader in (AsyncScoreReader, ScoreReader))
    assert list(mine.parameters) == list(theirs.parameters)


def questions(people: Community) -> list[tuple[str, tuple[Any, ...]]]:
    """A method and its arguments: all methods that only read, with answers of every kind."""
    page = (2, None, text("username <> 'bob'"))
    everybody = [people.ann, str(people.bob), people.dee, NOBODY]
    return [
        *((method, (user,)) for method in ("score", "rank") for user in everybody[:3]),
        ("score", (NOBODY,)),
        ("percentile", (people.bob,)),
        *((method, (iter(everybody),)) for method in ("scores", "profiles")),
        *((method, ([],)) for method in ("scores", "profiles")),
        *((method, (n,)) for method in ("by_username", "profile") for n in ("ann", "dee", "an\0")),
        ("leaderboard", ()),
        ("leaderboard", page),
        ("above", (3,)),
        ("above", (2.5, 1)),
        ("explain", (people.ann,)),
        ("distribution", ()),
    ]


def test_every_question_is_answered_as_by_the_other_reader(kind: str, people: Community) -> None:
    assert {method for method, _ in questions(people)} | {"recompute"} == set(methods(ScoreReader))
    with engine_for(people.address) as engine:
        reader = ScoreReader(engine)
        expected = [getattr(reader, method)(*given) for method, given in questions(people)]

    async def answers() -> list[Any]:
        async with bind_for(kind, people.address) as bind:
            reader = AsyncScoreReader(bind)
            return [await getattr(reader, method)(*given) for method, given in questions(people)]

    # ages move on between the two
    assert [_ageless(answer) for answer in run(answers())] == [_ageless(a) for a in expected]


def _ageless(answer: Any) -> Any:
    if not hasattr(answer, "signals"):
        return answer
    return replace(answer, signals=[s for s in answer.signals if s.name != "age"])


def test_pages_go_on_where_the_other_reader_stopped(kind: str, people: Community) -> None:
    with engine_for(people.address) as engine:
        first = ScoreReader(engine).leaderboard(1)
        expected = ScoreReader(engine).leaderboard(2, after=first.next)

    async def second() -> Any:
        async with bind_for(kind, people.address) as bind:
            return await AsyncScoreReader(bind).leaderboard(2, after=first.next)

    assert run(second()) == expected


@pytest.mark.parametrize("kind", CALLERS)
def test_bad_arguments_leave_the_transaction_as_it_was(kind: str, people: Community) -> None:
    async def ask() -> None:
        async with bind_for(kind, people.address) as bind:
            reader = AsyncScoreReader(bind)
            await execute(bind, "set local application_name = 'mine'")
            for error, message, method, arguments in BAD_ARGUMENTS:
                with pytest.raises(error, match=message):
                    await getattr(reader, method)(*arguments)
                assert await execute(bind, "show application_name") == [("mine",)], method
            await execute(bind, "rollback")

    run(ask())


def test_recompute_returns_and_writes_the_score(kind: str, own: Community) -> None:
    mine = kind in CALLERS

    async def recompute() -> None:
        async with bind_for(kind, own.address) as bind:
            assert await AsyncScoreReader(bind).recompute(own.bob) == 13
            seen = await execute(bind, "select builder_score from users where username = 'bob'")
            assert seen == [(13,)]
            # it is the caller's to commit
            assert stored(db, own.bob) == (3 if mine else 13)
            if mine:
                await execute(bind, "rollback")

    with psycopg.connect(own.address, autocommit=True) as db:
        add_project(db, own.bob, status="shipped")
        run(recompute())
        assert stored(db, own.bob) == (3 if mine else 13)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
@pytest.mark.parametrize("default", ["SERIALIZABLE", "AUTOCOMMIT"])
def test_an_engine_commits_what_it_recomputes(own: Community, default: str, driver: str) -> None:
    async def recompute() -> None:
        options = {"pool_size": 1, "max_overflow": 0, "isolation_level": default}
        async with async_engine_for(own.address, driver, **options) as engine:
            await execute(engine, f"update users set bio = null where id = '{own.bob}'")
            before = await execute(engine, "show transaction_isolation")
            assert await AsyncScoreReader(engine).recompute(own.bob) == 0
            assert await execute(engine, "show transaction_isolation") == before

    run(recompute())
    with psycopg.connect(own.address) as db:
        assert stored(db, own.bob) == 0


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_an_engine_is_asked_side_by_side(people: Community, driver: str) -> None:
    async def ask() -> list[Any]:
        async with async_engine_for(people.address, driver, pool_size=5) as engine:
            reader = AsyncScoreReader(engine)
            return await asyncio.gather(*(reader.score(people.ann) for _ in range(40)))

    assert run(ask()) == [10] * 40


_WAITING = "select count(*) from pg_stat_activity where %s = any (pg_blocking_pids(pid))"


@pytest.mark.parametrize("kind", ["engine", "engine asyncpg", "session", "psycopg"])
def test_a_call_that_is_cancelled_leaves_everything_usable(kind: str, own: Community) -> None:
    """It is cancelled while it waits for whoever holds the user's row."""

    async def cancel(holder: int) -> None:
        async with bind_for(kind, own.address) as bind:
            reader = AsyncScoreReader(bind)
            call = asyncio.create_task(reader.recompute(own.bob))
            while db.execute(_WAITING, [holder]).fetchone() == (0,):
                assert not call.done()
                await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            if isinstance(bind, AsyncEngine):
                assert cast(Any, bind.pool).checkedout() == 0
            else:
                await bind.rollback()
            assert await reader.score(own.bob) == 3

    async def hold() -> None:
        async with await psycopg.AsyncConnection.connect(own.address) as holder:
            await holder.execute("select from users where id = %s for update", [own.bob])
            await cancel(holder.info.backend_pid)

    with psycopg.connect(own.address, autocommit=True) as db:
        run(hold())
        assert stored(db, own.bob) == 3


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    username: Mapped[str]
    email: Mapped[str]
    builder_score: Mapped[int | None]


def test_a_session_is_flushed_first_unless_told_not_to(people: Community) -> None:
    async def ask() -> None:
        async with bind_for("session", people.address) as session:
            session.add(User(id=NOBODY, username="zoe", email="z", builder_score=5))
            reader = AsyncScoreReader(session)
            with session.no_autoflush:
                assert await reader.score(NOBODY) is None
            assert await reader.score(NOBODY) == 5

    run(ask())


def test_a_session_that_is_bound_by_class_needs_the_class(people: Community) -> None:
    async def ask() -> None:
        async with (
            async_engine_for(people.address, "psycopg") as engine,
            AsyncSession(binds={User: engine}) as session,
        ):
            with pytest.raises(BadArgumentError, match=r"AsyncScoreReader\(session, users=User\)"):
                await AsyncScoreReader(session).leaderboard()
            page = await AsyncScoreReader(session, users=User).leaderboard(
                where=User.username != "ann"
            )
            assert len(page) == 2

    run(ask())


def test_raw_text_that_the_server_refuses_is_the_drivers_error(people: Community) -> None:
    async def ask(kind: str, error: type[Exception]) -> None:
        async with bind_for(kind, people.address) as bind:
            with pytest.raises(error, match="bann"):
                await AsyncScoreReader(bind).leaderboard(where=text("bann"))

    run(ask("engine", DBAPIError))
    run(ask("engine asyncpg", DBAPIError))
    run(ask("psycopg", psycopg.Error))


@pytest.mark.parametrize("kind", ["engine", "engine asyncpg", "psycopg"])
def test_without_us_there_is_nothing_to_explain(kind: str, empty_database: str) -> None:
    with psycopg.connect(empty_database) as db:
        db.execute("create table users (id bigint primary key, builder_score integer)")
        db.execute("insert into users values (1, 7)")

    async def ask() -> None:
        async with bind_for(kind, empty_database) as bind:
            reader = AsyncScoreReader(bind)
            assert await reader.score(1) == 7
            with pytest.raises(PyscoreError, match="pyscore migrate"):
                await reader.explain(1)
            # what was learned is forgotten where something fails
            with pytest.raises(PyscoreError, match="no column username"):
                await reader.profile("ann")

    run(ask())


@pytest.mark.parametrize("kind", ["engine", "engine asyncpg", "psycopg"])
def test_what_a_function_refuses_is_put_in_our_words(
    kind: str, own: Community, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(method: str) -> None:
        async with bind_for(kind, own.address) as bind:
            await getattr(AsyncScoreReader(bind), method)(own.ann)

    gone = text(f"select builder_score.recalculate('{NOBODY}')")
    with monkeypatch.context() as patch:
        patch.setattr(queries, "recomputation", Mock(return_value=gone))
        with pytest.raises(UnknownUserError, match=f'user "{NOBODY}" does not exist.*Check the id'):
            run(ask("recompute"))
    with psycopg.connect(own.address, autocommit=True) as db:
        db.execute("update builder_score.host set attached_at = null")
    for method in ("explain", "rank", "recompute"):
        with pytest.raises(PyscoreError, match=r"is detached.*attach\(\)") as refused:
            run(ask(method))
        assert "\n" not in str(refused.value)
        assert "<class" not in str(refused.value)


@pytest.mark.parametrize(
    "bind", [None, "postgresql://", psycopg.Connection, create_async_engine("sqlite+aiosqlite://")]
)
def test_other_binds_are_refused(bind: Any) -> None:
    with pytest.raises(BadArgumentError, match="takes a SQLAlchemy AsyncEngine, AsyncConnection"):
        AsyncScoreReader(bind)


def test_each_reader_names_the_other_for_what_is_that_ones(people: Community) -> None:
    async def given(bind: Any) -> None:
        with pytest.raises(BadArgumentError, match=r"an AsyncScoreReader takes those.*AsyncEngine"):
            ScoreReader(bind)

    async def ask() -> None:
        async with bind_for("engine", people.address) as bind:
            await given(bind)

    run(ask())
    with (
        engine_for(people.address) as engine,
        pytest.raises(BadArgumentError, match=r"a ScoreReader takes those.*not Engine"),
    ):
        AsyncScoreReader(cast(Any, engine))


def test_psycopg_alone_needs_no_greenlet(people: Community) -> None:
    script = """
import asyncio, sys
sys.modules["greenlet"] = None
import psycopg
from pyscore import AsyncScoreReader

async def ask():
    async with await psycopg.AsyncConnection.connect(sys.argv[1]) as connection:
        print(len(await AsyncScoreReader(connection).leaderboard()))

asyncio.run(ask())
try:
    AsyncScoreReader(None)
except ValueError as error:
    print(error)
"""
    command = [sys.executable, "-c", script, people.address]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    first, second = done.stdout.splitlines()
    assert first == "3"
    assert second.endswith("not NoneType")
