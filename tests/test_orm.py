"""leaderboard() as a Select: the reader's pages, from the application's own statements."""

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, assert_type, cast
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import Connection
from sqlalchemy import (
    CHAR,
    REAL,
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Double,
    Engine,
    Enum,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    Select,
    SmallInteger,
    String,
    Table,
    Text,
    TypeDecorator,
    Uuid,
    column,
    func,
    select,
    table,
)
from sqlalchemy.dialects.postgresql import CITEXT, DOMAIN
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    column_property,
    joinedload,
    mapped_column,
    registry,
    relationship,
)
from sqlalchemy.types import TypeEngine

from pyscore import BadArgumentError, ScoreReader
from pyscore.models import BuilderScoreMixin
from pyscore.orm import cursor_of, leaderboard
from pyscore.reading import cursors
from pyscore.reading.binds import compiled
from pyscore.reading.types import IdType, ScoreType
from tests.reading import create_users, engine_for, ids
from tests.statements import run
from tests.test_reader_pages import KEYS, SCORES, people

AnyType = TypeEngine[Any] | type[TypeEngine[Any]]

KEY_TYPES: dict[str, AnyType] = {
    "bigint": BigInteger,
    "uuid": Uuid,
    "text": Text,
    "varchar(26)": String(26),
    'text collate "und-x-icu"': String(collation="und-x-icu"),
}
SCORE_TYPES: dict[str, AnyType] = {
    "integer": Integer,
    "smallint": SmallInteger,
    "bigint": BigInteger,
    "double precision": Double,
    "real": REAL,
    "numeric": Numeric,
}


def mapped(key: AnyType, score: AnyType) -> Any:
    """A class of users whose columns are declared so."""

    class User:
        pass

    mapping = registry()
    columns = Column("id", key, primary_key=True), Column("builder_score", score)
    table = Table("users", mapping.metadata, *columns, Column("banned", Boolean))
    mapping.map_imperatively(User, table)
    return User


@pytest.fixture
def db(bare: Connection[Any]) -> Connection[Any]:
    """Without us: reading needs nothing of ours."""
    return bare


@pytest.fixture
def engine(bare_database: str) -> Iterator[Engine]:
    with engine_for(bare_database, isolation_level="AUTOCOMMIT") as engine:
        yield engine


@pytest.mark.parametrize(
    ("key", "score"),
    [(key, "integer") for key in KEYS] + [("bigint", score) for score in SCORES],
)
def test_its_pages_are_the_readers_and_so_are_its_cursors(
    db: Connection[Any], engine: Engine, key: str, score: str
) -> None:
    create_users(db, key=key, score=score, more="banned boolean")
    reader = ScoreReader(engine)
    model = mapped(KEY_TYPES[key], SCORE_TYPES[score])

    @settings(max_examples=15, deadline=None)
    @given(
        rows=people(key, score),
        limit=st.integers(1, 7),
        above=st.sampled_from([None, *(s for s in SCORES[score] if isinstance(s, int))]),
    )
    def check(rows: list[tuple[str, Any, bool]], limit: int, above: int | None) -> None:
        db.execute("delete from users")
        with db.cursor() as cursor:
            cursor.executemany("insert into users values (%s, null, %s, %s)", rows)
        after = own = None
        with Session(engine) as session:
            while True:
                shown = model.banned.is_(False)
                if above is None:
                    page = reader.leaderboard(limit, after, shown)
                else:
                    page = reader.above(above, limit, after, shown)
                # behind the reader's cursor and behind its own
                for cursor_ in (after, own):
                    ranking = leaderboard(model, after=cursor_, above=above).where(shown)
                    users = session.scalars(ranking.limit(limit)).all()
                    assert [user.id for user in users] == ids(page)
                if not users:
                    return
                own = cursor_of(users[-1])
                assert page.next in (None, own) or score == "numeric"
                # the reader goes on from it, too
                after = own if page.next is None else page.next
                if page.next is not None:
                    following = [
                        ids(reader.leaderboard(limit, cursor_)) for cursor_ in (own, after)
                    ]
                    assert following[0] == following[1]

    check()


# An application's own statements


class Base(DeclarativeBase):
    pass


