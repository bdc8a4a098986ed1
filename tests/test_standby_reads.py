"""On a hot standby: readers of both kinds, and `pyscore verify`, answer as on the primary."""

import asyncio
import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from pyscore import AsyncScoreReader, PyscoreError, ScoreReader, migrator
from pyscore.cluster import PrivateCluster
from tests.commands import call, output, pyscore
from tests.community import one
from tests.interleave import until
from tests.reading import Community, bind_for, engine_for, settle
from tests.standby import standby_of

SETTINGS = {"fsync": False, "max_connections": 30}


@dataclass(frozen=True)
class Pair:
    """Addresses of a primary and of a standby that has all it has, and who is in them."""

    primary: str
    standby: str
    people: Community


@contextmanager
def connected(address: str) -> Generator[Connection[Any]]:
    with psycopg.connect(address, autocommit=True) as db:
        yield db


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with PrivateCluster(settings=SETTINGS, tcp=False) as primary:
        primary.psql("-c", "create database app")
        address = primary.conninfo("app")
        migrator.upgrade(address)
        people = settle(address)
        with standby_of(primary, settings=SETTINGS) as standby:
            copy = standby.conninfo("app")
            with connected(address) as db, connected(copy) as behind:
                assert one(behind, "select pg_is_in_recovery()")
                # one more score than the backup had
                db.execute("update users set bio = null where username = 'bob'")
                db.execute("select builder_score.recalculate(id) from users where username = 'bob'")
                now = one(db, "select pg_current_wal_flush_lsn()")
                replayed = f"select pg_last_wal_replay_lsn() >= '{now}'"
                until(lambda: one(behind, replayed), "the standby has what was committed")
            yield Pair(address, copy, people)


def questions(people: Community) -> list[tuple[str, tuple[Any, ...]]]:
    """A method and its arguments: all that only read."""
    everybody = ([people.ann, people.bob, people.dee],)
    return [
        ("score", (people.bob,)),
        ("scores", everybody),
        ("profile", ("ann",)),
        ("profiles", everybody),
        ("by_username", ("ann",)),
        ("leaderboard", (2,)),
        ("above", (0,)),
        ("rank", (people.ann,)),
        ("percentile", (people.ann,)),
        ("distribution", ()),
        ("explain", (people.ann,)),
    ]


@pytest.mark.parametrize("kind", ["engine", "session", "psycopg"])
def test_a_reader_answers_as_on_the_primary(pair: Pair, kind: str) -> None:
    with bind_for(kind, pair.primary) as primary, bind_for(kind, pair.standby) as standby:
        for method, given in questions(pair.people):
            answers = [getattr(ScoreReader(bind), method)(*given) for bind in (primary, standby)]
            if method == "explain":  # it says how old the account is by now
                answers = [answer.signals[:4] for answer in answers]
            assert answers[0] == answers[1], method
        assert ScoreReader(standby).score(pair.people.bob) == 0
        with pytest.raises(PyscoreError, match=r"read only; use a read-write .* primary"):
            ScoreReader(standby).recompute(pair.people.ann)


def test_an_asynchronous_reader_does_too(pair: Pair) -> None:
    async def ask() -> list[Any]:
        async with await psycopg.AsyncConnection.connect(pair.standby) as connection:
            reader = AsyncScoreReader(connection)
            with pytest.raises(PyscoreError, match="primary"):
                await reader.recompute(pair.people.ann)
            return [await getattr(reader, name)(*given) for name, given in questions(pair.people)]

    with engine_for(pair.standby) as engine:
        reader = ScoreReader(engine)
        expected = [getattr(reader, name)(*given) for name, given in questions(pair.people)]
    assert asyncio.run(ask())[:-1] == expected[:-1]


def test_verify_runs_there_and_repairs_nothing(pair: Pair) -> None:
    done = pyscore("verify", "--json", "--dsn", pair.standby)
    found = json.loads(done.stdout)
    # dee was written past the worker, and is queued
    assert (done.returncode, found["checked"], found["wrong"], found["pending"]) == (0, 4, 0, 1)
    with connected(pair.primary) as db, connected(pair.standby) as behind:
        db.execute("set session_replication_role = replica")
        db.execute("update users set builder_score = 77 where username = 'cyd'")
        now = one(db, "select pg_current_wal_flush_lsn()")
        until(lambda: one(behind, f"select pg_last_wal_replay_lsn() >= '{now}'"), "it is there")
        done = pyscore("verify", "--json", "--dsn", pair.standby)
        assert (done.returncode, json.loads(done.stdout)["wrong"]) == (3, 1)
        refused = pyscore("verify", "--repair", "--dsn", pair.standby)
        assert refused.returncode == 1
        assert "primary" in refused.stderr
        assert one(db, "select builder_score from users where username = 'cyd'") == 77


def test_metrics_are_those_of_the_primary(pair: Pair) -> None:
    def lines(address: str) -> list[str]:
        said = output(call("metrics", "--dsn", address)).splitlines()
        return [line for line in said if "_seconds" not in line]  # ages, and how long it took

    assert lines(pair.standby) == lines(pair.primary)
