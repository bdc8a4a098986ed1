"""Loaders: one query a tick, with Strawberry's, with aiodataloader's, and without either."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, assert_type
from uuid import UUID

import aiodataloader
import psycopg
import pytest
import strawberry
import strawberry.dataloader
from psycopg import Connection
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from pyscore import (
    AsyncScoreReader,
    BadArgumentError,
    Profile,
    ProfileLoader,
    PyscoreError,
    ScoreLoader,
    ScoreReader,
)
from pyscore.cluster import PrivateCluster
from pyscore.loaders import cache_key, load_profiles, load_scores
from tests import reading_guide
from tests.community import add_user
from tests.conftest import janitor
from tests.reading import BINDS, bind_for, counted, create_users, engine_for

NOBODY = UUID(int=0)
PEOPLE = [UUID(int=number) for number in range(1, 51)]
NEW = UUID(int=51)

Batch = Callable[[list[Any]], Any]
Loaders = Callable[..., Any]


def by_strawberry(batch: Batch, **options: Any) -> Any:
    return strawberry.dataloader.DataLoader(load_fn=batch, cache_key_fn=cache_key, **options)


def by_aiodataloader(batch: Batch, **options: Any) -> Any:
    return aiodataloader.DataLoader(batch, get_cache_key=cache_key, **options)


@pytest.fixture(params=[by_strawberry, by_aiodataloader], ids=["strawberry", "aiodataloader"])
def loader(request: pytest.FixtureRequest) -> Loaders:
    """Makes a loader of a package that takes our batch functions."""
    return request.param


@pytest.fixture(scope="module")
def address(server: PrivateCluster, template: str) -> Iterator[str]:
    """Fifty people whose score is their number, and one who has none yet."""
    with (
        janitor(server, "loaders", template=template) as address,
        psycopg.connect(address, autocommit=True) as db,
    ):
        for number, user_id in enumerate(PEOPLE, 1):
            add_user(
                db, f"user{number}", id=user_id, builder_score=number, headline=f"no. {number}"
            )
        add_user(db, "new", id=NEW, builder_score=None)
        yield address


@pytest.fixture
def engine(address: str) -> Iterator[Engine]:
    with engine_for(address) as engine:
        yield engine


@pytest.fixture
def reader(engine: Engine) -> ScoreReader:
    reader = ScoreReader(engine)
    # a reader learns what users are from its first question
    reader.score(NOBODY)
    return reader


@pytest.fixture
def statements(
    engine: Engine, reader: ScoreReader, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[str]]:
    """Those of the reader's that reach the server."""
    with counted(engine, monkeypatch) as statements:
        yield statements


def sqlalchemy_url(address: str) -> str:
    return address.replace("postgresql:", "postgresql+psycopg:", 1)


@asynccontextmanager
async def async_engine(address: str) -> AsyncGenerator[AsyncEngine]:
    engine = create_async_engine(sqlalchemy_url(address))
    try:
        await AsyncScoreReader(engine).score(NOBODY)
        yield engine
    finally:
        await engine.dispose()


def run(
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    body: Callable[[AsyncScoreReader, list[str]], Awaitable[None]],
) -> None:
    """Run a request: with a reader, and the statements that reach the server meanwhile."""

    async def request() -> None:
        async with async_engine(address) as engine:
            with counted(engine.sync_engine, monkeypatch) as statements:
                await body(AsyncScoreReader(engine), statements)

    asyncio.run(request())


