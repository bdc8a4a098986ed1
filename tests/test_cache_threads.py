"""A cache that many threads ask: one load at a time, and loads that come too late."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pyscore import ProfileCache
from pyscore.cache import CacheInfo
from tests.caching import (
    ADA,
    BOB,
    INVALIDATIONS,
    NEW,
    Gates,
    People,
    Person,
    loads_of,
)
from tests.interleave import PATIENCE, until


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def joined(cache: Any, count: int) -> None:
    until(lambda: [load.waiting for load in loads_of(cache)] == [count], f"{count} wait")


def test_threads_that_miss_one_name_make_one_query(threads: ThreadPoolExecutor) -> None:
    gates = Gates({"ada": ADA})
    cache = ProfileCache(load=gates.load)
    asked = [threads.submit(cache.get, "ada") for _ in range(6)]
    joined(cache, 5)
    gates.until(1).set_result(None)
    assert [one.result(PATIENCE) for one in asked] == [ADA] * 6
    assert len(gates.begun) == 1
    assert cache.info() == CacheInfo(0, 6, 1024, 1, 0)
    assert loads_of(cache) == []


def test_another_name_does_not_wait(threads: ThreadPoolExecutor) -> None:
    gates = Gates({"ada": ADA, "bob": BOB})
    cache = ProfileCache(load=gates.load)
    first = threads.submit(cache.get, "ada")
    gate = gates.until(1)
    second = threads.submit(cache.get, "bob")
    gates.until(2).set_result(None)
    assert second.result(PATIENCE) == BOB
    gate.set_result(None)
    assert first.result(PATIENCE) == ADA


def test_an_exception_reaches_all_and_is_not_kept(threads: ThreadPoolExecutor) -> None:
    gates = Gates({"ada": ADA})
    cache = ProfileCache(load=gates.load)
    asked = [threads.submit(cache.get, "ada") for _ in range(3)]
    joined(cache, 2)
    error = OSError("the database is away")
    gates.until(1).set_exception(error)
    assert [one.exception(PATIENCE) for one in asked] == [error] * 3
    again = threads.submit(cache.get, "ada")
    gates.until(2).set_result(None)
    assert again.result(PATIENCE) == ADA


def test_a_thread_that_is_interrupted_leaves_the_load_to_another(
    threads: ThreadPoolExecutor,
) -> None:
    gates = Gates({"ada": ADA})
    cache = ProfileCache(load=gates.load)
    first = threads.submit(cache.get, "ada")
    gate = gates.until(1)
    others = [threads.submit(cache.get, "ada") for _ in range(2)]
    joined(cache, 2)
    gate.set_exception(KeyboardInterrupt())
    gates.until(2).set_result(None)
    assert [one.result(PATIENCE) for one in others] == [ADA, ADA]
    assert isinstance(first.exception(PATIENCE), KeyboardInterrupt)


def test_a_load_that_asks_for_itself_is_an_error_and_no_deadlock() -> None:
    def load(username: str) -> Person | None:
        return cache.get(username)

    cache: ProfileCache[Person] = ProfileCache(load=load)
    with pytest.raises(RuntimeError, match="asks the cache for the same name"):
        cache.get("ada")
    assert loads_of(cache) == []


def test_no_reference_cycle_is_left_by_an_error() -> None:
    class Heavy:
        pass

    alive: list[Any] = []

    def load(_: str) -> Person | None:
        import weakref

        heavy = Heavy()
        alive.append(weakref.ref(heavy))
        raise OSError("no")

    cache = ProfileCache(load=load)
    gc.disable()
    try:
        with pytest.raises(OSError, match="no") as caught:
            cache.get("ada")
        del caught
        assert alive[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("form", ["ada", "ADA"])
@pytest.mark.parametrize("invalidate", INVALIDATIONS.values(), ids=INVALIDATIONS)
def test_what_was_read_before_an_invalidation_is_neither_kept_nor_given_to_who_asks_after_it(
    threads: ThreadPoolExecutor, invalidate: Callable[[Any], None], form: str
) -> None:
    gates = Gates({"ada": ADA})
    cache = ProfileCache(load=gates.load)
    before = [threads.submit(cache.get, form) for _ in range(2)]
    joined(cache, 1)
    gate = gates.until(1)
    gates.database["ada"] = NEW
    invalidate(cache)
    after = threads.submit(cache.get, form)
    until(lambda: cache.info().misses == 3, "the third asks")
    # whose the load is nobody knows: who asks after that waits for it, or loads anew at once
    until(lambda: len(gates.begun) == 2 or loads_of(cache)[0].waiting == 2, "and waits")
    gate.set_result(None)
    gates.until(2).set_result(None)
    assert [one.result(PATIENCE) for one in before] == [ADA, ADA]
    assert after.result(PATIENCE) == NEW
    assert cache.get(form) == NEW
    assert (len(gates.begun), cache.info().hits) == (2, 1)


def test_the_old_load_may_end_last(threads: ThreadPoolExecutor) -> None:
    gates = Gates({"ada": ADA})
    cache = ProfileCache(load=gates.load)
    before = threads.submit(cache.get, "ada")
    old = gates.until(1)
    gates.database["ada"] = NEW
    cache.invalidate("ada")
    after = threads.submit(cache.get, "ada")
    gates.until(2).set_result(None)
    assert after.result(PATIENCE) == NEW
    old.set_result(None)
    assert before.result(PATIENCE) == ADA
    assert cache.get("ada") == NEW
    assert len(gates.begun) == 2


@pytest.mark.parametrize("invalidate", INVALIDATIONS.values(), ids=INVALIDATIONS)
def test_an_invalidation_of_which_an_outdated_load_still_hears(
    threads: ThreadPoolExecutor, invalidate: Callable[[Any], None]
) -> None:
    gates = Gates({"ada": ADA})
    cache = ProfileCache(load=gates.load)
    first = threads.submit(cache.get, "ada")
    old = gates.until(1)
    cache.invalidate("ada")
    second = threads.submit(cache.get, "ada")
    between = gates.until(2)
    gates.database["ada"] = NEW
    invalidate(cache)
    for gate, asked in ((between, second), (old, first)):
        gate.set_result(None)
        assert asked.result(PATIENCE) == ADA
    assert cache.info().currsize == 0


def test_somebody_elses_invalidation_disturbs_no_load(threads: ThreadPoolExecutor) -> None:
    gates = Gates({"ada": ADA})
    cache = ProfileCache(load=gates.load)
    asked = [threads.submit(cache.get, "ada")]
    gate = gates.until(1)
    cache.invalidate("bob")
    cache.invalidate_user(BOB.user_id)
    asked.append(threads.submit(cache.get, "ada"))
    joined(cache, 1)
    gate.set_result(None)
    assert [one.result(PATIENCE) for one in asked] == [ADA, ADA]
    assert (len(gates.begun), cache.info().currsize) == (1, 1)


@pytest.mark.parametrize("invalidate", INVALIDATIONS.values(), ids=INVALIDATIONS)
def test_who_signed_up_is_seen_by_whoever_asks_after_that_was_said(
    threads: ThreadPoolExecutor, invalidate: Callable[[Any], None]
) -> None:
    gates = Gates({})
    cache = ProfileCache(load=gates.load)
    before = threads.submit(cache.get, "ada")
    gate = gates.until(1)
    gates.database["ada"] = ADA
    invalidate(cache)
    after = threads.submit(cache.get, "ada")
    until(lambda: len(gates.begun) == 2 or loads_of(cache)[0].waiting == 1, "it asks")
    gate.set_result(None)
    gates.until(2).set_result(None)
    assert (before.result(PATIENCE), after.result(PATIENCE)) == (None, ADA)


def test_a_load_beside_very_many_invalidations_is_not_kept(threads: ThreadPoolExecutor) -> None:
    gates = Gates({"ada": ADA})
    cache = ProfileCache(load=gates.load)
    asked = threads.submit(cache.get, "ada")
    gate = gates.until(1)
    for first in range(100, 20_100, 1000):
        cache.invalidate_user(*range(first, first + 1000))
    (load,) = loads_of(cache)
    assert len(load._noted) < 12_000  # pyright: ignore[reportPrivateUsage]
    gate.set_result(None)
    assert asked.result(PATIENCE) == ADA
    assert cache.info().currsize == 0


def test_suspended_it_loads_every_time(threads: ThreadPoolExecutor) -> None:
    people = People(ADA)
    cache = ProfileCache(load=people.load)
    cache.get("ada")
    cache.suspend()
    assert cache.info().currsize == 0
    assert [cache.get("ada"), cache.get("ada")] == [ADA, ADA]
    assert (len(people.asked), cache.info().currsize) == (3, 0)
    gates = Gates({"ada": ADA})
    slow = ProfileCache(load=gates.load)
    slow.suspend()
    asked = threads.submit(slow.get, "ada")
    gate = gates.until(1)
    slow.resume()  # what began before it may have been told too late
    gate.set_result(None)
    assert asked.result(PATIENCE) == ADA
    assert slow.info().currsize == 0
    cache.resume()
    assert [cache.get("ada"), cache.get("ada")] == [ADA, ADA]
    assert len(people.asked) == 4


FORK = """
import os, threading
from types import SimpleNamespace
from pyscore import ProfileCache

ada = SimpleNamespace(user_id=1, username="ada")
begun, gate = threading.Event(), threading.Event()

def load(username):
    if username == "slow" and os.getpid() == parent:
        begun.set()
        gate.wait()
    return ada

parent = os.getpid()
cache = ProfileCache(load=load)
cache.get("ada")
thread = threading.Thread(target=cache.get, args=["slow"])
thread.start()
begun.wait()
with cache._entries.lock:  # as if another thread held it
    child = os.fork()
if child == 0:
    assert cache.info().currsize == 0
    assert cache.get("slow") is ada  # the thread that loads it is not here
    assert cache.get("slow") is ada
    assert cache.info().hits == 1
    os._exit(0)
gate.set()
thread.join()
assert cache.info().currsize == 2
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_process_that_was_forked_begins_empty() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], timeout=PATIENCE, check=False)
    assert done.returncode == 0