class User(BuilderScoreMixin, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    username: Mapped[str]
    banned: Mapped[bool] = mapped_column(default=False)
    kind: Mapped[str] = mapped_column(default="user")
    posts: Mapped[list["Post"]] = relationship(back_populates="author")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "user"}  # noqa: RUF012


class Moderator(User):
    """In a table of their own, whose id has the same name."""

    __tablename__ = "moderators"
    id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True)
    since: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "moderator"}  # noqa: RUF012


class Guest(User):
    """In the same table."""

    __mapper_args__ = {"polymorphic_identity": "guest"}  # noqa: RUF012


class Post(Base):
    __tablename__ = "posts"
    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    author: Mapped[User] = relationship(back_populates="posts")


class Renamed(DeclarativeBase):
    pass


class Person(Renamed):
    """The same table, by other words."""

    __tablename__ = "users"
    number: Mapped[int] = mapped_column("id", primary_key=True)
    reputation: Mapped[int | None] = mapped_column("builder_score")
    # not what their names say
    id: Mapped[str] = mapped_column("username")
    builder_score: Mapped[bool] = mapped_column("banned")


USERS = Base.metadata.tables["users"]
PEOPLE = [  # the best first
    *((6, "zoe", 60), (5, "yan", 50), (4, "xia", 50), (3, "wim", 50), (2, "ada", 10), (1, "bob", 0))
]
NAMES = [name for _, name, _ in PEOPLE]


@pytest.fixture
def session(db: Connection[Any], engine: Engine) -> Iterator[Session]:
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        for user_id, name, score in PEOPLE:
            user = Guest if name == "wim" else User
            session.add(user(id=user_id, username=name, builder_score=score))
        session.add(Moderator(id=7, username="mod", builder_score=50, since=2020))
        session.add(Moderator(id=8, username="new", builder_score=None, since=2021))
        session.add_all([Post(author_id=4), Post(author_id=4), Post(author_id=1)])
        session.flush()
        # the ORM leaves NULL to the server's default
        run(db, "update users set builder_score = null where username = 'new'")
        session.commit()
        session.expunge_all()
        yield session


def names(session: Session, ranking: Select[Any]) -> list[str]:
    return [user.username for user in session.scalars(ranking).unique()]


EVERYONE = ["zoe", "mod", *NAMES[1:]]


def test_it_is_typed() -> None:
    assert_type(leaderboard(User), Select[User])
    assert_type(leaderboard(aliased(User), after=None, above=Decimal(1)), Select[User])
    assert_type(leaderboard(User).with_only_columns(User.username), Select[str])


def test_it_goes_on_like_any_other_select(session: Session) -> None:
    assert names(session, leaderboard(User)) == EVERYONE
    assert names(session, leaderboard(User).limit(2).offset(1)) == EVERYONE[1:3]
    assert names(session, leaderboard(User).where(User.username != "zoe")) == EVERYONE[1:]
    with_posts = leaderboard(User).join(User.posts)
    assert names(session, with_posts) == ["xia", "bob"]
    assert names(session, leaderboard(User, above=10).join(Post)) == ["xia"]
    counted = (
        leaderboard(User, above=49.5)
        .outerjoin(Post)
        .group_by(User.id)
        .with_only_columns(User.username, func.count(Post.id))
    )
    assert [tuple(row) for row in session.execute(counted)] == [
        *(("zoe", 0), ("mod", 0), ("yan", 0), ("xia", 2), ("wim", 0))
    ]
    loaded = session.scalars(leaderboard(User).options(joinedload(User.posts)).limit(4)).unique()
    assert [len(user.__dict__["posts"]) for user in loaded] == [0, 0, 0, 2]
    ranked = leaderboard(User).add_columns(func.rank().over(order_by=User.builder_score.desc()))
    assert [row[1] for row in session.execute(ranked)] == [1, 2, 2, 2, 2, 6, 7]


def test_it_can_be_part_of_another_select(session: Session) -> None:
    best = leaderboard(User, above=10).limit(3)
    of_best = select(Post).join(aliased(User, best.subquery()))
    assert session.scalars(of_best).all() == []
    in_cte = best.limit(4).cte("best")
    assert session.scalars(select(Post.id).join(in_cte).order_by(Post.id)).all() == [1, 2]
    author_ids = leaderboard(User).with_only_columns(User.id)
    assert len(session.scalars(select(Post).where(Post.author_id.in_(author_ids))).all()) == 3