def test_one_tick_is_one_query(
    address: str, loader: Loaders, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def request(reader: AsyncScoreReader, statements: list[str]) -> None:
        scores = loader(load_scores(reader))
        asked = [*reversed(PEOPLE), NOBODY, NEW]
        one_by_one = asyncio.gather(*map(scores.load, asked))
        at_once = scores.load_many([PEOPLE[6], NOBODY, PEOPLE[0]])
        assert await one_by_one == [*range(50, 0, -1), None, None]
        assert await at_once == [7, None, 1]
        assert len(statements) == 1, statements
        # none of them is asked for again, the missing ones neither
        assert await scores.load_many(asked) == [*range(50, 0, -1), None, None]
        assert len(statements) == 1, statements

    run(address, monkeypatch, request)


def test_profiles_come_with_their_scores(
    address: str, loader: Loaders, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def request(reader: AsyncScoreReader, statements: list[str]) -> None:
        profiles = loader(load_profiles(reader))
        *found, missing, new = await profiles.load_many([*reversed(PEOPLE), NOBODY, NEW])
        assert len(statements) == 1, statements
        assert [(p.user_id, p.headline, p.score) for p in found] == [
            (user_id, f"no. {user_id.int}", user_id.int) for user_id in reversed(PEOPLE)
        ]
        assert missing is None
        assert (new.username, new.score, new.tier) == ("new", None, None)

    run(address, monkeypatch, request)


def test_scores_and_profiles_in_one_tick_on_one_engine(
    address: str, loader: Loaders, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def request(reader: AsyncScoreReader, statements: list[str]) -> None:
        scores, profiles = loader(load_scores(reader)), loader(load_profiles(reader))
        both = [load(user_id) for user_id in PEOPLE for load in (scores.load, profiles.load)]
        answers = await asyncio.gather(*both)
        assert answers[::2] == [profile.score for profile in answers[1::2]] == [*range(1, 51)]
        assert len(statements) == 2, statements

    run(address, monkeypatch, request)


def test_all_forms_of_an_id_are_one_person(
    address: str, loader: Loaders, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def request(reader: AsyncScoreReader, _: list[str]) -> None:
        asked: list[list[Any]] = []

        async def batch(user_ids: list[Any]) -> list[Any]:
            asked.append(user_ids)
            return await load_scores(reader)(user_ids)

        scores = loader(batch)
        ada = PEOPLE[0]
        assert await asyncio.gather(*map(scores.load, (ada, str(ada), ada))) == [1, 1, 1]
        assert await scores.load(str(ada)) == 1
        assert asked == [[ada]]
        # not one key, for where ids are text they are two people; but one query
        assert await scores.load_many([PEOPLE[9].hex, f"{PEOPLE[9]}".upper()]) == [10, 10]
        assert len(asked) == 2

    run(address, monkeypatch, request)


def test_what_is_no_id_fails_alone(
    address: str, loader: Loaders, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def request(reader: AsyncScoreReader, statements: list[str]) -> None:
        for batch in (load_scores(reader), load_profiles(reader)):
            statements.clear()
            some = loader(batch)
            asked: list[Any] = [PEOPLE[0], "ada", PEOPLE[1], 10**5000, True, [], NOBODY]
            answers = await asyncio.gather(*map(some.load, asked), return_exceptions=True)
            ada, word, bob, number, truth, several, nobody = answers
            assert [getattr(who, "score", who) for who in (ada, bob, nobody)] == [1, 2, None]
            for error in (word, number, truth, several):
                assert isinstance(error, BadArgumentError), error
            assert "'ada' is not the id of a user: users.id has type uuid" in str(word)
            assert len(statements) == 1, statements
            with pytest.raises(BadArgumentError, match="'ada' is not the id"):
                await some.load("ada")
            for no_id in ("x", 1):
                with pytest.raises(BadArgumentError, match="is not the id"):
                    await some.load(no_id)
            assert len(statements) == 1, "there was nothing to ask for"

    run(address, monkeypatch, request)


def test_what_fails_for_all_is_raised_for_all(address: str, loader: Loaders) -> None:
    async def request() -> None:
        async with async_engine(address) as engine:
            elsewhere = loader(load_scores(AsyncScoreReader(engine, schema="elsewhere")))
            asked = map(elsewhere.load, PEOPLE[:2])
            for error in await asyncio.gather(*asked, return_exceptions=True):
                assert isinstance(error, PyscoreError)
                assert "no table users in schema elsewhere" in str(error)

    asyncio.run(request())


def test_an_answer_is_kept_until_it_is_cleared(
    database: str, loader: Loaders, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(database, autocommit=True) as db:
        ada = add_user(db, "ada", builder_score=10)

        async def request(reader: AsyncScoreReader, statements: list[str]) -> None:
            scores = loader(load_scores(reader))
            assert await scores.load(ada) == 10
            db.execute("update users set builder_score = 20")
            assert await scores.load(ada) == 10
            assert await loader(load_scores(reader)).load(ada) == 20, "of the next request"
            scores.clear(str(ada))
            assert await scores.load(ada) == 20
            scores.clear_all()
            scores.prime(str(ada), 30)
            assert await scores.load(ada) == 30
            assert len(statements) == 3, statements

        run(database, monkeypatch, request)


def test_a_largest_batch_is_kept_to(
    address: str, loader: Loaders, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def request(reader: AsyncScoreReader, statements: list[str]) -> None:
        scores = loader(load_scores(reader), max_batch_size=20)
        assert await scores.load_many(PEOPLE) == [*range(1, 51)]
        assert len(statements) == 3, statements

    run(address, monkeypatch, request)


@strawberry.type
class Builder:
    """Of an application's schema: its resolvers ask for one user each."""

    id: strawberry.ID

    @strawberry.field
    async def builder_score(self, info: strawberry.Info[Any, Any]) -> float | None:
        return await info.context["scores"].load(self.id)

    @strawberry.field
    async def headline(self, info: strawberry.Info[Any, Any]) -> str | None:
        profile = await info.context["profiles"].load(self.id)
        return profile and profile.headline


@strawberry.type
class Builders:
    @strawberry.field
    async def builders(self) -> list[Builder]:
        return [Builder(id=strawberry.ID(str(user_id))) for user_id in (*PEOPLE, NOBODY, "x")]


def test_loaders_may_share_a_session_one_after_the_other(address: str, loader: Loaders) -> None:
    async def request() -> None:
        async with async_engine(address) as engine, AsyncSession(engine) as session:
            reader = AsyncScoreReader(session)
            assert await loader(load_scores(reader)).load(PEOPLE[0]) == 1
            assert (await loader(load_profiles(reader)).load(PEOPLE[0])).score == 1

    asyncio.run(request())


def test_a_graphql_query_of_fifty_is_a_query_a_field(
    address: str, loader: Loaders, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def request(reader: AsyncScoreReader, statements: list[str]) -> None:
        context = {
            "scores": loader(load_scores(reader)),
            "profiles": loader(load_profiles(reader)),
        }
        schema = strawberry.Schema(Builders)
        told = await schema.execute("{ builders { builderScore } }", context_value=context)
        assert len(statements) == 1, statements
        assert told.data is not None
        assert [builder["builderScore"] for builder in told.data["builders"]] == [
            *range(1, 51),
            *(None, None),
        ]
        # who has no id harms nobody else
        assert told.errors is not None
        (error,) = told.errors
        assert (error.path, type(error.original_error)) == (
            ["builders", 51, "builderScore"],
            BadArgumentError,
        )
        context["scores"].clear_all()
        statements.clear()
        told = await schema.execute(
            "{ builders { a: builderScore headline b: builderScore } }", context_value=context
        )
        assert told.data is not None
        assert told.data["builders"][49] == {"a": 50, "headline": "no. 50", "b": 50}
        assert len(statements) == 2, statements

    run(address, monkeypatch, request)


def test_a_reader_that_is_not_asynchronous_works_in_a_thread(
    address: str, loader: Loaders, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine_for(address) as engine:
        reader = ScoreReader(engine)
        reader.score(NOBODY)
        load_now = load_scores(reader)

        async def batch(user_ids: list[Any]) -> list[int | float | None]:
            return await asyncio.to_thread(load_now, user_ids)

        async def request() -> None:
            scores = loader(batch)
            asked = map(scores.load, (*PEOPLE, "ada", NOBODY))
            *found, word, nobody = await asyncio.gather(*asked, return_exceptions=True)
            assert found == [*range(1, 51)]
            assert nobody is None
            assert isinstance(word, BadArgumentError)

        with counted(engine, monkeypatch) as statements:
            asyncio.run(request())
        assert len(statements) == 1, statements


IDS: dict[str, list[Any]] = {
    "bigint": [1, -7, 2**63 - 1],
    "uuid": PEOPLE[:3],
    "text": ["01ARZ3NDEKTSV4RRFFQ69G5FAV", "7", "żółw"],
}
OTHERS: list[Any] = [
    *(NOBODY, str(NOBODY), 5, "5", "007", "", "x", 2**63, 10**5000),
    *(True, "True", 1.0, None, b"7", [], "a\0", "\ud800"),
]


@pytest.mark.parametrize("key", IDS)
def test_a_batch_answers_as_single_questions_do(
    bare: Connection[Any], bare_database: str, key: str
) -> None:
    create_users(bare, [(who, f"u{n}", n) for n, who in enumerate(IDS[key], 1)], key=key)
    asked = [*OTHERS, *IDS[key], *map(str, IDS[key]), *(f"{who}".upper() for who in IDS[key])]

    def outcome(question: Callable[[Any], Any], user_id: Any) -> Any:
        try:
            return question(user_id)
        except BadArgumentError as error:
            return str(error)

    with engine_for(bare_database) as engine:
        reader = ScoreReader(engine)
        expected = [outcome(reader.score, user_id) for user_id in asked]
        kinds: set[type[Any]] = {type(answer) for answer in expected}
        assert kinds == {int, type(None), str}
        answers: list[Any] = [*load_scores(reader)(asked)]
        assert [str(a) if isinstance(a, BadArgumentError) else a for a in answers] == expected
        profiles: list[Any] = [*load_profiles(reader)(asked)]
        assert [
            str(p) if isinstance(p, BadArgumentError) else p and p.score for p in profiles
        ] == expected
        scores = ScoreLoader(reader)
        for user_id, answer in zip(asked, expected, strict=True):
            loaded = outcome(scores.load, user_id)
            # a refusal names the form that was asked for first
            assert loaded == answer or (type(loaded) is type(answer) is str), user_id


@pytest.mark.parametrize("kind", BINDS)
def test_many_at_once_without_an_event_loop(
    address: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bind_for(kind, address) as bind:
        reader = ScoreReader(bind)
        reader.score(NOBODY)
        with counted(bind, monkeypatch) as statements:
            scores = ScoreLoader(reader)
            assert scores.load_many([]) == []
            assert statements == []
            asked = [*reversed(PEOPLE), NOBODY, NEW]
            assert scores.load_many(asked) == [*range(50, 0, -1), None, None]
            assert scores.load_many(map(str, PEOPLE)) == [*range(1, 51)]
            assert [scores.load(user_id) for user_id in asked] == [*range(50, 0, -1), None, None]
            assert len(statements) == 1, statements
            profiles = ProfileLoader(reader)
            ada, nobody = profiles.load_many([PEOPLE[0], NOBODY])
            assert isinstance(ada, Profile)
            assert (ada.headline, nobody) == ("no. 1", None)
            assert profiles.load(str(PEOPLE[0])) is ada
            assert len(statements) == 2, statements


def test_what_is_put_off_is_loaded_together(reader: ScoreReader, statements: list[str]) -> None:
    scores = ScoreLoader(reader)
    rows = [scores.later(user_id) for user_id in (*PEOPLE, NOBODY)]
    assert statements == []
    assert [row() for row in rows] == [*range(1, 51), None]
    assert len(statements) == 1, statements
    assert [row() for row in rows] == [*range(1, 51), None]
    # what is put off goes along with whatever is loaded
    scores.clear_all()
    ada, bob = scores.later(PEOPLE[0]), scores.later(PEOPLE[1])
    assert scores.load(PEOPLE[2]) == 3
    assert (ada(), bob()) == (1, 2)
    assert len(statements) == 2, statements
    # but once
    scores.clear_all()
    assert scores.load(PEOPLE[2]) == 3
    assert scores.prime(PEOPLE[0], 99).load(PEOPLE[0]) == 99
    assert len(statements) == 3, statements
    # what is known meanwhile is not asked for
    scores.clear_all()
    ada = scores.later(PEOPLE[0])
    scores.prime(PEOPLE[0], 99)
    assert (ada(), scores.load(PEOPLE[0])) == (99, 99)
    assert len(statements) == 3, statements


def test_what_is_no_id_fails_alone_without_an_event_loop(
    reader: ScoreReader, statements: list[str]
) -> None:
    scores = ScoreLoader(reader)
    word, ada = scores.later("ada"), scores.later(PEOPLE[0])
    assert ada() == 1
    for _ in range(2):
        with pytest.raises(BadArgumentError, match="'ada' is not the id of a user"):
            word()
    with pytest.raises(BadArgumentError, match="True is not the id"):
        scores.load_many([PEOPLE[1], True, []])
    assert scores.load(PEOPLE[1]) == 2
    assert len(statements) == 2, statements


def test_a_loader_keeps_until_it_is_cleared(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as db, engine_for(database) as engine:
        ada = add_user(db, "ada", builder_score=10)
        scores = ScoreLoader(ScoreReader(engine))
        nobody = scores.load(NOBODY)
        assert (scores.load(ada), nobody) == (10, None)
        db.execute("update users set builder_score = 20")
        assert scores.load(str(ada)) == 10
        assert scores.prime(ada, 99).load(ada) == 10
        assert scores.clear(str(ada)).load(ada) == 20
        assert scores.clear_all().prime(ada, 99).load(ada) == 99
        scores.clear(NOBODY).clear(NOBODY)


def test_what_could_not_be_loaded_is_loaded_at_the_next_try(
    bare: Connection[Any], bare_database: str
) -> None:
    with engine_for(bare_database) as engine:
        scores = ScoreLoader(ScoreReader(engine))
        ada = scores.later(1)
        with pytest.raises(PyscoreError, match="no table users"):
            scores.load(2)
        create_users(bare, [(1, "ada", 10), (2, "bob", 20)])
        assert (scores.load(2), ada()) == (20, 10)


def test_resolvers_without_an_event_loop_read_what_the_list_has_loaded(
    reader: ScoreReader, statements: list[str]
) -> None:
    @strawberry.type
    class Member:
        id: strawberry.ID

        @strawberry.field
        def builder_score(self, info: strawberry.Info[Any, Any]) -> float | None:
            return info.context["scores"].load(self.id)

    @strawberry.type
    class Members:
        @strawberry.field
        def members(self, info: strawberry.Info[Any, Any]) -> list[Member]:
            info.context["scores"].load_many(PEOPLE)
            return [Member(id=strawberry.ID(str(user_id))) for user_id in PEOPLE]

    told = strawberry.Schema(Members).execute_sync(
        "{ members { builderScore } }", context_value={"scores": ScoreLoader(reader)}
    )
    assert told.errors is None
    assert told.data == {"members": [{"builderScore": number} for number in range(1, 51)]}
    assert len(statements) == 1, statements


def test_the_guide(db: Connection[Any], database: str) -> None:
    people = {
        name: add_user(db, name, builder_score=score)
        for name, score in (("ada", 10), ("xia", 50), ("yan", 50), ("zoe", 60))
    }

    # strawberry looks up the names in annotations there
    names: dict[str, Any] = {**people, "__name__": __name__}

    async def follow() -> None:
        await reading_guide.follow_async(
            "GraphQL, and other per-request loading",
            names,
            replacing={"postgresql+psycopg:///app": sqlalchemy_url(database)},
        )
        info = SimpleNamespace(context=names["context"]())
        builder = names["Builder"](id=str(people["zoe"]), username="zoe")
        assert await builder.builder_score(info) == 60
        assert (await info.context["profiles"].load(people["zoe"])).username == "zoe"

    async def followed() -> None:
        try:
            await follow()
        finally:
            await names["reader"]._bind.dispose()
            names["engine"].dispose()

    asyncio.run(followed())


def test_loaders_take_readers_alone(reader: ScoreReader) -> None:
    for make in (load_scores, load_profiles, ScoreLoader, ProfileLoader):
        with pytest.raises(BadArgumentError, match="takes a ScoreReader"):
            make(17)  # type: ignore[arg-type]


def test_a_key_is_one_for_all_forms_of_an_id() -> None:
    ada = PEOPLE[0]
    assert cache_key(ada) == cache_key(str(ada))
    assert cache_key(1) == cache_key("1")
    several = [1, 1.0, True, None, "x", "X", b"1", [], [1], ada, ada.hex]
    assert len({cache_key(user_id) for user_id in several}) == len(several)


def test_checkers_of_types_know_what_is_loaded() -> None:
    # for the checker: nothing of it runs
    async def strawberrys(reader: AsyncScoreReader) -> None:
        scores = strawberry.dataloader.DataLoader(load_fn=load_scores(reader))
        assert_type(await scores.load(1), float | None)

    async def aiodataloaders(reader: AsyncScoreReader) -> None:
        profiles = aiodataloader.DataLoader(load_profiles(reader))
        assert_type(await profiles.load(1), Profile | None)

    def ours(reader: ScoreReader) -> None:
        assert_type(ScoreLoader(reader).later(1)(), int | float | None)
        assert_type(ProfileLoader(reader).load_many([1]), list[Profile | None])
        assert_type(load_scores(reader)([1]), list[int | float | None])

    assert all(map(callable, (strawberrys, aiodataloaders, ours)))
