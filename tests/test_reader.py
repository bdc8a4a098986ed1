"""ScoreReader: its answers, over everything that it may be given."""

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pyscore import BadArgumentError, PyscoreError, ScoreReader, UserScore
from pyscore.cluster import PrivateCluster
from pyscore.reading.binds import Bind
from tests.community import add_project
from tests.community import score as stored
from tests.conftest import janitor
from tests.reading import (
    BAD_ARGUMENTS,
    BINDS,
    CALLERS,
    NOBODY,
    Community,
    bind_for,
    counted,
    engine_for,
    execute,
    ids,
    settle,
)


@pytest.fixture(params=BINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def people(server: PrivateCluster, template: str) -> Iterator[Community]:
    """For tests that commit nothing: one database for all of them."""
    with janitor(server, "reader", template=template) as address:
        yield settle(address)


@pytest.fixture
def own(database: str) -> Community:
    """For tests that commit."""
    return settle(database)


@pytest.fixture
def bind(kind: str, people: Community) -> Iterator[Bind]:
    with bind_for(kind, people.address) as bind:
        yield bind


def test_a_score(bind: Bind, people: Community) -> None:
    reader = ScoreReader(bind)
    assert reader.score(people.ann) == 10
    assert reader.score(str(people.ann)) == 10
    assert isinstance(reader.score(people.ann), int)
    assert reader.score(people.dee) is None
    assert reader.score(NOBODY) is None


def test_scores_come_by_the_ids_as_given(bind: Bind, people: Community) -> None:
    ann, bob, dee = people.ann, people.bob, people.dee
    asked = [str(ann), NOBODY, dee, bob, ann, bob]
    assert ScoreReader(bind).scores(iter(asked)) == {str(ann): 10, dee: None, bob: 3, ann: 10}


def test_scores_of_any_number_are_one_query(
    bind: Bind, people: Community, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ScoreReader(bind)
    reader.score(NOBODY)  # what it has to learn, it has learned
    with counted(bind, monkeypatch) as statements:
        assert reader.scores([]) == {}
        assert statements == []
        many = [people.ann, people.bob, people.dee, *(uuid4() for _ in range(30_000))]
        assert reader.scores(many) == {people.ann: 10, people.bob: 3, people.dee: None}
        assert len(statements) == 1, statements


def test_what_was_learned_serves_the_next_reader(
    bind: Bind, people: Community, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counted(bind, monkeypatch) as statements:
        for _ in range(3):
            assert ScoreReader(bind).score(people.ann) == 10
    assert len(statements) == 4, statements


def test_a_user_is_found_by_name(bind: Bind, people: Community) -> None:
    reader = ScoreReader(bind)
    assert reader.by_username("ann") == UserScore(people.ann, "ann", 10)
    assert reader.by_username("dee") == UserScore(people.dee, "dee", None)
    for nobody in ("Ann", "ann ", "", "an\0n", "\ud800", "100%", "it's", "%(x)s"):
        assert reader.by_username(nobody) is None
    with pytest.raises(BadArgumentError, match="17 is not a username"):
        reader.by_username(17)  # type: ignore[arg-type]


def test_the_leaderboard_is_read_page_by_page(bind: Bind, people: Community) -> None:
    reader = ScoreReader(bind)
    tied = sorted((people.bob, people.cyd), reverse=True)
    first = reader.leaderboard(2)
    assert ids(first) == [people.ann, tied[0]]
    assert first.entries[0] == UserScore(people.ann, "ann", 10)
    assert first.next is not None
    second = reader.leaderboard(2, after=first.next)
    assert (ids(second), second.next) == ([tied[1]], None)
    # nobody is behind a page that is exactly full
    assert reader.leaderboard(3).next is None
    assert len(reader.leaderboard()) == 3


def test_above_is_strictly_above(bind: Bind, people: Community) -> None:
    reader = ScoreReader(bind)
    assert ids(reader.above(3)) == [people.ann]
    assert len(reader.above(2.9)) == 3
    assert len(reader.above(3.5)) == 1
    assert len(reader.above(-1)) == 3
    assert (len(reader.above(10)), reader.above(10).next) == (0, None)
    assert len(reader.above(10**30)) == 0
    first = reader.above(2, 1)
    assert first.next
    assert len(reader.above(2, after=first.next)) == 2


def test_rank_percentile_and_distribution(bind: Bind, people: Community) -> None:
    reader = ScoreReader(bind)
    assert [reader.rank(user) for user in (people.ann, str(people.bob), people.cyd)] == [1, 2, 2]
    assert [reader.percentile(user) for user in (people.ann, people.bob)] == [100, 0]
    assert (reader.rank(people.dee), reader.percentile(people.dee)) == (None, None)
    assert isinstance(reader.rank(people.ann), int)
    assert isinstance(reader.percentile(people.ann), float)
    assert list(reader.distribution().items()) == [(10, 1), (3, 2)]
    assert all(isinstance(score, int) for score in reader.distribution())


@pytest.mark.parametrize("kind", [k for k in BINDS if k not in ("engine", "psycopg autocommit")])
def test_an_explanation(bind: Bind, people: Community) -> None:
    execute(
        bind,
        "insert into projects (owner_id, title, status, impact_metrics)"
        f" values ('{people.ann}', 'p', 'shipped', '{{\"users\": \"2.5\"}}')",
    )
    said = ScoreReader(bind).explain(str(people.ann))
    assert (said.user_id, said.username, said.score) == (people.ann, "ann", 10)
    assert [(s.name, s.raw, s.max_points) for s in said.signals] == [
        ("shipped", 2, 30),
        ("vouches", 0, 25),
        ("impact", 2.5, 20),
        ("profile", 0, 15),
        ("age", 0, 10),
    ]
    assert isinstance(said.signals[0].raw, int)
    rows = execute(bind, f"select points from builder_score.explain('{people.ann}')")
    assert [(s.points,) for s in said.signals] == rows
    assert ScoreReader(bind).explain(people.dee).score is None


def test_recompute_returns_and_writes_the_score(kind: str, own: Community) -> None:
    with bind_for(kind, own.address) as bind, psycopg.connect(own.address, autocommit=True) as db:
        add_project(db, own.bob, status="shipped")
        assert ScoreReader(bind).recompute(own.bob) == 13
        assert execute(bind, "select builder_score from users where username = 'bob'") == [(13,)]
        # it is the caller's to commit
        assert stored(db, own.bob) == (3 if kind in CALLERS else 13)
        if kind in CALLERS:
            execute(bind, "rollback")
            assert stored(db, own.bob) == 3


@pytest.mark.parametrize("default", ["SERIALIZABLE", "AUTOCOMMIT", "READ COMMITTED"])
def test_an_engine_commits_what_it_recomputes(own: Community, default: str) -> None:
    with engine_for(own.address, pool_size=1, max_overflow=0, isolation_level=default) as engine:
        execute(engine, f"update users set bio = null where id = '{own.bob}'")
        before = execute(engine, "show transaction_isolation")
        assert ScoreReader(engine).recompute(own.bob) == 0
        assert execute(engine, "show transaction_isolation") == before
    with psycopg.connect(own.address) as db:
        assert stored(db, own.bob) == 0


@pytest.mark.parametrize("kind", CALLERS)
def test_bad_arguments_leave_the_transaction_as_it_was(bind: Bind, people: Community) -> None:
    reader = ScoreReader(bind)
    execute(bind, "update users set headline = 'in between' where username = 'ann'")
    execute(bind, "set local application_name = 'mine'")
    for error, message, method, arguments in BAD_ARGUMENTS:
        with pytest.raises(error, match=message):
            getattr(reader, method)(*arguments)
        assert execute(bind, "select headline from users where username = 'ann'") == [
            ("in between",)
        ], method
    assert execute(bind, "show application_name") == [("mine",)]
    execute(bind, "rollback")
    assert reader.score(people.ann) == 10
    assert execute(bind, "select headline from users where username = 'ann'") == [(None,)]


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
@pytest.mark.parametrize("kind", ["connection", "psycopg"])
def test_recompute_refuses_an_old_snapshot_and_breaks_nothing(
    bind: Bind, people: Community, level: str
) -> None:
    execute(bind, "rollback")
    execute(bind, f"set transaction isolation level {level}")
    reader = ScoreReader(bind)
    with pytest.raises(PyscoreError, match=f"isolation level {level}.*enqueue\\('{people.ann}', 0"):
        reader.recompute(people.ann)
    assert reader.score(people.ann) == 10
    assert execute(bind, "show transaction_isolation") == [(level,)]


@pytest.mark.parametrize("kind", CALLERS)
def test_a_read_only_transaction_can_be_read_in(bind: Bind, people: Community) -> None:
    execute(bind, "set transaction read only")
    reader = ScoreReader(bind)
    assert reader.score(people.ann) == 10
    assert reader.scores([people.bob]) == {people.bob: 3}
    assert len(reader.leaderboard()) == 3
    assert reader.explain(people.ann).points == 10
    with pytest.raises(PyscoreError, match="read only"):
        reader.recompute(people.ann)
    assert reader.by_username("ann") is not None
    assert execute(bind, "show transaction_read_only") == [("on",)]


@pytest.mark.parametrize("kind", CALLERS)
def test_a_callers_transaction_sees_its_own_rows(bind: Bind, people: Community) -> None:
    execute(bind, "insert into users (email, username, builder_score) values ('e', 'eve', 99)")
    assert ids(ScoreReader(bind).above(50)) == [
        user_id for (user_id,) in execute(bind, "select id from users where username = 'eve'")
    ]


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    username: Mapped[str]
    email: Mapped[str]
    builder_score: Mapped[int | None]


def test_a_session_is_flushed_first_unless_told_not_to(people: Community) -> None:
    with engine_for(people.address) as engine, Session(engine) as session:
        session.add(User(id=NOBODY, username="zoe", email="z", builder_score=5))
        with session.no_autoflush:
            assert ScoreReader(session).score(NOBODY) is None
        assert ScoreReader(session).score(NOBODY) == 5


def test_a_session_that_is_bound_by_class_needs_the_class(people: Community) -> None:
    with engine_for(people.address) as engine, Session(binds={User: engine}) as session:
        with pytest.raises(BadArgumentError, match="users=User"):
            ScoreReader(session).leaderboard()
        assert len(ScoreReader(session, users=User).leaderboard()) == 3


def test_results_are_frozen(people: Community) -> None:
    with engine_for(people.address) as engine:
        reader = ScoreReader(engine)
        page, said = reader.leaderboard(), reader.explain(people.ann)
    for result in (page, page.entries[0], said, said.signals[0]):
        for field in dataclasses.fields(result):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(result, field.name, None)
    assert len({page, page}) == 1


@pytest.mark.parametrize(
    "bind", [None, "postgresql://", create_engine("sqlite://"), psycopg.AsyncConnection]
)
def test_other_binds_are_refused(bind: Any) -> None:
    with pytest.raises(BadArgumentError, match="takes a SQLAlchemy Engine, Connection or Session"):
        ScoreReader(bind)


def test_importing_the_package_loads_no_driver() -> None:
    script = """
import sys
import pyscore
assert not {"sqlalchemy", "psycopg"} & set(sys.modules)
from pyscore import ScoreReader
assert "sqlalchemy" in sys.modules and "alembic" not in sys.modules and ScoreReader.__doc__
"""
    subprocess.run([sys.executable, "-c", script], check=True)