def cursor_behind(session: Session, name: str) -> str:
    return cursor_of(session.scalars(select(User).where(User.username == name)).one())


def test_another_table_of_users_ranks_as_the_class_does(session: Session) -> None:
    """Aliases, tables and subqueries have their columns under the same names."""
    after = cursor_behind(session, "yan")
    other = aliased(User)
    below = leaderboard(other, after=after, above=9).where(other.banned.is_(False))
    assert names(session, below) == ["xia", "wim", "ada"]
    for source in (USERS, USERS.alias("u"), select(User).where(User.id < 5).subquery()):
        rows = session.execute(leaderboard(source, after=after, above=9)).all()
        assert [row.username for row in rows] == ["xia", "wim", "ada"]
        assert cursor_of(rows[0], source) == cursor_behind(session, "xia")


def test_attributes_may_have_any_name(session: Session) -> None:
    page = session.scalars(leaderboard(Person, above=9).limit(3)).all()
    assert [person.id for person in page] == EVERYONE[:3]
    rest = session.scalars(leaderboard(Person, after=cursor_of(page[-1]), above=9)).all()
    assert [person.id for person in rest] == EVERYONE[3:6]
    row = session.execute(
        leaderboard(Person).with_only_columns(Person.number, Person.reputation).limit(3)
    ).all()[-1]
    assert cursor_of(row, Person) == cursor_of(page[-1])
    keyed = Table(
        *("users", MetaData()),
        Column("id", Integer, key="number"),
        Column("builder_score", Integer, key="reputation"),
        Column("username", Text, key="id"),
    )
    rows = session.execute(leaderboard(keyed, after=cursor_of(page[-1]), above=9)).all()
    assert [row.username for row in rows] == EVERYONE[3:6]
    assert cursor_of(rows[-1], keyed) == cursor_behind(session, "ada")


@pytest.mark.parametrize("flat", [False, True])
def test_classes_that_inherit(db: Connection[Any], session: Session, flat: bool) -> None:
    session.add(Moderator(id=0, username="old", builder_score=50, since=1999))
    session.flush()
    assert names(session, leaderboard(Guest)) == ["wim"]
    for model in (Moderator, aliased(Moderator, flat=flat)):
        ranking = leaderboard(model).where(model.since > 0)
        first, *rest = session.scalars(ranking)
        assert (first.username, [user.username for user in rest]) == ("mod", ["old"])
        behind = leaderboard(model, after=cursor_of(first), above=7)
        assert session.scalars(behind).all() == rest
        # its columns are those of the index, not the child's id
        query, values = compiled(behind.limit(1))
        run(db, "set enable_seqscan = off; set enable_sort = off; set enable_bitmapscan = off")
        plan = "\n".join(row[0] for row in db.execute(b"explain " + query.encode(), values))
        assert "Index Scan using idx_users_builder_score on users" in plan
        assert re.search(r"Index Cond: .*\(ROW\(builder_score, id\) < ROW", plan), plan
        row = session.execute(leaderboard(model)).all()[0]
        assert cursor_of(row, model) == cursor_of(first)
    row = session.execute(
        leaderboard(Moderator).with_only_columns(Moderator.id, Moderator.builder_score)
    ).all()[0]
    assert cursor_of(row, Moderator) == cursor_of(first)


def test_it_works_in_an_asynchronous_session(session: Session, bare_database: str) -> None:
    async def pages() -> list[list[str]]:
        url = bare_database.replace("postgresql:", "postgresql+psycopg:", 1)
        engine = create_async_engine(url)
        async with AsyncSession(engine, expire_on_commit=False) as asynchronous:
            first = (await asynchronous.scalars(leaderboard(User).limit(4))).all()
            await asynchronous.commit()
            after = cursor_of(first[-1])
            second = (await asynchronous.scalars(leaderboard(User, after=after))).all()
        await engine.dispose()
        return [[user.username for user in page] for page in (first, second)]

    assert asyncio.run(pages()) == [EVERYONE[:4], EVERYONE[4:]]


# Types


@dataclass(frozen=True)
class Ulid:
    """An id that is no text to the application."""

    text: str


