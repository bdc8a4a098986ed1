"""What SQLAlchemy commits to users goes from the caches; what it rolls back stays."""

import asyncio
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from sqlalchemy import (
    Engine,
    ForeignKey,
    Text,
    TypeDecorator,
    bindparam,
    create_engine,
    delete,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    scoped_session,
    sessionmaker,
)

from pyscore import BadArgumentError, ProfileCache
from pyscore.cache_events import watch

NAMES = ("ann", "bob", "cyd")


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    # called otherwise than in the database
    key: Mapped[uuid.UUID] = mapped_column("id", primary_key=True)
    login: Mapped[str] = mapped_column("username")
    email: Mapped[str]
    bio: Mapped[str | None]


class Project(Base):
    __tablename__ = "projects"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    owner_id: Mapped[uuid.UUID]
    title: Mapped[str]


class Member(User):
    """A subclass in the same table."""


@dataclass(frozen=True)
class Shown:
    user_id: uuid.UUID
    username: str


class Application:
    """Sessions that are watched, and a cache that holds everybody."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.sessions = sessionmaker(engine)
        self.keys = {name: uuid.uuid4() for name in NAMES}
        with Session(engine) as session:
            for name, key in self.keys.items():
                session.add(User(key=key, login=name, email=name))
            session.commit()
        self.cache = ProfileCache(load=self._load)

    def _load(self, username: str) -> Shown | None:
        return Shown(self.keys[username], username) if username in self.keys else None

    def fill(self) -> None:
        for name in self.keys:
            self.cache.get(name)

    @property
    def kept(self) -> str:
        store = self.cache._store  # pyright: ignore[reportPrivateUsage]
        return " ".join(name for name in self.keys if store.look(name))

    def user(self, session: Session, name: str) -> User:
        return session.scalars(select(User).where(User.login == name)).one()


@pytest.fixture
def app(database: str) -> Iterator[Application]:
    engine = create_engine(database.replace("postgresql:", "postgresql+psycopg:", 1))
    app = Application(engine)
    watch(User, app.cache, sessions=app.sessions)
    app.fill()
    yield app
    engine.dispose()


def test_a_change_goes_as_it_is_committed(app: Application) -> None:
    with app.sessions() as session:
        app.user(session, "ann").bio = "new"
        session.flush()
        assert app.kept == "ann bob cyd"
        session.commit()
        assert app.kept == "bob cyd"
        app.fill()
        # nothing is left for the next one
        session.add(Project(owner_id=app.keys["bob"], title="x"))
        session.commit()
        assert app.kept == "ann bob cyd"


def test_a_delete_and_one_s_own_value_again(app: Application) -> None:
    with app.sessions.begin() as session:
        session.delete(app.user(session, "ann"))
        bob = app.user(session, "bob")
        bob.login = "bob"
        assert bob in session.dirty
    assert app.kept == "bob cyd"


def test_a_rename_drops_both_names_and_so_does_an_insert_its_own(app: Application) -> None:
    app.keys["dee"] = uuid.uuid4()  # somebody of before, of whom only the name is the same
    app.keys["eve"] = uuid.uuid4()
    app.fill()
    with app.sessions.begin() as session:
        app.user(session, "ann").login = "DEE"
        session.add(User(key=uuid.uuid4(), login="eve", email="eve"))
    assert app.kept == "bob cyd"


def test_a_rename_of_what_was_not_loaded_drops_the_old_name_by_the_id(app: Application) -> None:
    with app.sessions() as session:
        ann = app.user(session, "ann")
        session.commit()
        assert "login" not in ann.__dict__
        ann.login = "dee"
        session.commit()
    assert app.kept == "bob cyd"


def test_what_is_rolled_back_stays(app: Application) -> None:
    with app.sessions() as session:
        app.user(session, "ann").bio = "new"
        session.execute(update(User).values(bio="x"))
        session.rollback()
        session.commit()
        app.user(session, "bob").bio = "new"
        session.flush()
    with app.sessions.begin() as session:
        session.execute(text("select 1"))
    assert app.kept == "ann bob cyd"


def test_what_fails_at_commit_stays(app: Application) -> None:
    with app.sessions() as session:
        session.execute(
            text("alter table users add constraint once unique (bio) deferrable initially deferred")
        )
        session.commit()
        for name in ("ann", "bob"):
            app.user(session, name).bio = "the same"
        with pytest.raises(Exception, match="once"):
            session.commit()
        session.rollback()
        session.commit()
    assert app.kept == "ann bob cyd"


def test_savepoints(app: Application) -> None:
    with app.sessions() as session:
        with session.begin_nested():
            app.user(session, "ann").bio = "kept"
            with session.begin_nested() as inner:
                app.user(session, "bob").bio = "rolled back"
                session.flush()
                inner.rollback()
        assert app.kept == "ann bob cyd"
        with session.begin_nested() as outer:
            with session.begin_nested():
                app.user(session, "cyd").bio = "released, then rolled back"
            outer.rollback()
        session.commit()
        assert app.kept == "bob cyd"


USERS: Any = User.__table__
Keys = dict[str, uuid.UUID]
STATEMENTS: list[tuple[str, Callable[[Keys], Any], Callable[[Keys], Any] | None, str]] = [
    ("by id", lambda k: update(User).where(User.key == k["ann"]).values(bio="x"), None, "bob cyd"),
    ("by name", lambda k: delete(User).where(User.login == "ann"), None, "bob cyd"),
    (
        "by id and more",
        lambda k: update(User).where(User.key == k["ann"], User.bio.is_(None)).values(bio="x"),
        None,
        "bob cyd",
    ),
    (
        "in two wheres",
        lambda k: update(User).where(User.bio.is_(None)).where(User.key == k["ann"]).values(bio=""),
        None,
        "bob cyd",
    ),
    ("everybody", lambda k: update(User).values(bio="x"), None, ""),
    ("others than", lambda k: update(User).where(User.key != k["ann"]).values(bio="x"), None, ""),
    (
        "one or the other",
        lambda k: update(User).where((User.key == k["ann"]) | (User.login == "bob")).values(bio=""),
        None,
        "",
    ),
    ("not", lambda k: update(User).where(~(User.login == "ann")).values(bio="x"), None, ""),
    (
        "a value that comes later",
        lambda k: update(User).where(User.key == bindparam("who", k["bob"])).values(bio="x"),
        lambda k: {"who": k["ann"]},
        "",
    ),
    (
        "by primary key",
        lambda k: update(User),
        lambda k: [{"key": k[name], "bio": "x"} for name in ("ann", "bob")],
        "cyd",
    ),
    (
        "of the table",
        lambda k: update(USERS).where(USERS.c.id == k["ann"]).values(bio="x"),
        None,
        "bob cyd",
    ),
    ("of all the table", lambda k: delete(USERS), None, ""),
    (
        "returning objects",
        lambda k: select(User).from_statement(
            update(User).where(User.key == k["ann"]).values(bio="x").returning(User)
        ),
        None,
        "bob cyd",
    ),
    (
        "another's table",
        lambda k: update(Project).where(Project.owner_id == k["ann"]).values(title="x"),
        None,
        "ann bob cyd",
    ),
    (
        "another's columns",
        lambda k: (
            update(User).where(Project.id == k["ann"], Project.owner_id == User.key).values(bio="x")
        ),
        None,
        "",
    ),
    (
        "new people",
        lambda k: insert(User),
        lambda k: [{"key": uuid.uuid4(), "login": "dee", "email": "dee"}],
        "ann bob cyd",
    ),
    (
        "people who may be new",
        lambda k: (
            upsert(User)
            .values(key=k["ann"], login="dee", email="x")
            .on_conflict_do_update(index_elements=["id"], set_={"bio": "x"})
        ),
        None,
        "",
    ),
    ("a select", lambda k: select(User), None, "ann bob cyd"),
]


@pytest.mark.parametrize(
    ("statement", "parameters", "kept"),
    [row[1:] for row in STATEMENTS],
    ids=[row[0] for row in STATEMENTS],
)
def test_statements(app: Application, statement: Any, parameters: Any, kept: str) -> None:
    options = {"synchronize_session": False}
    with app.sessions() as session:
        session.execute(
            statement(app.keys), parameters and parameters(app.keys), execution_options=options
        )
        assert app.kept == "ann bob cyd"
        session.commit()
    assert app.kept == kept


def test_the_legacy_query_s_update_and_delete(app: Application) -> None:
    with app.sessions.begin() as session:
        session.query(User).filter(User.login == "ann").update({"bio": "x"})
        session.query(User).filter_by(login="bob").delete()
    assert app.kept == "cyd"


def test_two_phases(database: str, app: Application) -> None:
    sessions = sessionmaker(app.engine, twophase=True)
    watch(User, app.cache, sessions=sessions)
    with sessions() as session:
        app.user(session, "ann").bio = "x"
        session.prepare()
        assert app.kept == "ann bob cyd"
        session.commit()
    assert app.kept == "bob cyd"


def test_all_sessions_of_the_process(app: Application, request: pytest.FixtureRequest) -> None:
    stop = watch(Member, app.cache)
    request.addfinalizer(stop)
    scoped = scoped_session(sessionmaker(app.engine))
    member = scoped.get_one(Member, app.keys["ann"])
    member.bio = "x"
    scoped.get_one(User, app.keys["cyd"])
    scoped.commit()
    scoped.remove()
    assert app.kept == "bob cyd"

    async def change(name: str, **options: Any) -> None:
        url = app.engine.url.set(drivername="postgresql+psycopg")
        engine = create_async_engine(url)
        async with async_sessionmaker(engine, **options)() as session:
            assert isinstance(session, AsyncSession)
            member = await session.get_one(Member, app.keys[name])
            member.bio = "x"
            await session.commit()
        await engine.dispose()

    asyncio.run(change("bob"))
    assert app.kept == "cyd"


def test_one_session_alone(app: Application) -> None:
    other = ProfileCache(load=lambda name: Shown(app.keys[name], name))
    with Session(app.engine) as session, Session(app.engine) as unseen:
        stop = watch(User, other, sessions=session)
        other.get("ann")
        app.user(unseen, "ann").bio = "x"
        unseen.commit()
        assert other.info().currsize == 1
        app.user(session, "ann").bio = "y"
        session.commit()
        assert other.info().currsize == 0
        other.get("ann")
        stop()
        app.user(session, "ann").bio = "z"
        session.commit()
        assert other.info().currsize == 1


def test_statements_on_a_subclass_with_a_table_of_its_own(app: Application) -> None:
    class Other(DeclarativeBase):
        pass

    class Person(Other):
        __tablename__ = "people"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        __mapper_args__: ClassVar = {"polymorphic_on": "kind", "polymorphic_identity": "person"}

    class Editor(Person):
        __tablename__ = "editors"
        id: Mapped[int] = mapped_column(ForeignKey(Person.id), primary_key=True)
        desk: Mapped[str | None]
        __mapper_args__: ClassVar = {"polymorphic_identity": "editor"}

    sessions = sessionmaker(app.engine)
    cache = ProfileCache(load=lambda name: Shown(uuid.UUID(int=7), name))
    watch(Person, cache, sessions=sessions)
    with sessions() as session:
        Other.metadata.create_all(session.connection())
        cache.get("ann")
        session.execute(update(Editor).values(desk="x"))
        session.commit()
    assert cache.info().currsize == 0


def test_ids_of_a_type_of_the_application_s_own(app: Application) -> None:
    class Prefixed(TypeDecorator[str]):
        impl = Text
        cache_ok = True

        def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
            return value and value.removeprefix("user_")

        def process_result_value(self, value: Any, dialect: Any) -> str | None:
            return value and f"user_{value}"

    class Other(DeclarativeBase):
        pass

    class Person(Other):
        __tablename__ = "people"
        id: Mapped[str] = mapped_column(Prefixed, primary_key=True)
        bio: Mapped[str | None]

    sessions = sessionmaker(app.engine)
    cache = ProfileCache(load=lambda name: Shown(uuid.UUID(int=7), name))
    watch(Person, cache, sessions=sessions)
    with sessions() as session:
        Other.metadata.create_all(session.connection())
        person = Person(id=f"user_{uuid.UUID(int=7)}")
        session.add(person)
        session.commit()
        cache.get("ann")
        person.bio = "x"
        session.commit()
    assert cache.info().currsize == 0


def test_what_are_no_users() -> None:
    class NoId(Base):
        __tablename__ = "without_id"
        key: Mapped[int] = mapped_column(primary_key=True)

    with pytest.raises(BadArgumentError, match="a class that is mapped to them"):
        watch(dict, ProfileCache[User](load=lambda name: None))
    with pytest.raises(BadArgumentError, match="no column id"):
        watch(NoId, ProfileCache[User](load=lambda name: None))
