"""A page costs the same wherever in the ranking it is: twenty rows from the index, in its order."""

from collections.abc import Callable, Iterator
from typing import Any, LiteralString, cast, get_args

import psycopg
import pytest
from psycopg import Connection
from sqlalchemy import BigInteger, Column, Double, Integer, String, Table, Uuid, select
from sqlalchemy.orm import aliased, registry

from pyscore import ScoreReader
from pyscore.cluster import PrivateCluster
from pyscore.orm import leaderboard
from pyscore.reading.binds import Statement, compiled
from tests.conftest import janitor
from tests.plans import PlanMode, Recording, planning, recorded
from tests.reading import create_users

pytestmark = pytest.mark.contrib  # auto_explain

PEOPLE = 20_000
PAGE = 20

IDS = {
    "uuid": "md5(i::text)::uuid",
    "bigint": "i",
    "varchar(26)": "upper(left(md5(i::text), 26))",
}
SCORES = {"integer": "hashint4(i) % 101", "double precision": "(hashint4(i) % 1001) / 10.0"}

Read = Callable[[ScoreReader], object]


@pytest.fixture(
    scope="module",
    params=[("uuid", "integer"), ("bigint", "double precision"), ("varchar(26)", "integer")],
    ids=lambda param: " and ".join(param),
)
def ranking(server: PrivateCluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """Many who share a score, and a sixth without one; usernames have an index."""
    key, score = request.param
    with janitor(server, "plans_of_readers") as address:
        with psycopg.connect(address, autocommit=True) as db:
            create_users(db, key=key, score=score)
            db.execute("alter table users set (autovacuum_enabled = false)")
            db.execute("create index on users (username)")
            fill = f"""
                insert into users (id, username, builder_score)
                select {IDS[key]}, 'user' || i, case when i % 6 > 0 then abs({SCORES[score]}) end
                from generate_series(1, {PEOPLE}) as i
            """
            db.execute(cast(LiteralString, fill))
        yield address


@pytest.fixture(scope="module", params=["none", "analyzed"])
def statistics(ranking: str, request: pytest.FixtureRequest) -> str:
    with psycopg.connect(ranking, autocommit=True) as db:
        if request.param == "analyzed":
            db.execute("analyze")
        else:
            db.execute("delete from pg_statistic where starelid = 'users'::regclass")
            db.execute("update pg_class set reltuples = -1 where oid = 'users'::regclass")
    return request.param


@pytest.fixture(params=get_args(PlanMode))
def db(ranking: str, statistics: str, request: pytest.FixtureRequest) -> Iterator[Connection[Any]]:
    with planning(ranking, request.param) as db:
        yield db


@pytest.fixture
def read(db: Connection[Any]) -> Callable[[Read], Recording]:
    """Records what a call of a reader's has the server do."""
    reader = ScoreReader(db)
    reader.leaderboard(1)  # learns the columns' types

    def recording(call: Read) -> Recording:
        with recorded(db) as statements:
            call(reader)
        assert len(statements) == 1
        assert statements.compiled == []
        return statements

    return recording


def behind(reader: ScoreReader, score: int) -> str:
    """The cursor of a page that ends among those who share a score, or a little below."""
    page = reader.leaderboard(1000)
    while page.next is not None:
        last = page.entries[-1].score
        assert last is not None
        if last <= score:
            return page.next
        page = reader.leaderboard(1000, after=page.next)
    raise AssertionError(f"nobody is behind {score}")


def pages(reader: ScoreReader) -> dict[str, Read]:
    deep = behind(reader, 60)
    deeper = behind(reader, 5)
    return {
        "first": lambda reader: reader.leaderboard(PAGE),
        "in the middle": lambda reader: reader.leaderboard(PAGE, after=deep),
        "near the end": lambda reader: reader.leaderboard(PAGE, after=deeper),
        "above": lambda reader: reader.above(40, PAGE),
        "above, in the middle": lambda reader: reader.above(40, PAGE, after=deep),
        "above, with nobody there": lambda reader: reader.above(100, PAGE),
    }


def test_every_page_costs_what_the_first_one_does(
    ranking: str, read: Callable[[Read], Recording]
) -> None:
    with psycopg.connect(ranking) as db:
        calls = pages(ScoreReader(db))
    first = read(calls["first"])
    for name, call in calls.items():
        look = read(call)
        assert look.indexes("users") == {"users_builder_score_id_idx"}, name
        assert look.rows <= PAGE + 1, name
        assert look.blocks <= 2 * first.blocks <= 3 * PAGE, name
        assert look.sorted_rows == 0, name


TYPES: dict[str, Any] = {
    **{"uuid": Uuid, "bigint": BigInteger, "varchar(26)": String(26)},
    **{"integer": Integer, "double precision": Double},
}


@pytest.fixture
def model(ranking: str, request: pytest.FixtureRequest) -> Any:
    """The users, mapped as an application does it."""
    key, score = request.node.callspec.params["ranking"]

    class User:
        pass

    mapping = registry()
    columns = Column("id", TYPES[key], primary_key=True), Column("builder_score", TYPES[score])
    mapping.map_imperatively(User, Table("users", mapping.metadata, *columns))
    return User


def test_a_page_of_the_orms_costs_what_the_readers_does(
    db: Connection[Any], model: Any, read: Callable[[Read], Recording]
) -> None:
    def ask(statement: Statement) -> Recording:
        query, values = compiled(statement)
        return read(lambda _: db.execute(query.encode(), values))

    deep = behind(ScoreReader(db), 60)
    first = read(lambda reader: reader.leaderboard(PAGE))
    for name, statement in {
        "first": leaderboard(model),
        "in the middle": leaderboard(model, after=deep),
        "above": leaderboard(model, above=40, after=deep),
        "in a subquery": select(leaderboard(model, after=deep).limit(PAGE).subquery()),
        "of an alias": leaderboard(aliased(model), after=deep),
    }.items():
        look = ask(statement.limit(PAGE))
        assert look.indexes("users") == {"users_builder_score_id_idx"}, name
        assert look.rows <= PAGE, name
        assert look.blocks <= 2 * first.blocks, name
        assert look.sorted_rows == 0, name


ASKED: dict[str, tuple[Callable[[ScoreReader, list[Any]], object], str, int]] = {
    "score": (lambda reader, ids: reader.score(ids[0]), "users_pkey", 1),
    "scores": (lambda reader, ids: reader.scores(ids), "users_pkey", 100),
    "by_username": (lambda reader, _: reader.by_username("user17"), "users_username_idx", 1),
}
"""Calls, the index that they go by, and how many people they look at."""


@pytest.mark.parametrize("asked", ASKED)
def test_whoever_is_asked_for_is_probed_for(
    ranking: str, read: Callable[[Read], Recording], asked: str
) -> None:
    call, index, people = ASKED[asked]
    with psycopg.connect(ranking) as db:
        ids = [row[0] for row in db.execute("select id from users order by username limit 100")]
    look = read(lambda reader: call(reader, ids))
    assert look.indexes("users") == {index}
    assert look.rows <= people
    assert look.blocks <= 4 * people