class UlidType(TypeDecorator[Ulid]):
    impl = String(26)
    cache_ok = True

    def process_bind_param(self, value: Ulid | None, dialect: Dialect) -> str | None:
        return None if value is None else value.text

    def process_result_value(self, value: str | None, dialect: Dialect) -> Ulid | None:
        return None if value is None else Ulid(value)


class PortableUuid(TypeDecorator[UUID]):
    """As it is found in applications that know more than one database."""

    impl = CHAR(36)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        kind = Uuid() if dialect.name == "postgresql" else CHAR(36)
        return dialect.type_descriptor(kind)


class Tenths(TypeDecorator[int]):
    """Whole tenths of points."""

    impl = Float
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> float | None:
        return None if value is None else value / 10

    def process_result_value(self, value: float | None, dialect: Dialect) -> int | None:
        return None if value is None else round(value * 10)


UUIDS = [str(UUID(int=n)) for n in range(1, 5)]
DECLARED: dict[str, tuple[str, AnyType, list[Any], str, AnyType]] = {
    "a decorator of text": ("varchar(26)", UlidType, list("abcd"), "real", REAL),
    "a decorator of uuids": ("uuid", PortableUuid, UUIDS, "real", Float(24)),
    "a variant": ("uuid", String(36).with_variant(Uuid(), "postgresql"), UUIDS, "real", REAL),
    "uuids as text": ("uuid", Uuid(as_uuid=False), UUIDS, "numeric", Numeric(asdecimal=False)),
    "uuids in text": (
        *("char(32)", Uuid(native_uuid=False), [UUID(text).hex for text in UUIDS]),
        *("numeric(5, 1)", Numeric(5, 1)),
    ),
    "blind to case": ("citext", CITEXT, ["a", "B", "c", "D"], "double precision", Float),
    "padded": ("char(3)", CHAR(3), ["a", "b", "ccc", "d"], "double precision", Float(53)),
    "a domain": ("ulid", DOMAIN("ulid", Text()), list("abcd"), "double precision", Tenths),
    "more than is said": ("bigint", Integer, [1, 2, 2**62, 2**63 - 1], "bigint", Integer),
    "less than is said": ("smallint", BigInteger, [1, 2, 3, 4], "smallint", BigInteger),
}


# any operator on such a column, an application's own as well
@pytest.mark.filterwarnings("ignore:.*DOMAIN.* OperatorClass:sqlalchemy.exc.SADeprecationWarning")
@pytest.mark.parametrize(
    "declared",
    [
        pytest.param(name, marks=pytest.mark.contrib if "citext" in DECLARED[name] else ())
        for name in DECLARED
    ],
)
def test_types_as_models_declare_them(db: Connection[Any], engine: Engine, declared: str) -> None:
    key, key_type, some_ids, score, score_type = DECLARED[declared]
    run(db, "create extension citext" if key == "citext" else "create domain ulid as text")
    rows = [(user_id, None, value) for user_id, value in zip(some_ids, (7, 7, 7, 3), strict=True)]
    create_users(db, rows, key=key, score=score, more="banned boolean")
    if score not in ("bigint", "smallint"):
        db.execute("update users set builder_score = builder_score + 0.3")
    run(db, "set enable_seqscan = off; set enable_sort = off")
    model, reader = mapped(key_type, score_type), ScoreReader(engine)
    with Session(engine) as session:
        users = session.scalars(leaderboard(model)).all()
        texts = run(db, "select id::text from users order by builder_score desc, id desc")
        assert len(users) == len(texts) == 4
        for n, user in enumerate(users):
            behind = leaderboard(model, after=cursor_of(user), above=3)
            found = session.scalars(behind).all()
            assert list(found) == [user for user in users[n + 1 :] if user.builder_score != 3]
            page = reader.above(3, after=cursor_of(user))
            assert len(page) == len(found)
            if page:
                last = reader.above(3, 1, after=cursor_of(user)).next
                assert last is None or session.scalars(leaderboard(model, after=last)).all() == (
                    list(users[n + 2 :])
                )


