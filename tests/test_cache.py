"""Profiles by name, kept in memory: what is kept, and what is dropped."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import Connection
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from pyscore import AsyncProfileCache, AsyncScoreReader, ProfileCache, ScoreReader
from pyscore.cache import CacheInfo
from pyscore.caching.entries import id_tag, name_tag
from pyscore.errors import BadArgumentError, PyscoreError
from tests.caching import (
    ADA,
    BOB,
    INVALIDATIONS,
    Clock,
    People,
    Person,
    entries_of,
)
from tests.community import add_user


def test_what_was_loaded_is_kept() -> None:
    people = People(ADA, BOB)
    cache = ProfileCache(load=people.load)
    assert [cache.get("ada"), cache.get("bob"), cache.get("ada")] == [ADA, BOB, ADA]
    assert people.asked == ["ada", "bob"]
    assert cache.info() == CacheInfo(1, 2, 1024, 2, 0)


def test_that_there_is_nobody_is_not_kept() -> None:
    people = People()
    cache = ProfileCache(load=people.load)
    assert cache.get("ada") is None
    people.people["ada"] = ADA
    assert cache.get("ada") == ADA
    assert cache.info() == CacheInfo(0, 2, 1024, 1, 0)


def test_five_minutes_count_from_when_the_load_began() -> None:
    clock, people = Clock(), People(ADA)

    def load(username: str) -> Person | None:
        clock.now += 100
        return people.load(username)

    cache = ProfileCache(load=load, timer=clock)
    cache.get("ada")
    clock.now += 199
    cache.get("ada")
    assert people.asked == ["ada"]
    clock.now += 1
    assert cache.info().currsize == 0
    cache.get("ada")
    assert people.asked == ["ada", "ada"]


def test_a_load_that_takes_longer_than_that_is_not_kept() -> None:
    clock = Clock()

    def load(username: str) -> Person | None:
        clock.now += 300
        return ADA

    cache = ProfileCache(load=load, timer=clock)
    assert cache.get("ada") == ADA
    assert cache.info().currsize == 0


FORMS: dict[str, Callable[[ProfileCache[Person]], None]] = {
    **INVALIDATIONS,
    "by several names": lambda cache: cache.invalidate("bob", "ada"),
    "by the id's text in capitals": lambda cache: cache.invalidate_user(str(ADA.user_id).upper()),
    "by the id's digits": lambda cache: cache.invalidate_user(ADA.user_id.hex),
}


@pytest.mark.parametrize("invalidate", FORMS.values(), ids=FORMS)
def test_all_forms_of_a_name_go_together(
    invalidate: Callable[[ProfileCache[Person]], None],
) -> None:
    people = People(ADA)
    cache = ProfileCache(load=people.load)
    for name in ("Ada", "ada"):
        cache.get(name)
    invalidate(cache)
    assert cache.info() == CacheInfo(0, 2, 1024, 0, 2)


def test_nobody_else_goes() -> None:
    cache = ProfileCache(load=People(ADA, BOB).load)
    cache.get("ada")
    cache.get("bob")
    cache.invalidate("ad", "adam", "")
    cache.invalidate_user(UUID(int=3), 1, "ada")
    cache.invalidate()
    cache.invalidate_user()
    assert cache.info().currsize == 2
    cache.invalidate("ada")
    assert [cache.get("bob"), cache.info().hits] == [BOB, 1]


@pytest.mark.parametrize(
    ("stored", "other"),
    [
        *(("ada", "ADA"), ("stra\u00dfe", "STRASSE"), ("\u00e9mile", "E\u0301mile")),
        *(("ilgaz", "\u0130LGAZ"), ("\u0131lgaz", "ILGAZ"), ("ada ", "ada")),
    ],
)
def test_what_some_collation_takes_for_the_same_name_goes(stored: str, other: str) -> None:
    assert name_tag(stored) == name_tag(other)


def test_ids_of_all_kinds_are_known_by_their_text() -> None:
    assert id_tag(7) == id_tag("7")
    assert id_tag("01ARZ3NDEKTSV4RRFFQ69G5FAV") != id_tag("01arz3ndektsv4rrffq69g5fav")
    assert id_tag("x" * 36) == id_tag("x" * 36)


def test_a_rename_drops_both_names() -> None:
    people = People(ADA)
    cache = ProfileCache(load=people.load)
    cache.get("ada")
    bea = people.people["bea"] = Person(ADA.user_id, "bea")
    del people.people["ada"]
    cache.invalidate("ada", "bea")
    assert [cache.get("ada"), cache.get("bea")] == [None, bea]
    cache.invalidate("ada")  # nothing is kept under it
    assert cache.info().currsize == 1


def test_objects_of_ones_own_say_whose_they_are() -> None:
    row = {"id": 7, "handle": "Ada"}
    cache = ProfileCache(
        load=lambda _: row, user_id=lambda r: r["id"], username=lambda r: r["handle"]
    )
    for forget in (lambda: cache.invalidate_user("7"), lambda: cache.invalidate("ada")):
        assert cache.get("somebody") is row
        forget()
        assert cache.info().currsize == 0
    nameless = SimpleNamespace(key=7)
    other = ProfileCache(load=lambda _: nameless, user_id="key")
    assert other.get("ada") is nameless
    other.invalidate_user(7)
    assert other.info().currsize == 0
    with pytest.raises(BadArgumentError, match="user_id=, its name or a function"):
        ProfileCache(load=lambda _: nameless).get("ada")


def test_arguments_that_mean_nothing() -> None:
    with pytest.raises(BadArgumentError, match="expected one of them"):
        ProfileCache()  # pyright: ignore[reportCallIssue]
    with pytest.raises(BadArgumentError, match="takes a ScoreReader"):
        ProfileCache("ada")  # pyright: ignore[reportCallIssue, reportArgumentType]
    for numbers in ({"maxsize": 0}, {"ttl": 0.0}, {"ttl": float("nan")}):
        with pytest.raises(BadArgumentError, match="1 entry at least"):
            ProfileCache(load=People().load, **numbers)  # pyright: ignore[reportArgumentType]
    cache: Any = ProfileCache(load=People().load)
    with pytest.raises(BadArgumentError, match="expected text"):
        cache.get(7)


def test_without_cachetools_the_error_names_the_extra() -> None:
    program = """
