"""Caches of profiles: what they keep and forget, and what they do while things are under way."""

# pyright: reportPrivateUsage=false

import asyncio
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import Connection
from sqlalchemy import create_engine

from pyscore import AsyncProfileCache, BadArgumentError, ProfileCache, PyscoreError, ScoreReader
from pyscore.cache import Cache, CacheInfo
from pyscore.caching import store as stores
from pyscore.caching import tokens
from tests.community import add_user
from tests.interleave import PATIENCE, until

T = TypeVar("T")


@dataclass(frozen=True)
class User:
    user_id: int
    username: str
    version: int = 0


class Database:
    """Users by name, blind to case; counts the questions."""

    def __init__(self, *usernames: str) -> None:
        self.users = {n: User(n, name) for n, name in enumerate(usernames, 1)}
        self.asked: list[str] = []

    def change(self, user_id: int, **changes: Any) -> None:
        user = self.users[user_id]
        self.users[user_id] = replace(user, version=user.version + 1, **changes)

    def profile(self, username: str) -> User | None:
        self.asked.append(username)
        return self.now(username)

    def now(self, username: str) -> User | None:
        for user in self.users.values():
            if user.username.lower() == username.lower():
                return user
        return None


class Gate:
    """Stops each load after it has read, until it is let through."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._stopped: list[threading.Event] = []

    def profile(self, username: str) -> User | None:
        found = self._database.profile(username)
        gate = threading.Event()
        self._stopped.append(gate)
        assert gate.wait(PATIENCE)
        return found

    def stopped(self, count: int) -> None:
        """Return once so many loads in all have come to the gate."""
        until(lambda: len(self._stopped) >= count, f"{count} loads have read")

    def open(self, number: int) -> None:
        self._stopped[number].set()


class Threads:
    """Asks a cache from threads."""

    def __init__(self, cache: ProfileCache[User], pool: ThreadPoolExecutor) -> None:
        self._cache = cache
        self._pool = pool

    def ask(self, username: str) -> "Future[User | None]":
        """Return once the question is a miss that waits, or is over."""
        info = self._cache.info()
        asked = self._pool.submit(self._cache.get, username)
        until(
            lambda: asked.done() or self._cache.info().misses > info.misses,
            "the question has come to the cache",
        )
        return asked


@pytest.fixture
def pool() -> Any:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def result(asked: "Future[T]") -> T:
    return asked.result(PATIENCE)


def test_a_profile_is_asked_for_once_and_kept() -> None:
    database = Database("ann")
    cache = ProfileCache(database)
    assert cache.get("ann") == User(1, "ann")
    database.change(1)
    assert cache.get("ann") == User(1, "ann")
    assert database.asked == ["ann"]
    assert cache.info() == CacheInfo(1, 1, 1, 10_000, 0)


def test_it_is_kept_no_longer_than_from_the_beginning_of_its_query() -> None:
    database, now = Database("ann"), 1000.0

    def load(username: str) -> User | None:
        nonlocal now
        now += 100  # a slow one
        return database.profile(username)

    cache = ProfileCache(load=load, timer=lambda: now)
    cache.get("ann")
    now += 199
    cache.get("ann")
    assert (len(database.asked), cache.info().currsize) == (1, 1)
    now += 1
    assert cache.info().currsize == 0
    cache.get("ann")
    assert len(database.asked) == 2
    assert cache.info().invalidations == 0


def test_the_least_recently_asked_for_goes_first() -> None:
    database = Database("ann", "bob", "cyd")
    cache = ProfileCache(database, maxsize=2)
    for name in ("ann", "bob", "ann", "cyd", "ann", "cyd"):
        cache.get(name)
    assert database.asked == ["ann", "bob", "cyd"]
    cache.get("bob")
    assert database.asked[3:] == ["bob"]
    assert cache.info() == CacheInfo(hits=3, misses=4, currsize=2, maxsize=2, invalidations=0)


def test_nobody_is_not_kept() -> None:
    database = Database()
    cache = ProfileCache(database)
    assert cache.get("ann") is None
    database.users[1] = User(1, "ann")
    assert cache.get("ann") == User(1, "ann")


FORGET: list[Callable[[Cache[User]], None]] = [
    lambda cache: cache.invalidate("ann"),
    lambda cache: cache.invalidate("ANN"),
    lambda cache: cache.invalidate_user(1),
    lambda cache: cache.invalidate_user("1"),
    lambda cache: cache.invalidate_many(user_ids=[9, 1], usernames=["zoe"]),
    lambda cache: cache.invalidate_many(usernames=["zoe", "Ann"]),
    lambda cache: cache.clear(),
    lambda cache: (cache.suspend(), cache.resume())[0],
]


@pytest.mark.parametrize("forget", FORGET)
def test_who_is_forgotten_is_asked_for_again(forget: Callable[[ProfileCache[User]], None]) -> None:
    database = Database("Ann", "bob")
    cache = ProfileCache(database)
    for name in ("ann", "ANN", "bob"):
        cache.get(name)
    database.change(1)
    forget(cache)
    assert [cache.get("ann"), cache.get("ANN")] == [User(1, "Ann", 1)] * 2
    assert database.asked == ["ann", "ANN", "bob", "ann", "ANN"]
    assert cache.info().invalidations in (2, 3)


def test_others_stay() -> None:
    database = Database("ann", "bob")
    cache = ProfileCache(database)
    cache.get("ann")
    cache.get("bob")
    cache.invalidate("ann")
    cache.invalidate_user(1)
    cache.invalidate_many()
    assert cache.info().currsize == 1
    cache.get("bob")
    assert cache.info() == CacheInfo(1, 2, 1, 10_000, 1)


def test_a_rename_drops_both_names_by_the_id() -> None:
    database = Database("ann", "bob")
    cache = ProfileCache(database)
    cache.get("ann")
    cache.get("bob")
    database.change(2, username="old bob")
    database.change(1, username="bob")
    cache.invalidate_many(user_ids=[1, 2], usernames=["ann", "bob", "old bob"])
    assert cache.get("ann") is None
    assert cache.get("bob") == User(1, "bob", 1)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("I", "\N{LATIN SMALL LETTER DOTLESS I}"),
        ("İ", "i"),
        ("İ", "i̇"),
        ("ẞ", "ss"),
        ("É", "e"),
        ("\N{KELVIN SIGN}", "k"),
        ("ﬁ", "FI"),
    ],
)
def test_names_that_some_collation_holds_for_equal_have_one_token(one: str, other: str) -> None:
    assert tokens.of_name(one) == tokens.of_name(other)
    assert tokens.of_name(f"{one}x ") == tokens.of_name(f"{other}x") != tokens.of_name(other)


def test_citext_names_go_by_either_form(db: Connection[Any], database: str) -> None:
    db.execute("create extension citext; select builder_score.detach()")
    db.execute("alter table users alter username type citext; select builder_score.attach()")
    ann = add_user(db, "Ann")
    engine = create_engine(database.replace("postgresql:", "postgresql+psycopg:", 1))
    cache = ProfileCache(ScoreReader(engine))
    for form in ("ann", "Ann"):
        found = cache.get("ANN")
        assert found is not None
        assert (found.username, found.user_id) == ("Ann", ann)
        cache.invalidate(form)
        assert cache.info().currsize == 0
    cache.get("ANN")
    cache.invalidate_user(str(ann).upper())
    assert cache.info().currsize == 0
    engine.dispose()


def test_what_an_application_loads_itself() -> None:
    rows: dict[str, dict[str, Any]] = {"ann": {"id": 7, "name": "Ann"}}
    cache = ProfileCache[dict[str, Any]](load=rows.get, user_id=itemgetter("id"), username=None)
    assert cache.get("ann") is rows["ann"]
    cache.invalidate_user(7)
    assert cache.info().invalidations == 1
    by_name = ProfileCache[dict[str, Any]](
        load=lambda _: rows["ann"], user_id=itemgetter("id"), username=itemgetter("name")
    )
    by_name.get("alias")
    by_name.invalidate("ann")
    assert by_name.info().invalidations == 1


def test_arguments_that_can_mean_nothing() -> None:
    with pytest.raises(BadArgumentError, match="one of them"):
        ProfileCache()  # pyright: ignore[reportCallIssue]
    with pytest.raises(BadArgumentError, match="one of them"):
        AsyncProfileCache(Database(), load=Database().profile)  # pyright: ignore[reportCallIssue]
    wrong: dict[str, Any]
    for wrong in ({"maxsize": 0}, {"ttl": 0}, {"ttl": float("nan")}):
        with pytest.raises(BadArgumentError, match="at least 1 profile and more than 0 seconds"):
            ProfileCache(Database(), **wrong)
    cache = ProfileCache(load=lambda name: {"id": 1})
    for _ in range(2):
        with pytest.raises(BadArgumentError, match="user_id='id'"):
            cache.get("ann")


# Under way: threads ------------------------------------------------------------------------------


def test_threads_that_ask_at_the_same_time_make_one_query(pool: ThreadPoolExecutor) -> None:
    database = Database("ann", "bob")
    gate = Gate(database)
    cache = ProfileCache(gate)
    ask = Threads(cache, pool).ask
    asked = [ask("ann") for _ in range(5)]
    other = ask("bob")
    gate.stopped(2)
    gate.open(1)
    assert result(other) == User(2, "bob")
    gate.open(0)
    assert [result(each) for each in asked] == [User(1, "ann")] * 5
    assert sorted(database.asked) == ["ann", "bob"]
    assert cache.info() == CacheInfo(0, 6, 2, 10_000, 0)


@pytest.mark.parametrize("forget", FORGET)
def test_a_load_that_began_before_an_invalidation_is_neither_kept_nor_given_to_who_asks_later(
    pool: ThreadPoolExecutor, forget: Callable[[ProfileCache[User]], None]
) -> None:
    database = Database("ann")
    gate = Gate(database)
    cache = ProfileCache(gate)
    ask = Threads(cache, pool).ask
    early = [ask("ann"), ask("ann")]
    gate.stopped(1)
    database.change(1)
    forget(cache)
    late = ask("ann")
    gate.open(0)
    # they asked before it
    assert [result(each) for each in early] == [User(1, "ann")] * 2
    gate.stopped(2)
    assert not late.done()
    gate.open(1)
    assert result(late) == User(1, "ann", 1)
    assert cache.get("ann") == User(1, "ann", 1)
    assert len(database.asked) == 2


def test_who_is_not_concerned_does_not_wait_longer(pool: ThreadPoolExecutor) -> None:
    gate = Gate(Database("ann", "bob"))
    cache = ProfileCache(gate)
    ask = Threads(cache, pool).ask
    early = ask("ann")
    gate.stopped(1)
    cache.invalidate_user(2)
    cache.invalidate("bob")
    late = ask("ann")
    gate.open(0)
    assert result(early) == result(late) == cache.get("ann") == User(1, "ann")


def test_of_two_invalidations_the_one_before_the_question_counts(pool: ThreadPoolExecutor) -> None:
    database = Database("ann")
    gate = Gate(database)
    cache = ProfileCache(gate)
    ask = Threads(cache, pool).ask
    first = ask("ann")
    gate.stopped(1)
    database.change(1)
    cache.invalidate_user(1)
    second = ask("ann")
    cache.invalidate_user(1)
    gate.open(0)
    assert result(first) == User(1, "ann")
    gate.stopped(2)
    gate.open(1)
    assert result(second) == User(1, "ann", 1)


def test_nobody_is_no_answer_to_who_asks_after_somebody_came(pool: ThreadPoolExecutor) -> None:
    database = Database()
    gate = Gate(database)
    cache = ProfileCache(gate)
    ask = Threads(cache, pool).ask
    early = ask("ann")
    gate.stopped(1)
    database.users[1] = User(1, "ann")
    cache.invalidate_user(1)  # the worker's message
    late = ask("ann")
    gate.open(0)
    assert result(early) is None
    gate.stopped(2)
    gate.open(1)
    assert result(late) == User(1, "ann")


def test_a_name_that_only_the_answer_knows_counts(pool: ThreadPoolExecutor) -> None:
    gate = Gate(Database("ann"))
    cache = ProfileCache(load=lambda alias: gate.profile("ann"))
    early = Threads(cache, pool).ask("alias")
    gate.stopped(1)
    cache.invalidate("Ann")
    gate.open(0)
    assert result(early) == User(1, "ann")
    assert cache.info().currsize == 0


def test_more_invalidations_than_are_remembered(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "_REMEMBERED", 10)
    database = Database("ann")
    gate = Gate(database)
    cache = ProfileCache(gate)
    ask = Threads(cache, pool).ask
    early = ask("ann")
    gate.stopped(1)
    database.change(1)
    cache.invalidate_user(1)
    late = ask("ann")
    for other in range(100, 112):
        cache.invalidate_user(other)
    latest = ask("ann")
    gate.stopped(2)
    gate.open(0)
    gate.open(1)
    assert result(early) == User(1, "ann")
    assert [result(late), result(latest), cache.get("ann")] == [User(1, "ann", 1)] * 3
    assert len(database.asked) == 2


def test_what_a_load_raises_reaches_all_who_wait_and_is_not_kept(pool: ThreadPoolExecutor) -> None:
    database = Database("ann")
    gate = Gate(database)
    fails = True

    def load(username: str) -> User | None:
        found = gate.profile(username)
        if fails:
            raise LookupError("the server is away")
        return found

    cache = ProfileCache(load=load)
    ask = Threads(cache, pool).ask
    asked = [ask("ann") for _ in range(3)]
    gate.stopped(1)
    gate.open(0)
    for each in asked:
        with pytest.raises(LookupError, match="the server is away"):
            result(each)
    fails = False
    again = ask("ann")
    gate.stopped(2)
    gate.open(1)
    assert result(again) == User(1, "ann")
    assert cache.info() == CacheInfo(0, 4, 1, 10_000, 0)


def test_a_thread_that_is_stopped_leaves_the_load_to_the_others(pool: ThreadPoolExecutor) -> None:
    gate = Gate(Database("ann"))
    stops = [True, False]

    def load(username: str) -> User | None:
        found = gate.profile(username)
        if stops.pop(0):
            raise KeyboardInterrupt
        return found

    cache = ProfileCache(load=load)
    ask = Threads(cache, pool).ask
    asked = [ask("ann"), ask("ann")]
    gate.stopped(1)
    gate.open(0)
    with pytest.raises(KeyboardInterrupt):
        result(asked[0])
    gate.stopped(2)
    gate.open(1)
    assert result(asked[1]) == User(1, "ann")


def test_a_load_that_asks_for_itself_is_told_so() -> None:
    cache: ProfileCache[User] = ProfileCache(load=lambda name: cache.get(name))
    with pytest.raises(PyscoreError, match="'ann' asks the cache for itself"):
        cache.get("ann")


def test_nobody_waits_for_a_load_that_is_older_than_an_entry_may_be(
    pool: ThreadPoolExecutor,
) -> None:
    database, now = Database("ann"), [0.0]
    gate = Gate(database)
    cache = ProfileCache(gate, timer=lambda: now[0])
    ask = Threads(cache, pool).ask
    early = ask("ann")
    gate.stopped(1)
    database.change(1)
    now[0] = 300
    late = ask("ann")
    gate.stopped(2)
    gate.open(1)
    assert result(late) == User(1, "ann", 1)
    gate.open(0)
    assert result(early) == User(1, "ann")
    assert cache.get("ann") == User(1, "ann", 1)


def test_while_suspended_it_keeps_nothing() -> None:
    database = Database("ann")
    cache = ProfileCache(database)
    cache.get("ann")
    cache.suspend()
    for _ in range(2):
        cache.get("ann")
    assert (len(database.asked), cache.info().currsize) == (3, 0)
    cache.resume()
    for _ in range(2):
        cache.get("ann")
    assert len(database.asked) == 4


# Under way: tasks --------------------------------------------------------------------------------


class Turns:
    """An asynchronous load that stops after it has read; a turn of the loop is all it takes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.gates: list[asyncio.Event] = []
        self.cancelled = 0

    async def profile(self, username: str) -> User | None:
        found = self._database.profile(username)
        gate = asyncio.Event()
        self.gates.append(gate)
        try:
            await gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return found