@pytest.mark.parametrize("score", [1e-8, Decimal("1E-8")])
def test_numbers_have_no_exponent_in_a_cursor(score: Any) -> None:
    user = mapped(Integer, Numeric)()
    user.id, user.builder_score = 1, score
    place = cursors.decode(cursor_of(user), IdType("bigint", "N"), ScoreType("numeric"))
    assert place.score == "0.00000001"


# What is none


class NoScore(Base):
    __tablename__ = "others"
    id: Mapped[int] = mapped_column(primary_key=True)
    builder_score = column_property(func.random())


class NoId(Base):
    __tablename__ = "ids"
    user_id: Mapped[int] = mapped_column(primary_key=True)
    builder_score: Mapped[int]


GOOD = cursor_of(User(id=1, builder_score=1))
LIGHT = table("users", column("id"), column("builder_score"))
EXPECTED = {
    "not a class": (lambda: leaderboard(cast(Any, "users")), "'users' is not the users: expected"),
    "not mapped": (lambda: leaderboard(int), "is not the users: expected a class that is mapped"),
    "an object": (lambda: leaderboard(cast(Any, User())), "is not the users"),
    "a column": (lambda: leaderboard(cast(Any, User.id)), "is not the users"),
    "no score": (lambda: leaderboard(NoScore), "no column builder_score: .*BuilderScoreMixin"),
    "no id": (lambda: leaderboard(NoId), "NoId.* has no column id: expected the application's"),
    "no cursor": (lambda: leaderboard(User, after="x"), "not a cursor of this ranking: it was cut"),
    "not text": (lambda: leaderboard(User, after=cast(Any, 7)), "expected text, not int"),
    "of other ids": (
        lambda: leaderboard(mapped(Uuid, Integer), after=GOOD),
        r"about ids of type integer, and users\.id has type uuid",
    ),
    "no threshold": (lambda: leaderboard(User, above=float("nan")), "nan is not a threshold"),
    "a type without order": (
        lambda: leaderboard(mapped(LargeBinary, Integer), after=GOOD),
        r"User\.id is declared as LargeBinary.*: expected .* Integer, Uuid or String",
    ),
    "a type with an order of its own": (
        lambda: leaderboard(mapped(Enum("a", "b", name="ab"), Integer), after=GOOD),
        r"User\.id is declared as ENUM",
    ),
    "no number": (
        lambda: leaderboard(mapped(Integer, Text), above=3),
        r"User\.builder_score is declared as Text.*: expected .* Integer, Float, REAL",
    ),
    "no type": (
        lambda: leaderboard(LIGHT, after=GOOD),
        r"score is declared as NullType",
    ),
    "a cursor of nothing": (lambda: cursor_of(None), "None has no place in a ranking: expected an"),
    "a cursor of a class": (lambda: cursor_of(User), "has no place in a ranking"),
    "a cursor of another": (lambda: cursor_of(Post(id=1)), "Post.* has no column builder_score"),
    "no score yet": (lambda: cursor_of(User(id=1)), "has no score, and so no place in a ranking"),
    "no whole number": (
        lambda: cursor_of(User(id=1, builder_score=cast(Any, 0.5))),
        "0.5 is not a score that bigint holds",
    ),
    "no id yet": (lambda: cursor_of(User(builder_score=1)), "None is not the id of a user"),
    "a score of another type": (
        lambda: cursor_of(User(id=1, builder_score=cast(Any, "high"))),
        "'high' is not a score that bigint holds",
    ),
}


@pytest.mark.parametrize("what", EXPECTED)
def test_what_is_none_is_told_what_was_expected(what: str) -> None:
    call, message = EXPECTED[what]
    with pytest.raises(BadArgumentError, match=message):
        call()


def test_rows_say_what_they_lack(session: Session) -> None:
    row = session.execute(leaderboard(User).limit(1)).one()
    with pytest.raises(BadArgumentError, match=r"or a row and what was selected from: cursor_of"):
        cursor_of(row)
    assert cursor_of(row, User) == cursor_of(row[0])
    row = session.execute(leaderboard(User).with_only_columns(User.id).limit(1)).one()
    with pytest.raises(BadArgumentError, match=r"does not hold User\.builder_score"):
        cursor_of(row, User)
    row = session.execute(leaderboard(USERS).limit(1)).one()
    with pytest.raises(BadArgumentError, match=r"does not hold"):
        cursor_of(row, Person)