import sys
sys.modules["cachetools"] = None
import pyscore.listener, pyscore.cache_events
try:
    pyscore.ProfileCache(load=str)
except pyscore.PyscoreError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert "install it with: pip install 'pyscore[cache]'" in done.stdout


NAMES = ("ada", "Ada", "ADA", "bob", "Bob", "cleo", "dan", "eve")


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["get", "get", "get", "invalidate"]), st.sampled_from(NAMES)),
            st.tuples(st.just("invalidate_user"), st.sampled_from(["ada", "bob", "eve"])),
            st.tuples(st.just("wait"), st.integers(1, 6)),
            st.tuples(st.just("clear"), st.none()),
        ),
        max_size=40,
    )
)
@settings(max_examples=150, deadline=None)
def test_it_keeps_what_a_plain_model_keeps(steps: list[tuple[str, Any]]) -> None:
    clock, model = Clock(), OrderedDict[str, float]()
    people = People(*(Person(name, name) for name in {name.lower() for name in NAMES}))
    cache = ProfileCache(load=people.load, maxsize=3, ttl=10, timer=clock)
    hits = misses = invalidations = 0
    for what, whom in steps:
        for name in [name for name, expires in model.items() if expires <= clock.now]:
            del model[name]
        match what:
            case "get":
                found = cache.get(whom)
                assert found is not None
                assert found.username == whom.lower()
                hits, misses = hits + (whom in model), misses + (whom not in model)
                if whom not in model:
                    if len(model) == 3:
                        model.popitem(last=False)
                    model[whom] = clock.now + 10
                model.move_to_end(whom)
            case "wait":
                clock.now += whom
            case _:
                goes = [n for n in model if what == "clear" or n.lower() == whom.lower()]
                for name in goes:
                    del model[name]
                invalidations += len(goes)
                getattr(cache, what)(*([] if whom is None else [whom]))
    size = sum(expires > clock.now for expires in model.values())
    assert cache.info() == CacheInfo(hits, misses, 3, size, invalidations)
    # nothing is left of those who went
    tagged = entries_of(cache)._kept._tagged  # pyright: ignore[reportPrivateUsage]
    clock.now += 10
    assert (cache.info().currsize, tagged) == (0, {})


@contextmanager
def engine_of(database: str) -> Generator[Any]:
    engine = create_engine(database.replace("postgresql:", "postgresql+psycopg:", 1))
    try:
        yield engine
    finally:
        engine.dispose()


def test_profiles_of_a_reader(database: str, db: Connection[Any]) -> None:
    ada = add_user(db, "ada", headline="ships")
    with engine_of(database) as engine:
        cache = ProfileCache(ScoreReader(engine))
        first = cache.get("ada")
        assert first is not None
        assert (first.user_id, first.headline, cache.get("nobody")) == (ada, "ships", None)
        db.execute("update users set headline = 'rests'")
        assert cache.get("ada") is first
        cache.invalidate_user(str(ada))
        second = cache.get("ada")
        assert second is not None
        assert second.headline == "rests"


def test_profiles_of_an_asynchronous_reader(database: str, db: Connection[Any]) -> None:
    add_user(db, "ada", headline="ships")

    async def test() -> None:
        engine = create_async_engine(database.replace("postgresql:", "postgresql+psycopg:", 1))
        cache = AsyncProfileCache(AsyncScoreReader(engine))
        profiles = await asyncio.gather(*(cache.get("ada") for _ in range(5)))
        assert [profile and profile.headline for profile in profiles] == ["ships"] * 5
        assert cache.info().misses == 5
        with pytest.raises(PyscoreError, match="takes an AsyncScoreReader"):
            AsyncProfileCache(engine)  # pyright: ignore[reportCallIssue, reportArgumentType]
        await engine.dispose()

    asyncio.run(test())