async def settled() -> None:
    """Return once no task can go on by itself."""
    for _ in range(10):
        await asyncio.sleep(0)


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), PATIENCE))

    run.__name__ = test.__name__
    return run


@in_loop
async def test_tasks_that_ask_at_the_same_time_make_one_query() -> None:
    database = Database("ann")
    turns = Turns(database)
    cache = AsyncProfileCache(turns)
    asked = [asyncio.create_task(cache.get("ann")) for _ in range(5)]
    await settled()
    turns.gates[0].set()
    assert await asyncio.gather(*asked) == [User(1, "ann")] * 5
    assert await cache.get("ann") == User(1, "ann")
    assert database.asked == ["ann"]
    assert cache.info() == CacheInfo(1, 5, 1, 10_000, 0)


@in_loop
async def test_a_task_that_asks_after_an_invalidation_gets_what_was_read_after_it() -> None:
    database = Database("ann")
    turns = Turns(database)
    cache = AsyncProfileCache(turns)
    early = asyncio.create_task(cache.get("ann"))
    await settled()
    database.change(1)
    cache.invalidate_user(1)
    late = asyncio.create_task(cache.get("ann"))
    await settled()
    turns.gates[0].set()
    assert await early == User(1, "ann")
    await settled()
    assert cache.info().currsize == 0
    turns.gates[1].set()
    assert await late == await cache.get("ann") == User(1, "ann", 1)


