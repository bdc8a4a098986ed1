"""A cache that many tasks ask: one load at a time, whoever is cancelled; and any order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyscore import AsyncProfileCache
from pyscore.cache import CacheInfo
from pyscore.errors import BadArgumentError
from tests.caching import (
    ADA,
    INVALIDATIONS,
    NEW,
    AsyncGates,
    Clock,
    People,
    Person,
    entries_of,
    loads_of,
    settle,
)


def in_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test())

    run.__name__ = test.__name__
    return run


@in_a_loop
async def test_tasks_that_miss_one_name_make_one_query() -> None:
    gates = AsyncGates({"ada": ADA})
    cache = AsyncProfileCache(load=gates.load)
    asked = [asyncio.create_task(cache.get("ada")) for _ in range(6)]
    await settle()
    (gate,) = gates.begun
    gate.set_result(None)
    assert await asyncio.gather(*asked) == [ADA] * 6
    assert await cache.get("ada") == ADA
    assert cache.info() == CacheInfo(1, 6, 1024, 1, 0)


@in_a_loop
async def test_an_exception_reaches_all_tasks() -> None:
    gates = AsyncGates({"ada": ADA})
    cache = AsyncProfileCache(load=gates.load)
    asked = [asyncio.create_task(cache.get("ada")) for _ in range(3)]
    await settle()
    error = OSError("the database is away")
    gates.begun[0].set_exception(error)
    assert await asyncio.gather(*asked, return_exceptions=True) == [error] * 3
    again = asyncio.create_task(cache.get("ada"))
    await settle()
    gates.begun[1].set_result(None)
    assert await again == ADA


@pytest.mark.parametrize("first", [0, 1])
def test_who_is_cancelled_cancels_the_load_of_nobody_else(first: int) -> None:
    async def test() -> None:
        gates = AsyncGates({"ada": ADA})
        cache = AsyncProfileCache(load=gates.load)
        asked = [asyncio.create_task(cache.get("ada")) for _ in range(2)]
        await settle()
        asked[first].cancel()
        await settle()
        assert asked[first].cancelled()
        gates.begun[0].set_result(None)
        assert await asked[1 - first] == ADA
        assert (len(gates.begun), gates.cancelled) == (1, 0)

    asyncio.run(test())


@in_a_loop
async def test_the_last_who_is_cancelled_cancels_the_load() -> None:
    gates = AsyncGates({"ada": ADA})
    cache = AsyncProfileCache(load=gates.load)
    asked = [asyncio.create_task(cache.get("ada")) for _ in range(2)]
    await settle()
    for one in asked:
        one.cancel()
    # who comes before it is gone does not wait for it
    late = asyncio.create_task(cache.get("ada"))
    await settle()
    assert (gates.cancelled, len(gates.begun)) == (1, 2)
    gates.begun[1].set_result(None)
    assert await late == ADA
    assert loads_of(cache) == []
    assert len(asyncio.all_tasks()) == 1


@in_a_loop
async def test_a_load_that_is_cancelled_from_within_cancels_nobody() -> None:
    async def load(_: str) -> Person | None:
        raise asyncio.CancelledError

    cache = AsyncProfileCache(load=load)
    with pytest.raises(RuntimeError, match="cancelled from within"):
        await cache.get("ada")


@in_a_loop
async def test_a_load_that_somebody_else_cancels_is_made_anew() -> None:
    gates = AsyncGates({"ada": ADA})
    cache = AsyncProfileCache(load=gates.load)
    asked = asyncio.create_task(cache.get("ada"))
    await settle()
    for task in asyncio.all_tasks() - {asyncio.current_task(), asked}:
        task.cancel()
    await settle()
    gates.begun[1].set_result(None)
    assert await asked == ADA


@in_a_loop
async def test_a_load_that_asks_for_itself_does_not_wait_for_itself() -> None:
    async def load(username: str) -> Person | None:
        return await cache.get(username)

    cache: AsyncProfileCache[Person] = AsyncProfileCache(load=load)
    with pytest.raises(RuntimeError, match="asks the cache for the same name"):
        await cache.get("ada")


def test_a_function_that_cannot_be_awaited_is_told() -> None:
    cache: Any = AsyncProfileCache(load=People(ADA).load)  # pyright: ignore[reportArgumentType, reportUnknownVariableType]
    with pytest.raises(BadArgumentError, match="a coroutine function"):
        asyncio.run(cache.get("ada"))


def test_each_event_loop_waits_for_loads_of_its_own() -> None:
    gates = AsyncGates({"ada": ADA})
    cache = AsyncProfileCache(load=gates.load)
    abandoned = asyncio.new_event_loop()
    task = abandoned.create_task(cache.get("ada"))
    abandoned.run_until_complete(settle())

    async def test() -> None:
        asked = asyncio.create_task(cache.get("ada"))
        await settle()
        gates.begun[1].set_result(None)
        assert await asked == ADA

    asyncio.run(test())
    task.cancel()
    abandoned.run_until_complete(settle())
    abandoned.close()
    assert asyncio.run(cache.get("ada")) == ADA
    assert len(gates.begun) == 2


@pytest.mark.parametrize("form", ["ada", "ADA"])
@pytest.mark.parametrize("invalidate", INVALIDATIONS.values(), ids=INVALIDATIONS)
def test_tasks_too_are_not_given_what_was_read_before_they_asked(
    invalidate: Callable[[Any], None], form: str
) -> None:
    async def test() -> None:
        gates = AsyncGates({"ada": ADA})
        cache = AsyncProfileCache(load=gates.load)
        before = asyncio.create_task(cache.get(form))
        await settle()
        gates.database["ada"] = NEW
        invalidate(cache)
        after = asyncio.create_task(cache.get(form))
        await settle()
        gates.begun[0].set_result(None)
        await settle()
        gates.begun[1].set_result(None)
        assert (await before, await after, await cache.get(form)) == (ADA, NEW, NEW)
        assert len(gates.begun) == 2

    asyncio.run(test())


@dataclass
class Begun:
    """A load: what it read, when it began, and what ends it."""

    step: int
    name: str
    at: float
    future: asyncio.Future[Person | None]
    result: Person | None = None


@dataclass
class Asked:
    step: int
    name: str
    at: float
    task: asyncio.Task[Person | None]
    cancelled: bool = False


@dataclass(frozen=True)
class Said:
    """An invalidation, by id, by name, or (both None) of all."""

    step: int
    user_id: int | None = None
    name: str | None = None


def concerns(said: Said, name: str, found: Person | None) -> bool:
    if said.user_id is None and said.name is None:
        return True
    if found is None:  # nobody was there; who is now may be whoever was named by id
        return said.name == name or said.user_id is not None
    return said.user_id == found.user_id or said.name in (name, found.username)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from(["ada", "bob"]), st.just(0)),
        st.tuples(st.just("end"), st.just(""), st.integers(0, 3)),
        st.tuples(st.just("fail"), st.just(""), st.integers(0, 3)),
        st.tuples(st.just("cancel"), st.just(""), st.integers(0, 5)),
        st.tuples(st.just("write"), st.sampled_from(["ada", "bob", "cleo"]), st.integers(1, 3)),
        st.tuples(st.just("remove"), st.sampled_from(["ada", "bob"]), st.just(0)),
        st.tuples(st.just("say id"), st.just(""), st.integers(1, 3)),
        st.tuples(st.just("say name"), st.sampled_from(["ada", "bob", "cleo"]), st.just(0)),
        st.tuples(st.just("say all"), st.just(""), st.just(0)),
        st.tuples(st.just("wait"), st.just(""), st.sampled_from([1, 4, 10])),
    ),
    min_size=4,
    max_size=30,
)


@given(steps=STEPS)
@settings(max_examples=300, deadline=None)
def test_in_any_order_nobody_is_given_what_was_said_to_be_old(
    steps: list[tuple[str, str, int]],
) -> None:
    asyncio.run(play(steps))


async def play(steps: list[tuple[str, str, int]]) -> None:
    clock = Clock()
    database: dict[str, Person] = {"ada": Person(1, "ada"), "bob": Person(2, "bob")}
    begun: list[Begun] = []
    asked: list[Asked] = []
    said: list[Said] = []
    origin: dict[int, Begun] = {}  # of each answer, by identity
    now = 0

    async def load(name: str) -> Person | None:
        mine = Begun(now, name, clock.now, asyncio.get_running_loop().create_future())
        read = database.get(name)
        if read is not None:  # an object of its own, to know it again
            mine.result = Person(read.user_id, read.username, read.version)
            origin[id(mine.result)] = mine
        begun.append(mine)
        return await mine.future

    cache = AsyncProfileCache(load=load, user_id="user_id", ttl=10, timer=clock)

    def under_way() -> list[Begun]:
        return [one for one in begun if not one.future.done()]

    for now, (what, name, number) in enumerate(steps):
        open_ = under_way()
        match what:
            case "ask":
                quiet = [
                    one
                    for one in begun
                    if one.name == name
                    and clock.now < one.at + 10
                    and not any(s.step > one.step for s in said)
                    and (
                        one in open_
                        or (
                            one.result
                            and not one.future.cancelled()
                            and one.future.exception() is None
                        )
                    )
                ]
                before = len(begun)
                asked.append(Asked(now, name, clock.now, asyncio.create_task(cache.get(name))))
                await settle()
                if quiet:
                    assert len(begun) == before, "it is kept, or being loaded"
            case "end" if open_:
                one = open_[number % len(open_)]
                one.future.set_result(one.result)
            case "fail" if open_:
                open_[number % len(open_)].future.set_exception(OSError("no"))
            case "cancel" if asked:
                one = asked[number % len(asked)]
                one.cancelled |= one.task.cancel()
            case "write":
                version = now + 1
                for old in [n for n, p in database.items() if p.user_id == number]:
                    del database[old]
                database[name] = Person(number, name, version)
            case "remove":
                database.pop(name, None)
            case "say id":
                cache.invalidate_user(number)
                said.append(Said(now, user_id=number))
            case "say name":
                cache.invalidate(name)
                said.append(Said(now, name=name))
            case "say all":
                cache.clear()
                said.append(Said(now))
            case "wait":
                clock.now += number
            case _:
                pass
        await settle()
    while open_ := under_way():
        open_[0].future.set_result(open_[0].result)
        await settle()
    answers = await asyncio.gather(*(one.task for one in asked), return_exceptions=True)
    for one, answer in zip(asked, answers, strict=True):
        if isinstance(answer, asyncio.CancelledError):
            assert one.cancelled
        elif isinstance(answer, Person):
            source = origin[id(answer)]
            assert source.name == one.name
            assert one.at < source.at + 10
            between = [s for s in said if source.step < s.step < one.step]
            assert not any(concerns(s, one.name, answer) for s in between)
        elif answer is None:
            # some load of the name that found nobody, with nothing said in between
            assert any(
                source.name == one.name
                and source.result is None
                and not any(
                    concerns(s, one.name, None) for s in said if source.step < s.step < one.step
                )
                for source in begun
            )
        else:
            assert isinstance(answer, OSError)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert loads_of(cache) == []
    assert not entries_of(cache)._under_way  # pyright: ignore[reportPrivateUsage]
