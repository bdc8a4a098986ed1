"""Listeners: caches forget in every process, whatever happens to the connection."""

# pyright: reportPrivateUsage=false

import asyncio
import gc
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from sqlalchemy import make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pyscore import (
    AsyncProfileCache,
    AsyncScoreListener,
    ProfileCache,
    PyscoreError,
    ScoreListener,
    listener,
)
from pyscore.cluster import PrivateCluster
from tests import reading_guide
from tests.community import add_user, configure, drain, one
from tests.interleave import until
from tests.pgbouncer import PgBouncer
from tests.standby import standby_of

LISTENERS = """
    select pid from pg_stat_activity
    where application_name = 'pyscore listener' and datname = current_database()
"""


class People:
    """An application's own load, of somebody who changes all the time."""

    def __init__(self) -> None:
        self.asked = 0

    def load(self, username: str) -> tuple[str, int]:
        self.asked += 1
        return username, self.asked

    async def load_later(self, username: str) -> tuple[str, int]:
        return self.load(username)


def cache_of_people(**options: Any) -> ProfileCache[tuple[str, int]]:
    """A cache whose users' ids are their names."""
    load = People().load
    return ProfileCache(load=load, user_id=lambda user: user[0], username=None, **options)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connect again after tenths of a second at most."""
    monkeypatch.setattr(listener, "_SHORTEST", 0.02)
    monkeypatch.setattr(listener, "_LONGEST", 0.1)


@contextmanager
def listening(where: Any, *caches: Any, **options: Any) -> Generator[ScoreListener]:
    with ScoreListener(where, *caches, **options) as listens:
        assert listens.wait(20)
        yield listens


def reconnected(listens: ScoreListener, before: int) -> None:
    until(lambda: listens.connections > before and listens.connected, "it listens again")


def forgets(cache: ProfileCache[Any], *gone: str, stay: tuple[str, ...] = ()) -> None:
    until(lambda: not any(cache._store.look(name) for name in gone), f"{', '.join(gone)} forgotten")
    assert all(cache._store.look(name) for name in stay)


def tell(db: Connection[Any], payload: str) -> None:
    db.execute("select pg_notify('builder_score_changed', %s)", [payload])


def end_sessions(db: Connection[Any]) -> None:
    db.execute(f"select pg_terminate_backend(pid) from ({LISTENERS}) as l".encode())


# What is heard -----------------------------------------------------------------------------------


def test_who_was_changed_is_forgotten(db: Connection[Any], database: str) -> None:
    first, second = cache_of_people(), cache_of_people()
    with listening(database, first, second):
        for cache in (first, second):
            for name in ("ann", "bob", "cyd"):
                cache.get(name)
        tell(db, '{"user_ids": ["ann", "bob"]}')
        forgets(first, "ann", "bob", stay=("cyd",))
        forgets(second, "ann", "bob", stay=("cyd",))
        tell(db, '{"all": true}')
        forgets(first, "cyd")
    assert first.info().invalidations == 3


PROGRAM = """
import sys
from sqlalchemy import create_engine
from pyscore import ProfileCache, ScoreListener, ScoreReader

engine = create_engine(sys.argv[1].replace("postgresql:", "postgresql+psycopg:", 1))
cache = ProfileCache(ScoreReader(engine))
with ScoreListener(engine.url, cache) as listener:
    assert listener.wait(20)
    for name in sys.stdin:
        found = cache.get(name.strip())
        print(found.score)
        print(cache.info().hits, flush=True)
"""


class OtherProcess:
    """An application, in a process of its own, that is asked for scores."""

    def __init__(self, database: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, database],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, name: str) -> tuple[int, int]:
        """Give the score that its cache has, and its hits so far."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline()), int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()
        assert self._process.returncode == 0


def test_a_worker_s_batch_reaches_every_process(db: Connection[Any], database: str) -> None:
    configure(db, debounce_window="0")
    user_id = add_user(db, "ann", created_at="now")
    drain(db)
    before = one(db, "select builder_score from users")
    with ExitStack() as stack:
        others = [OtherProcess(database) for _ in range(2)]
        for other in others:
            stack.callback(other.close)
            assert other.ask("ann") == (before, 0)
            assert other.ask("ann") == (before, 1)
        db.execute(
            "insert into projects (owner_id, title, status) values (%s, 'x', 'shipped')", [user_id]
        )
        for other in others:
            assert other.ask("ann")[0] == before
        drain(db)
        after = one(db, "select builder_score from users")
        assert after > before
        for other in others:
            until(lambda other=other: other.ask("ann")[0] == after, "the process has forgotten ann")