@in_loop
async def test_who_is_cancelled_leaves_the_load_to_the_others() -> None:
    database = Database("ann")
    turns = Turns(database)
    cache = AsyncProfileCache(turns)
    first, second = (asyncio.create_task(cache.get("ann")) for _ in range(2))
    await settled()
    first.cancel()
    await settled()
    assert first.cancelled()
    turns.gates[0].set()
    assert await second == User(1, "ann")
    assert (database.asked, turns.cancelled) == (["ann"], 0)


@in_loop
async def test_the_last_who_is_cancelled_takes_the_load_along() -> None:
    database = Database("ann")
    turns = Turns(database)
    cache = AsyncProfileCache(turns)
    asked = [asyncio.create_task(cache.get("ann")) for _ in range(2)]
    await settled()
    for each in asked:
        each.cancel()
    later = asyncio.create_task(cache.get("ann"))
    await settled()
    assert turns.cancelled == 1
    turns.gates[1].set()
    assert await later == User(1, "ann")
    # and before the load has begun
    cache.clear()
    others = asyncio.all_tasks()
    hasty = asyncio.create_task(cache.get("ann"))
    await asyncio.sleep(0)
    # as at the end of the loop
    for task in asyncio.all_tasks() - others:
        task.cancel()
    await settled()
    assert hasty.cancelled()
    assert len(database.asked) == 2
    assert cache._store._underway == set()


