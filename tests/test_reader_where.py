"""where=: conditions on the host's users, in every form that SQLAlchemy has for them."""

import enum
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Dialect,
    Enum,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    and_,
    bindparam,
    column,
    exists,
    false,
    func,
    literal,
    literal_column,
    or_,
    select,
    table,
    text,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column, relationship

from pyscore import BadArgumentError, PyscoreError, ScoreReader
from pyscore.cluster import PrivateCluster
from pyscore.reading.binds import Bind
from pyscore.reading.conditions import Condition
from tests.conftest import janitor
from tests.reading import BINDS, bind_for, create_users, engine_for, ids
from tests.statements import run


class Mood(enum.Enum):
    GOOD = "fine"
    BAD = "grim"


class Reversed(TypeDecorator[str]):
    """A type whose values are not what they look like."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else value[::-1]


class Flag(TypeDecorator[bool]):
    """A boolean in disguise."""

    impl = Boolean
    cache_ok = True


class Base(DeclarativeBase):
    pass


class User(Base):
    """In a schema, under other names, and without most of the columns."""

    __tablename__ = "users"
    __table_args__ = {"schema": "app"}  # noqa: RUF012
    pk: Mapped[int] = mapped_column("id", primary_key=True)
    gone_at: Mapped[datetime | None] = mapped_column("deleted_at")
    mood: Mapped[Mood] = mapped_column(Enum(Mood, name="mood", schema="app"))
    code: Mapped[str] = mapped_column("secret", Reversed)
    tags: Mapped[list[str]] = mapped_column(ARRAY(Text))
    data: Mapped[dict[str, Any]] = mapped_column("more %(data)s", JSONB)
    bans: Mapped[list["Ban"]] = relationship(back_populates="user")


class Ban(Base):
    __tablename__ = "bans"
    __table_args__ = {"schema": "app"}  # noqa: RUF012
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("app.users.id"))
    user: Mapped[User] = relationship(back_populates="bans")


USERS = Table(
    "users",
    MetaData(schema="app"),
    Column("id", Integer, primary_key=True),
    Column("banned", Boolean),
    Column("builder_score", Integer),
    Column("more %(data)s", JSON),
)
LIGHT = table("users", column("id"), column("banned", Boolean), schema="app")
BANS = Base.metadata.tables["app.bans"]
OTHER = aliased(User)
SOMEONE = UUID(int=7)  # in auth.users, alone

# Users 1 to 6, with scores 10 to 60; 2 is deleted, 3 is banned, 4 has a row in bans.
SHOWN: dict[str, tuple[Condition, list[int]]] = {
    "mapped": (User.gone_at.is_(None), [6, 5, 4, 3, 1]),
    "mapped, negated": (~User.gone_at.is_(None), [2]),
    "a bound datetime": (User.gone_at < datetime(2025, 1, 1, tzinfo=UTC), [2]),
    "table": (USERS.c.banned.is_not(True), [6, 5, 4, 2, 1]),
    "table, equality": (USERS.c.banned == False, [6, 5, 4, 2, 1]),  # noqa: E712
    "table, column alone": (USERS.c.banned, [3]),
    "light table": (LIGHT.c.banned.is_(False), [6, 5, 4, 2, 1]),
    "text": (text("banned is not true"), [6, 5, 4, 2, 1]),
    "text, qualified": (text("users.banned is not true"), [6, 5, 4, 2, 1]),
    "text, bound": (text("id > :low and name_of like '%5'").bindparams(low=3), [5]),
    "text, or": (text("id = 1 or id > 4"), [6, 5, 1]),
    "text, commented": (text("id > 4 -- and not the old ones"), [6, 5]),
    "literal, or": (literal_column("id = 1 or id > 4"), [6, 5, 1]),
    "literal, typed": (cast(Any, literal_column("name_of ~ '[56]$'", Text)), [6, 5]),
    "text, no table at all": (text("true"), [6, 5, 4, 3, 2, 1]),
    "bare columns": (column("id") > 3, [6, 5, 4]),
    "bare column alone": (column("banned"), [3]),
    "decorated column alone": (column("banned", Flag()), [3]),
    "an operator of one's own": (column("name_of", Text).op("~")("[56]$"), [6, 5]),
    "several": (and_(User.gone_at.is_(None), User.pk < 4, text("not banned")), [1]),
    "several objects": (and_(User.pk < 4, or_(User.pk == 1, User.gone_at.is_not(None))), [2, 1]),
    "in": (User.pk.in_([2, 4, 99]), [4, 2]),
    "in nothing": (User.pk.in_([]), []),
    "in, expanding": (User.pk.in_(bindparam("some", [1, 3], expanding=True)), [3, 1]),
    "not in": (User.pk.not_in([2, 4]), [6, 5, 3, 1]),
    "in pairs": (tuple_(User.pk, User.mood).in_([(1, Mood.BAD), (2, Mood.BAD)]), [1]),
    "enum": (User.mood == Mood.BAD, [5, 3, 1]),
    "enums": (User.mood.in_([Mood.BAD]), [5, 3, 1]),
    "decorated": (User.code == "cba2", [2]),
    "decorated, several": (User.code.in_(["cba2", "cba5"]), [5, 2]),
    "decorated, odd name": (
        User.code == bindparam("a %(b)s: c", "cba2", type_=Reversed()),
        [2],
    ),
    "array": (User.tags.contains(["even"]), [6, 4, 2]),
    "array, any": (User.tags.any_() == "even", [6, 4, 2]),
    "json": (User.data.contains({"n": 3}), [3]),
    "json, odd name": (USERS.c["more %(data)s"]["n"].as_integer() == 3, [3]),
    "percent": (text("name_of like 'user%'"), [6, 5, 4, 3, 2, 1]),
    "its own score": (USERS.c.builder_score > 40, [6, 5]),
    "exists": (exists().where(Ban.user_id == User.pk), [4]),
    "not exists": (~exists(select(Ban).where(Ban.user_id == User.pk)), [6, 5, 3, 2, 1]),
    "exists, table": (exists(select(literal(1)).where(BANS.c.user_id == USERS.c.id)), [4]),
    "relationship": (~User.bans.any(), [6, 5, 3, 2, 1]),
    "relationship, more": (User.bans.any(Ban.id > 0), [4]),
    "not in subquery": (User.pk.not_in(select(Ban.user_id)), [6, 5, 3, 2, 1]),
    "subquery of users": (User.pk.in_(select(OTHER.pk).where(OTHER.pk > 4)), [6, 5]),
    "same in subquery": (User.pk.in_(select(User.pk).where(User.pk > 4)), [6, 5]),
    "count": (
        select(func.count()).where(Ban.user_id == User.pk).scalar_subquery() == 0,
        [6, 5, 3, 2, 1],
    ),
    "exists and mapped": (and_(~User.bans.any(), User.gone_at.is_(None)), [6, 5, 3, 1]),
    "alias": (OTHER.gone_at.is_(None), [6, 5, 4, 3, 1]),
    "alias, relationship": (and_(~OTHER.bans.any(), OTHER.pk > 3), [6, 5]),
}


@pytest.fixture(scope="module")
def address(server: PrivateCluster) -> Iterator[str]:
    """Users in schema app, which the search_path finds; others of that name in two more schemas."""
    with janitor(server, "reader_where") as address:
        with psycopg.connect(address, autocommit=True) as db:
            run(db, "create schema app; create type app.mood as enum ('GOOD', 'BAD')")
            create_users(
                db,
                schema="app",
                key="integer",
                more="""deleted_at timestamptz, mood app.mood not null, secret text, tags text[],
                        "more %(data)s" jsonb, banned boolean, name_of text""",
            )
            run(
                db,
                """
                insert into app.users
                select n, 'user' || n, n * 10, case when n = 2 then '2024-05-05'::timestamptz end,
                       (case when n % 2 = 1 then 'BAD' else 'GOOD' end)::app.mood, n || 'abc',
                       case when n % 2 = 0 then array['even'] else '{}' end,
                       jsonb_build_object('n', n), n = 3, 'user' || n
                from generate_series(1, 6) as n;
                create table app.bans (id serial primary key, user_id integer);
                insert into app.bans (user_id) values (4);
                """,
            )
            someone = [(SOMEONE, "someone", 50, False)]
            create_users(db, someone, schema="auth", key="uuid", more="banned boolean")
            run(db, f"alter database {db.info.dbname} set search_path = app, public")
        yield address


@pytest.fixture(params=["engine", "session", "psycopg"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def bind(kind: str, address: str) -> Iterator[Bind]:
    with bind_for(kind, address) as bind:
        yield bind


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("engine", {"users": USERS}),
        ("session", {"users": User}),
        ("psycopg", {}),
        ("psycopg", {"schema": "app"}),
    ],
)
def test_a_condition_means_what_it_says(bind: Bind, named: dict[str, Any]) -> None:
    reader = ScoreReader(bind, **named)
    for name, (condition, expected) in SHOWN.items():
        assert ids(reader.leaderboard(100, where=condition)) == expected, name
        # paging and a threshold beside it
        first = reader.above(5, 1, where=condition)
        assert ids(first) == expected[:1], name
        if len(expected) > 1:
            assert ids(reader.above(20, 9, after=first.next, where=condition)) == [
                user_id for user_id in expected[1:] if user_id > 2
            ], name
        else:
            assert first.next is None, name


REFUSED: dict[str, tuple[Any, str]] = {
    "another table": (Ban.id > 3, r"about app\.bans, not about app\.users; .*exists\(select"),
    "a table beside": (
        and_(User.gone_at.is_(None), Ban.user_id == User.pk),
        r"needs app\.bans in FROM beside the users; .*exists\(select",
    ),
    "two objects for users": (and_(User.pk > 1, USERS.c.banned), "in FROM beside the users"),
    "another schema's users": (
        table("users", column("banned"), schema="auth").c.banned,
        r"about auth\.users, not about app\.users",
    ),
    "a missing table": (table("nobody", column("x")).c.x == 1, "about nobody"),
    "a subquery's column": (select(User).subquery().c.id == 1, "not about app.users"),
    "false": (
        False,  # what `User.gone_at is None` is
        "False is not one",
    ),
    "true": (True, "True is not one"),
    "a string": ("banned", "'banned' is not one"),
    "a class": (User, "where= takes"),
    "a select": (select(User), "where= takes"),
    "a number": (1, "where= takes"),
    "a column of text": (column("name_of", Text), "name_of is a column of type TEXT"),
    "a mapped column of numbers": (User.pk, r"users\.id is a column of type INTEGER"),
    "a list": ([User.pk > 1], "where= takes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_condition_on_users_is_refused(bind: Bind, case: str) -> None:
    condition, message = REFUSED[case]
    reader = ScoreReader(bind)
    with pytest.raises(BadArgumentError, match=message):
        reader.leaderboard(where=condition)
    assert len(reader.leaderboard()) == 6  # in the same transaction


def test_raw_text_cannot_end_the_query(kind: str, address: str) -> None:
    expected = psycopg.Error if kind == "psycopg" else DBAPIError
    with bind_for(kind, address) as bind, pytest.raises(expected, match="syntax error"):
        ScoreReader(bind).leaderboard(where=text("true order by 1 --"))


# With auth.users as the users: none of these can be about them.
ABOUT_OTHERS: dict[str, Any] = {
    "relationship": ~User.bans.any(),
    "exists": exists().where(Ban.user_id == User.pk),
    "exists, table": exists(select(literal(1)).where(BANS.c.user_id == USERS.c.id)),
    "alias": ~OTHER.bans.any(),
    "count": select(func.count()).where(Ban.user_id == User.pk).scalar_subquery() == 0,
    "beside text": and_(text("not banned"), ~User.bans.any()),
    "in a union": exists(
        select(Ban.id).where(Ban.user_id == User.pk).union(select(literal(1)).where(false()))
    ),
}


@pytest.mark.parametrize("case", ABOUT_OTHERS)
def test_a_subquery_that_only_another_schemas_users_could_fill_is_refused(
    bind: Bind, case: str
) -> None:
    message = r"about app\.users, not about auth\.users; .*the users that are meant: users=User"
    reader = ScoreReader(bind, schema="auth")
    with pytest.raises(BadArgumentError, match=message):
        reader.leaderboard(where=ABOUT_OTHERS[case])
    assert len(reader.leaderboard()) == 1


def test_a_subquery_about_another_schemas_users_is_left_alone(bind: Bind) -> None:
    others = table("users", column("banned"), schema="auth")
    anybody = exists(select(literal(1)).select_from(others))
    assert len(ScoreReader(bind).leaderboard(where=anybody)) == 6
    assert ids(ScoreReader(bind).leaderboard(where=~anybody)) == []
    joined = exists(select(Ban).join(Ban.user).where(User.pk == 4))
    assert len(ScoreReader(bind, schema="auth").leaderboard(where=joined)) == 1
    # beside the users of this ranking they are what the subquery says they are
    linked = (Ban.user_id < 0) == others.c.banned
    both = User.pk.in_(select(Ban.user_id).where(linked))
    assert ids(ScoreReader(bind).leaderboard(where=both)) == [4]


def test_users_may_be_a_class_a_table_or_named_by_schema(bind: Bind) -> None:
    for users in (User, USERS, LIGHT):
        assert ScoreReader(bind, users=users).score(6) == 60
    assert ScoreReader(bind, schema="app").score(6) == 60
    plain = Table("users", MetaData(), Column("id", Integer, primary_key=True))
    reader = ScoreReader(bind, users=plain, schema="app")
    assert reader.score(6) == 60
    assert ids(reader.leaderboard(where=plain.c.id > 5)) == [6]
    assert ids(ScoreReader(bind, schema="auth").leaderboard()) == [SOMEONE]
    with pytest.raises(BadArgumentError, match=r"about users, not about auth\.users"):
        ScoreReader(bind, schema="auth").leaderboard(where=text("true") & (plain.c.id > 5))
    with pytest.raises(BadArgumentError, match="users= is in schema app, and schema= says auth"):
        ScoreReader(bind, users=User, schema="auth")
    for wrong in ("users", User(), select(User), dict, OTHER):
        with pytest.raises(BadArgumentError, match="expected a SQLAlchemy Table, or a class"):
            ScoreReader(bind, users=wrong)  # type: ignore[arg-type]


def test_a_translated_schema_is_followed(address: str) -> None:
    tenant = Table("users", MetaData(schema="tenant"), Column("id", Integer, primary_key=True))
    options = {"schema_translate_map": {"tenant": "app"}}
    with engine_for(address, execution_options=options) as engine:
        reader = ScoreReader(engine, users=tenant)
        assert reader.score(6) == 60
        assert ids(reader.leaderboard(where=tenant.c.id > 5)) == [6]


@pytest.mark.parametrize("kind", BINDS)
def test_where_no_users_are_found_it_says_where_it_looked(address: str, kind: str) -> None:
    with bind_for(kind, address) as bind:
        with pytest.raises(PyscoreError, match="no table users in schema nowhere"):
            ScoreReader(bind, schema="nowhere").score(1)
        assert ScoreReader(bind).score(1) == 10