@pytest.mark.parametrize(
    "payload",
    [
        *("", "no json", "[]", "null", "{}", '"the end"', "[" * 7000),
        *('{"user_ids": "ann"}', '{"user_ids": [["ann"]]}', '{"user_ids": [null]}'),
        *('{"all": false}', '{"all": 1, "user_ids": {}}', "\x01", '{"user_ids": ["\\ud800"'),
    ],
)
def test_what_anybody_may_send_clears_and_does_no_harm(
    db: Connection[Any], database: str, payload: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cache_of_people()
    with listening(database, cache) as listens:
        cache.get("ann")
        tell(db, payload)
        forgets(cache, "ann")
        cache.get("bob")
        cache.get("cyd")
        tell(db, '{"user_ids": ["bob", 7, "\\ud800"]}')
        forgets(cache, "bob", stay=("cyd",))
        assert listens.connections == 1
    assert "not ours" in caplog.text


def test_a_cache_that_fails_does_not_keep_the_others_from_hearing(
    db: Connection[Any], database: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def clear(self) -> None: ...

    cache = cache_of_people()
    with listening(database, Broken(), cache):
        cache.get("ann")
        tell(db, '{"user_ids": ["ann"]}')
        forgets(cache, "ann")
    assert "could not be told" in caplog.text


# The connection ----------------------------------------------------------------------------------


def test_it_clears_what_was_loaded_before_it_listened(database: str) -> None:
    cache = cache_of_people()
    cache.get("ann")
    with listening(database, cache):
        assert cache.info().currsize == 0
        assert cache.info().invalidations == 1


def test_it_does_not_begin_to_keep_what_is_loaded_as_it_connects(database: str) -> None:
    may_end = threading.Event()
    people = People()

    def load(username: str) -> tuple[str, int]:
        found = people.load(username)
        assert may_end.wait(20)
        return found

    cache = ProfileCache(load=load, user_id=lambda user: user[0], username=None)
    early = threading.Thread(target=cache.get, args=["ann"])
    early.start()
    until(lambda: people.asked == 1, "it has read")
    with listening(database, cache):
        may_end.set()
        early.join()
        assert cache.get("ann") == ("ann", 2)


def test_it_clears_and_goes_on_after_its_session_was_ended(
    db: Connection[Any], database: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cache_of_people()
    with listening(database, cache) as listens:
        for times in range(1, 4):
            cache.get("ann")
            end_sessions(db)
            reconnected(listens, times)
            assert cache.info().currsize == 0
        cache.get("ann")
        cache.get("bob")
        tell(db, '{"user_ids": ["ann"]}')
        forgets(cache, "ann", stay=("bob",))
    # what the server said comes through, or that it has closed the connection
    assert caplog.text.count("trying again") >= 3
    until(lambda: one(db, f"select count(*) from ({LISTENERS}) as l") == 0, "the session is gone")


def test_with_a_server_that_hangs_it_connects_anew(db: Connection[Any], database: str) -> None:
    cache = cache_of_people()
    with listening(database, cache, silence=0.05, patience=0.3) as listens:
        cache.get("ann")
        hangs = one(db, LISTENERS)
        os.kill(hangs, signal.SIGSTOP)
        try:
            reconnected(listens, 1)
            assert cache.info().currsize == 0
            cache.get("ann")
            tell(db, '{"user_ids": ["ann"]}')
            forgets(cache, "ann")
        finally:
            os.kill(hangs, signal.SIGCONT)
        until(lambda: one(db, f"select count(*) from ({LISTENERS}) as l") == 1, "the other is gone")


def test_signs_of_life_lose_no_message(db: Connection[Any], database: str) -> None:
    cache = cache_of_people()
    with listening(database, cache, silence=0.0) as listens:
        for n in range(300):
            cache.get(f"user{n}")
            tell(db, f'{{"user_ids": ["user{n}"]}}')
        forgets(cache, *(f"user{n}" for n in range(300)))
        assert listens.connections == 1
    assert cache.info().invalidations == 300


def test_stopping_does_not_wait_for_a_server_that_hangs(db: Connection[Any], database: str) -> None:
    with listening(database, silence=0.0, patience=60) as listens:
        hangs = one(db, LISTENERS)
        os.kill(hangs, signal.SIGSTOP)
        try:
            thread, connection = listens._thread, listens._listening._connection
            assert thread is not None
            assert connection is not None
            pgconn = connection.pgconn
            state = Path(f"/proc/{hangs}/stat")
            until(lambda: state.read_text().split()[2] == "T", "the server hangs")
            until(lambda: pgconn.transaction_status == TransactionStatus.ACTIVE, "it waits")
            listens.stop(timeout=4)
            assert not thread.is_alive()
        finally:
            os.kill(hangs, signal.SIGCONT)


@pytest.fixture
def own_server() -> Iterator[PrivateCluster]:
    with PrivateCluster(settings={"fsync": False, "max_connections": 20}, tcp=False) as server:
        yield server


def test_it_survives_a_restart_and_a_failover(
    own_server: PrivateCluster, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"fsync": False, "max_connections": 20}
    with standby_of(own_server, settings=settings) as standby:
        hosts = ",".join(quote(server.host, safe="") for server in (standby, own_server))
        address = (
            f"postgresql://postgres@/postgres?host={hosts}&port={standby.port},{own_server.port}"
        )
        cache, strict = cache_of_people(), cache_of_people()
        with (
            listening(address, cache) as listens,
            listening(address, strict, strict=True) as listens_strictly,
        ):
            cache.get("ann")
            own_server.restart("immediate")
            reconnected(listens, 1)
            reconnected(listens_strictly, 1)
            assert cache.info().currsize == 0
            own_server.kill()
            until(lambda: not listens.connected and not listens_strictly.connected, "they know")
            caplog.clear()
            # by the TTL, or not at all
            assert [cache.get("ann"), cache.get("ann")] == [("ann", 2)] * 2
            until(lambda: "hot standby mode" in caplog.text, "it has tried the standby")
            assert strict.get("ann") != strict.get("ann")
            with psycopg.connect(standby.conninfo(), autocommit=True) as db:
                assert one(db, "select pg_promote()")
                reconnected(listens, 2)
                assert cache.info().currsize == 0
                until(lambda: strict.get("bob") == strict.get("bob"), "it keeps again")
                cache.get("ann")
                tell(db, '{"user_ids": ["ann"]}')
                forgets(cache, "ann")


def test_a_server_that_is_away_keeps_nobody_from_beginning(
    own_server: PrivateCluster, caplog: pytest.LogCaptureFixture
) -> None:
    own_server.stop("immediate")
    cache = cache_of_people()
    with ScoreListener(own_server.conninfo(), cache) as listens:
        assert not listens.wait(0)
        assert cache.get("ann") == cache.get("ann")
        until(lambda: caplog.text.count("trying again") > 2, "it tries")
        own_server.start()
        assert listens.wait(20)
        assert cache.info().currsize == 0


def test_on_a_standby_it_says_so_and_tries_on(
    own_server: PrivateCluster, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"fsync": False, "max_connections": 20}
    with standby_of(own_server, settings=settings) as standby:
        for asked_for in ("", "&target_session_attrs=any"):
            caplog.clear()
            with ScoreListener(standby.conninfo() + asked_for) as listens:
                until(lambda: "trying again" in caplog.text, "it has tried")
                assert "standby" in caplog.text
                assert not listens.connected


def test_poolers(
    server: PrivateCluster, database: str, db: Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    bouncer = PgBouncer(server, db.info.dbname, port=6433)
    with bouncer.running():
        for pool in ("narrow", "wide"):
            caplog.clear()
            with ScoreListener(bouncer.address(pool)) as listens:
                until(lambda: "trying again" in caplog.text, "it has tried", seconds=30)
                assert not listens.connected
            (record, *_) = [r for r in caplog.records if "trying again" in r.getMessage()]
            assert record.levelno == logging.ERROR
            assert "pooler in transaction mode" in record.getMessage()
        cache = cache_of_people()
        with listening(bouncer.address("sessions"), cache):
            cache.get("ann")
            tell(db, '{"user_ids": ["ann"]}')
            forgets(cache, "ann")


# Tasks -------------------------------------------------------------------------------------------


async def until_async(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def test_a_task_listens_and_goes_on(db: Connection[Any], database: str) -> None:
    async def application() -> None:
        people = People()
        cache = AsyncProfileCache(
            load=people.load_later, user_id=lambda user: user[0], username=None
        )
        async with AsyncScoreListener(database, cache) as listens:
            assert await listens.wait(20)
            await cache.get("ann")
            tell(db, '{"user_ids": ["ann"]}')
            await until_async(lambda: cache.info().currsize == 0)
            await cache.get("ann")
            end_sessions(db)
            await until_async(lambda: listens.connections == 2 and listens.connected)
            assert cache.info().currsize == 0
        assert not listens.connected
        # and when everything is cancelled, in the middle of anything
        for turns in range(60):
            listens = AsyncScoreListener(database, cache, silence=0.0)
            await listens.start()
            for _ in range(turns):
                await asyncio.sleep(0)
            assert listens._task is not None
            listens._task.cancel()
            await asyncio.wait([listens._task])
            assert listens._task.cancelled()
        listens = AsyncScoreListener(database, cache)
        await listens.start()  # left to the end of the loop

    asyncio.run(application())
    # psycopg leaves one that was being made to the collector
    gc.collect()
    until(lambda: one(db, f"select count(*) from ({LISTENERS}) as l") == 0, "no session is left")


def test_a_driver_that_turns_cancelling_into_an_error_keeps_nobody_from_stopping() -> None:
    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise psycopg.OperationalError("canceling statement due to user request") from None

    async def application() -> None:
        listens = AsyncScoreListener("host=nowhere")
        listens._listening._listen = hang
        async with asyncio.timeout(20):
            await listens.start()
            await asyncio.sleep(0)
            await listens.stop()

    asyncio.run(application())


# A child -----------------------------------------------------------------------------------------


def test_a_child_listens_itself_once_it_asks(db: Connection[Any], database: str) -> None:
    cache = cache_of_people()
    with listening(database, cache) as listens:
        child = os.fork()
        if child == 0:
            threading.Timer(30, os._exit, [9]).start()
            try:
                cache.get("ann")
                assert listens.wait(20)
                cache.get("ann")
                with psycopg.connect(database, autocommit=True) as own:
                    assert one(own, f"select count(*) from ({LISTENERS}) as l") == 2
                    tell(own, '{"user_ids": ["ann"]}')
                    forgets(cache, "ann")
                listens.stop()
                os._exit(0)
            except BaseException:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        # its end did not take the parent's connection along
        cache.get("bob")
        cache.get("cyd")
        tell(db, '{"user_ids": ["bob"]}')
        forgets(cache, "bob", stay=("cyd",))
        assert listens.connections == 1


# The address -------------------------------------------------------------------------------------


def test_addresses() -> None:
    def said(where: Any) -> dict[str, Any]:
        return conninfo_to_dict(ScoreListener(where)._listening._conninfo)

    url = "postgresql+psycopg://me:pass%40word@/app?host=one:5433&host=two:5434"
    for where in (url, make_url(url)):
        found = said(where)
        assert (found["host"], found["port"], found["password"]) == (
            "one,two",
            "5433,5434",
            "pass@word",
        )
        assert found["target_session_attrs"] == "primary"
        assert found["keepalives_idle"] == "30"
    assert said("host=a target_session_attrs=any keepalives_idle=5")["keepalives_idle"] == "5"
    for wrong in ("mysql://a/b", "mysql+pymysql://a/b", make_url("sqlite://"), "nonsense"):
        with pytest.raises(PyscoreError):
            ScoreListener(wrong)
    with pytest.raises(PyscoreError, match="expected a libpq address"):
        ScoreListener("postgresql+asyncpg://a/b?ssl=require")


def test_an_interpreter_ends_while_it_listens(database: str) -> None:
    code = f"""
import atexit, threading
atexit.register(lambda: print(threading.active_count()))
from pyscore import ProfileCache, ScoreListener
listener = ScoreListener({database!r}, ProfileCache(load=lambda name: None))
listener.start()
assert listener.wait(20)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


# The guide ---------------------------------------------------------------------------------------


def test_the_guide_s_section(db: Connection[Any], database: str) -> None:
    class Base(DeclarativeBase):
        pass

    class User(Base):
        __tablename__ = "users"
        id: Mapped[UUID] = mapped_column(primary_key=True)
        username: Mapped[str]

    add_user(db, "zoe", builder_score=60)
    url = database.replace("postgresql:", "postgresql+psycopg:", 1)

    async def follow() -> None:
        names = await reading_guide.follow_async(
            "A cache of profiles", {"User": User}, replacing={"postgresql+psycopg:///app": url}
        )
        names["stop"]()
        names["engine"].dispose()

    asyncio.run(follow())