@in_loop
async def test_what_an_asynchronous_load_raises_reaches_all_who_wait() -> None:
    async def load(username: str) -> User | None:
        await asyncio.sleep(0)
        raise LookupError("the server is away")

    cache = AsyncProfileCache(load=load)
    answers = await asyncio.gather(*(cache.get("ann") for _ in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [LookupError] * 3
    assert cache.info().misses == 3


@in_loop
async def test_an_asynchronous_load_that_asks_for_itself_is_told_so() -> None:
    cache: AsyncProfileCache[User] = AsyncProfileCache(load=lambda name: cache.get(name))
    with pytest.raises(PyscoreError, match="'ann' asks the cache for itself"):
        await cache.get("ann")


def test_loops_share_what_is_kept_and_no_loads() -> None:
    database = Database("ann")
    turns = Turns(database)
    cache = AsyncProfileCache(turns)

    async def ask() -> User | None:
        asked = asyncio.create_task(cache.get("ann"))
        await settled()
        turns.gates[-1].set()
        return await asked

    async def outer() -> User | None:
        asked = asyncio.create_task(cache.get("ann"))
        await settled()
        # another thread's loop asks while this one's load is under way
        assert await asyncio.to_thread(asyncio.run, ask()) == User(1, "ann")
        turns.gates[0].set()
        return await asked

    assert asyncio.run(outer()) == asyncio.run(cache.get("ann")) == User(1, "ann")
    assert len(database.asked) == 2


# Against an oracle -------------------------------------------------------------------------------

NAMES: tuple[str, ...] = ("ann", "Ann", "bob", "BOB", "cyd")
steps = st.one_of(
    st.tuples(st.just("begin"), st.sampled_from(NAMES)),
    st.tuples(st.just("end"), st.integers(0, 5)),
    st.tuples(st.just("fail"), st.integers(0, 5)),
    st.tuples(st.just("change"), st.integers(1, 2)),
    st.tuples(st.just("rename"), st.integers(1, 2), st.sampled_from(("ann", "Bob", "cyd"))),
    st.tuples(st.just("hear"), st.integers(1, 2)),
    st.tuples(st.just("hear"), st.just(0)),
    st.tuples(st.just("later"), st.integers(1, 200)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, max_size=40), st.sampled_from([1, 2, 10]), st.sampled_from([3, 10_000]))
def test_nobody_gets_what_was_known_to_be_out_of_date_when_they_asked(
    history: list[tuple[Any, ...]], maxsize: int, remembered: int
) -> None:
    """Every answer was true at some moment after the last invalidation before its question.

    Loads of a store, many at a time, in the order of the history; what is written down about each
    moment is all that the oracle looks at.
    """
    previous, stores._REMEMBERED = stores._REMEMBERED, remembered
    try:
        follow(history, maxsize)
    finally:
        stores._REMEMBERED = previous


def follow(history: list[tuple[Any, ...]], maxsize: int) -> None:
    database, now, moment = Database("ann", "bob"), 0.0, 0
    # each moment's truth, and when it was last heard of
    truth: list[dict[str, User | None]] = []
    heard = dict.fromkeys(NAMES, -1)
    times: list[float] = []
    store = stores.Store[User](maxsize, 300, lambda: now)
    # the load, what it has read at once, and who waits: since when
    underway: list[tuple[stores.Flight[User], User | None, list[tuple[stores.Missing, int]]]]
    underway = []

    def write_down() -> None:
        truth.append({name: database.now(name) for name in NAMES})
        times.append(now)

    def check(name: str, answer: User | None, since: int, at: float) -> None:
        moments = [n for n in range(since, moment + 1) if times[n] >= at]
        assert any(truth[n][name] == answer for n in moments), (name, answer, since, moment)

    for step in history:
        write_down()
        moment = len(truth) - 1
        match step:
            case ("begin", str(name)):
                # what is heard at a moment comes before what is asked at it
                found = store.find(name)
                if not isinstance(found, stores.Missing):
                    check(name, found, max(heard[name], 0), now - 300)
                    continue
                flight, is_mine = store.board(name)
                waiter = (found, max(heard[name], 0))
                if is_mine:
                    underway.append((flight, database.now(name), [waiter]))
                else:
                    next(w for f, _, w in underway if f is flight).append(waiter)
            case ("end", int(n)) if n < len(underway):
                flight, value, waiters = underway.pop(n)
                known = () if value is None else (tokens.of_id(value.user_id),)
                named = () if value is None else (tokens.of_name(value.username),)
                store.land(flight, value, known + named)
                for missing, since in waiters:
                    if flight.answers(missing):
                        check(flight.name, value, since, 0)
                # whoever began it is answered by it, unless more was heard than is remembered
                if stores._REMEMBERED > 100:
                    assert flight.answers(waiters[0][0])
            case ("fail", int(n)) if n < len(underway):
                store.fail(underway.pop(n)[0], LookupError())
            case ("change", int(user_id)):
                database.change(user_id)
                write_down()
                hear(database, store, heard, truth, user_id)
            case ("rename", int(user_id), str(name)):
                if database.now(name) in (None, database.users[user_id]):
                    old = database.users[user_id].username
                    database.change(user_id, username=name)
                    write_down()
                    store.forget([tokens.of_id(user_id), *map(tokens.of_name, (old, name))])
                    for each in NAMES:
                        if each.lower() in (old.lower(), name.lower()):
                            heard[each] = len(truth) - 1
            case ("hear", 0):
                store.forget([tokens.EVERYBODY])
                heard.update(dict.fromkeys(NAMES, moment))
            case ("hear", int(user_id)):
                hear(database, store, heard, truth, user_id)
            case ("later", int(seconds)):
                now += seconds
            case _:
                pass
        moment = len(truth) - 1
        assert store.info().currsize <= maxsize
    if not underway:
        assert store._events == {}


def hear(
    database: Database,
    store: stores.Store[User],
    heard: dict[str, int],
    truth: list[dict[str, User | None]],
    user_id: int,
) -> None:
    store.forget([tokens.of_id(user_id)])
    for name in NAMES:
        if name.lower() == database.users[user_id].username.lower():
            heard[name] = len(truth) - 1


def test_what_it_knows_of_entries_that_are_gone_does_not_grow() -> None:
    cache = ProfileCache(load=lambda name: User(1, "ann"), maxsize=5)
    for n in range(100):
        cache.get(f"alias {n}")
    store = cache._store
    assert len(store._tokens) <= 10
    assert sum(map(len, store._keys.values())) <= 30
    cache.invalidate("ann")
    assert store._keys == {}
    assert cache.info() == CacheInfo(0, 100, 0, 5, 5)


def test_a_clock_that_goes_on_in_the_middle_of_a_question() -> None:
    ticks = iter(range(10_000))
    cache = ProfileCache(Database("ann"), ttl=7, timer=lambda: float(next(ticks)))
    for _ in range(50):
        assert cache.get("ann") == User(1, "ann")
        cache.invalidate("ann")
        cache.get("ann")
        cache.info()


# Processes ---------------------------------------------------------------------------------------


def test_a_child_begins_anew_whatever_was_under_way(pool: ThreadPoolExecutor) -> None:
    database = Database("ann")
    gate = Gate(database)
    cache = ProfileCache(gate)
    asked = Threads(cache, pool).ask("ann")
    gate.stopped(1)
    # as if somebody were in the middle of something, too
    with cache._store._lock:
        child = os.fork()
        if child == 0:
            threading.Timer(PATIENCE, os._exit, [9]).start()
            cache._load = database.profile
            answer = pool_free_get(cache)
            os._exit(0 if answer == User(1, "ann") and cache.info().misses == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    gate.open(0)
    assert result(asked) == User(1, "ann")


def pool_free_get(cache: ProfileCache[User]) -> User | None:
    found: list[User | None] = []
    asks = threading.Thread(target=lambda: found.append(cache.get("ann")))
    asks.start()
    asks.join()
    return found[0]


def test_without_cachetools_it_says_what_to_install() -> None:
    code = """
import sys
sys.modules["cachetools"] = None
import pyscore
try:
    pyscore.ProfileCache
except pyscore.PyscoreError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "install it with: pip install 'pyscore[cache]'" in done.stdout, done.stderr


def test_what_is_loaded_as_the_cache_resumes_is_not_kept() -> None:
    database = Database("ada")
    gate = Gate(database)
    cache = ProfileCache(load=gate.profile)
    cache.suspend()
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(cache.get, "ada")
        gate.stopped(1)
        cache.resume()
        gate.open(0)
        assert asked.result(PATIENCE) is not None
    assert cache.info().currsize == 0


def test_an_error_does_not_hold_itself() -> None:
    alive: list[weakref.ref[Database]] = []

    def load(_: str) -> User | None:
        database = Database()
        alive.append(weakref.ref(database))
        raise OSError("no")

    async def load_soon(name: str) -> User | None:
        return load(name)

    async def ask() -> None:
        with pytest.raises(OSError, match="no"):
            await AsyncProfileCache(load=load_soon).get("ada")

    gc.disable()
    try:
        with pytest.raises(OSError, match="no"):
            ProfileCache(load=load).get("ada")
        assert alive[0]() is None
        asyncio.run(ask())
        assert alive[1]() is None
    finally:
        gc.enable()


def test_a_load_that_somebody_else_cancels_is_made_anew() -> None:
    begun: list[asyncio.Future[User | None]] = []

    async def load(_: str) -> User | None:
        begun.append(asyncio.get_running_loop().create_future())
        return await begun[-1]

    async def test() -> None:
        cache = AsyncProfileCache(load=load)
        asked = asyncio.create_task(cache.get("ada"))
        while not begun:
            await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task(), asked}:
            task.cancel()
        while len(begun) < 2:
            assert not asked.done()
            await asyncio.sleep(0)
        begun[1].set_result(User(1, "ada"))
        assert await asked == User(1, "ada")

    asyncio.run(test())


def test_a_load_that_is_cancelled_from_within_cancels_nobody() -> None:
    async def load(_: str) -> User | None:
        raise asyncio.CancelledError

    with pytest.raises(PyscoreError, match="cancelled from within"):
        asyncio.run(AsyncProfileCache(load=load).get("ada"))
