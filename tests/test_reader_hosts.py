"""Readers on hosts of other types, and what they say when something is missing."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any
from unittest.mock import Mock
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.types.numeric import FloatLoader
from sqlalchemy import ForeignKey, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pyscore import BadArgumentError, PyscoreError, ScoreReader, UnknownUserError, migrator
from pyscore.cluster import PrivateCluster
from pyscore.reading import cursors, queries
from pyscore.reading.types import IdType, codec
from pyscore.scores import TIERS
from tests.community import add_project, add_user, drain
from tests.hosts import create_application
from tests.reading import CALLERS, bind_for, create_users, engine_for, execute, ids
from tests.statements import run

UUIDS = [UUID(int=n) for n in range(1, 4)]


@pytest.fixture
def db(bare: Connection[Any]) -> Connection[Any]:
    return bare


class Code(str, Enum):  # noqa: UP042
    A = "a"


class Number(IntEnum):
    ONE = 1


# The key's type, three ids in ascending order, other forms of the first, and what is none.
KEYS: dict[str, tuple[list[Any], list[Any], list[Any]]] = {
    "uuid": (
        UUIDS,
        [str(UUIDS[0]), UUIDS[0].hex, str(UUIDS[0]).upper()],
        [1, b"1" * 16, "", "x", f"{{{UUIDS[0]}}}", "0_0" + UUIDS[0].hex[3:], f" {UUIDS[0]}", True],
    ),
    "bigint": (
        [1, 2, 2**63 - 1],
        ["1", "01", Number.ONE],
        [True, 1.0, "1.0", "1e3", "", "٣", " 1", "1_0", 2**63, str(-(2**63) - 1), UUIDS[0], None],
    ),
    "integer": ([-1, 0, 2**31 - 1], ["-1"], [2**31, "+1", "--1", "9" * 500, [1]]),
    "smallint": ([1, 2, 2**15 - 1], ["1"], [2**15]),
    "text": (["a", "it's", "ä%(x)s"], [Code.A], ["\0", "\ud800", None, 1.5, b"a", True]),
    "varchar(26)": (["1", "2", "3" * 26], [1, Number.ONE], ["a\0"]),
    "char(3)": (["a  ", "b  ", "ccc"], ["a  "], ["\0"]),
    "ulid": (["0" * 26, "1" * 26, "z" * 26], ["0" * 26], ["\0"]),
}
NOBODY: dict[str, list[Any]] = {
    "uuid": [UUID(int=9)],
    "bigint": [3, -5],
    "integer": [7],
    "smallint": [7],
    "text": ["", "b", "A", "a" * 9000, UUIDS[0]],
    "varchar(26)": ["3" * 27, "1 "],
    "char(3)": ["abcd"],
    "ulid": ["too short", "0" * 27],
}


@pytest.mark.parametrize("kind", ["engine", "psycopg"])
@pytest.mark.parametrize("key", KEYS)
def test_ids_of_every_type(db: Connection[Any], bare_database: str, key: str, kind: str) -> None:
    some, first_again, malformed = KEYS[key]
    run(db, "create domain ulid as text check (length(value) = 26)")
    create_users(db, [(some[0], "ann", 7), (some[1], "bob", 7), (some[2], "cyd", None)], key=key)
    with bind_for(kind, bare_database) as bind:
        reader = ScoreReader(bind)
        assert reader.score(some[1]) == 7
        assert reader.score(some[2]) is None
        assert ids(reader.leaderboard()) == some[1::-1]
        assert ids(reader.leaderboard(1, after=reader.leaderboard(1).next)) == some[:1]
        assert reader.by_username("ann") == reader.leaderboard(2).entries[1]
        for again in first_again:
            assert reader.score(again) == 7
        assert reader.scores([*first_again, *some]) == (
            dict.fromkeys(first_again, 7) | {some[0]: 7, some[1]: 7, some[2]: None}
        )
        for nobody in NOBODY[key]:
            assert reader.score(nobody) is None
        assert reader.scores(NOBODY[key]) == {}
        for wrong in malformed:
            with pytest.raises(BadArgumentError, match=r"is not the id of a user: users\.id has"):
                reader.score(wrong)
            with pytest.raises(BadArgumentError, match="is not the id of a user"):
                reader.scores([some[0], wrong])


@pytest.mark.parametrize("kind", ["engine", "psycopg"])
@pytest.mark.parametrize(
    ("score", "stored", "expected"),
    [
        ("smallint", "42", 42),
        ("integer", "42", 42),
        ("bigint", "42", 42),
        ("real", "42.3", 42.3),
        ("double precision", "42", 42.0),
        ("double precision", "42.3", 42.3),
        ("numeric", "42", 42.0),
        ("numeric(5, 1)", "42.3", 42.3),
        ("points", "42.3", 42.3),
    ],
)
def test_scores_of_every_type(
    db: Connection[Any], bare_database: str, score: str, stored: str, expected: Any, kind: str
) -> None:
    run(db, "create domain fine as numeric(6, 2); create domain points as fine check (value > -9)")
    create_users(db, score=score)
    run(db, f"insert into users values (1, 'ann', {stored}), (2, 'bob', 1), (3, 'cyd', null)")
    with bind_for(kind, bare_database) as bind:
        reader = ScoreReader(bind)
        whole = score in ("smallint", "integer", "bigint")
        for found in (
            reader.score(1),
            reader.scores([1])[1],
            reader.leaderboard().entries[0].score,
        ):
            assert (found, type(found)) == (expected, int if whole else float)
        # people at the threshold are not above it
        assert ids(reader.above(expected)) == []
        assert ids(reader.above(expected - 0.1)) == [1]
        assert ids(reader.above(-7)) == [1, 2]
        for extreme in (1e308, 10**400, 1e39, Decimal("1e999999")):
            assert ids(reader.above(extreme)) == []
            assert ids(reader.above(-extreme)) == [1, 2]


@pytest.mark.parametrize("kind", ["engine", "psycopg"])
@pytest.mark.parametrize(
    ("score", "odd", "tier"),
    [
        ("integer", "-1", 1),
        ("integer", "101", 4),
        *((score, "NaN", 1) for score in ("real", "double precision", "numeric")),
        *((score, "Infinity", 4) for score in ("real", "double precision", "numeric")),
        *((score, "-Infinity", 1) for score in ("real", "double precision", "numeric")),
    ],
)
def test_a_score_that_was_never_computed_breaks_nothing(
    db: Connection[Any], bare_database: str, score: str, odd: str, tier: int, kind: str
) -> None:
    """It keeps the place that PostgreSQL gives it: NaN is the highest of all."""
    create_users(db, [(1, "ann", 50), (2, "bob", odd), (3, "cyd", odd)], score=score)
    expected = [1, 3, 2] if odd.startswith("-") else [3, 2, 1]
    with bind_for(kind, bare_database) as bind:
        reader = ScoreReader(bind)
        bob = reader.by_username("bob")
        assert bob
        assert bob.tier == TIERS[tier - 1]
        for found in (bob.score, reader.score(2), reader.scores([2])[2]):
            assert found == pytest.approx(float(odd), nan_ok=True)
        assert ids(reader.leaderboard()) == expected
        read, page = list[Any](), reader.leaderboard(1)
        while page.next and len(read) < 3:
            read += ids(page)
            page = reader.leaderboard(1, after=page.next)
        assert [*read, *ids(page)] == expected
        assert ids(reader.above(49)) == [
            user_id for user_id in expected if tier > 1 or odd == "NaN" or user_id == 1
        ]


def test_a_type_that_changed_is_learned_again(db: Connection[Any], bare_database: str) -> None:
    create_users(db, [(1, "ann", 42), (2, "bob", 42)])
    with engine_for(bare_database) as engine:
        reader = ScoreReader(engine)
        assert reader.score(1) == 42
        run(db, "alter table users alter builder_score type double precision")
        run(db, "update users set builder_score = 42.5")
        assert reader.score(1) == 42.5
        page = reader.leaderboard(1)
        with pytest.raises(BadArgumentError):
            reader.leaderboard(1, after=page.next)
        assert ids(reader.leaderboard(1, after=page.next)) == [1]


def test_a_host_without_usernames(db: Connection[Any], bare_database: str) -> None:
    run(
        db, "create table users (id bigint, builder_score integer); insert into users values (1, 5)"
    )
    with bind_for("psycopg", bare_database) as bind:
        reader = ScoreReader(bind)
        assert reader.leaderboard().entries[0].username is None
        with pytest.raises(PyscoreError, match=r"public\.users has no column username"):
            reader.by_username("ann")
        assert reader.score(1) == 5


@pytest.mark.parametrize("username", ["varchar(5)", "char(5)", "name", "citext", "mood"])
def test_names_of_every_type(db: Connection[Any], bare_database: str, username: str) -> None:
    if username == "citext":
        run(db, "create extension citext")
    run(db, "create type mood as enum ('ann', 'bob')")
    run(db, f"create table users (id int, username {username}, builder_score integer)")
    run(db, "insert into users values (2, 'ann', 5), (1, 'ann', 6), (3, 'bob', 7)")
    with bind_for("psycopg", bare_database) as bind:
        reader = ScoreReader(bind)
        for name, expected in (
            ("ann", 1),
            ("bob", 3),
            ("ANN", 1 if username == "citext" else None),
        ):
            found = reader.by_username(name)
            assert (found.user_id if found else None) == expected, name
        assert reader.by_username("much too long for any") is None


def test_views_and_partitions_are_read_like_tables(db: Connection[Any], bare_database: str) -> None:
    run(
        db,
        """
        create table people (id int, username text, builder_score int) partition by hash (id);
        create table people_0 partition of people for values with (modulus 1, remainder 0);
        insert into people values (1, 'ann', 5);
        create view users as select * from people;
        """,
    )
    with bind_for("psycopg", bare_database) as bind:
        assert ScoreReader(bind).score(1) == 5


def test_the_callers_own_adaptation_is_left_alone(db: Connection[Any]) -> None:
    class Tagged(Loader):
        def load(self, data: Buffer) -> str:
            return f"user-{bytes(data).decode()}"

    create_users(db, [(1, "ann", "4.5"), (2, "bob", "4.5")], key="int", score="numeric")
    db.adapters.register_loader("numeric", FloatLoader)
    db.adapters.register_loader("int4", Tagged)
    reader = ScoreReader(db)
    first = reader.leaderboard(1)
    assert ids(first) == ["user-2"]  # as the driver gives it
    assert ids(reader.leaderboard(1, after=first.next)) == ["user-1"]
    assert reader.score("1") == 4.5
    assert reader.scores([1]) == {1: 4.5}


# What may be missing


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("select 1", r"no table users in the search_path \(public\): .*schema="),
        ("create table users (name text)", r"public\.users has no column id"),
        ("create table users (id int)", r"no column builder_score: .*pyscore migrate"),
        (
            "create table users (id int, builder_score text)",
            "builder_score has type text; expected",
        ),
        ("create table users (id date, builder_score int)", "users.id has type date; .*uuid"),
        ("create table users (id int[], builder_score int)", "users.id has type integer"),
    ],
)
@pytest.mark.parametrize("kind", CALLERS)
def test_what_is_missing_is_named(
    db: Connection[Any], bare_database: str, statement: str, message: str, kind: str
) -> None:
    run(db, statement)
    with bind_for(kind, bare_database) as bind:
        execute(bind, "create temporary table mine (x int)")
        for attempt in (ScoreReader(bind).score, ScoreReader(bind).leaderboard):
            with pytest.raises(PyscoreError, match=message) as refused:
                attempt(1)
            assert "\n" not in str(refused.value)
        assert execute(bind, "select count(*) from mine") == [(0,)]
        # and once it is there it is found
        execute(bind, "drop table if exists users")
        execute(bind, "create table users (id int, builder_score int)")
        assert ScoreReader(bind).score(1) is None


def test_a_subclass_of_users_is_told_to_name_the_users(
    db: Connection[Any], bare_database: str
) -> None:
    """It may be mapped to a table beside theirs: no migration will ever put a score there."""
    create_users(db, [(1, "ann", 42)])
    run(db, "create table admins (id bigint references users)")

    class Base(DeclarativeBase):
        pass

    class User(Base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Admin(User):
        __tablename__ = "admins"
        id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True)

    with engine_for(bare_database) as engine:
        with pytest.raises(PyscoreError, match=r"admins has no column builder_score: .*users=User"):
            ScoreReader(engine, users=Admin).score(1)
        assert ScoreReader(engine, users=User).score(1) == 42


# Databases of other encodings


@contextmanager
def encoded(server: PrivateCluster, encoding: str) -> Generator[str]:
    """A database with users ann, 1, and zoë, 2, whose ids are text."""
    name = f"reader_{encoding.lower()}"
    options = f"encoding '{encoding}' locale 'C' template template0"
    server.psql("-c", f"create database {name} {options}")
    try:
        address = server.conninfo(name)
        with psycopg.connect(address, autocommit=True, client_encoding="utf8") as db:
            create_users(db, [("1", "ann", 7), ("ë", "zoë", 5)], key="text")
        yield address
    finally:
        server.psql("-c", f"drop database {name}")


@pytest.fixture(scope="module")
def latin1(server: PrivateCluster) -> Iterator[str]:
    with encoded(server, "LATIN1") as address:
        yield address


@pytest.fixture(scope="module")
def sql_ascii(server: PrivateCluster) -> Iterator[str]:
    with encoded(server, "SQL_ASCII") as address:
        yield address


@pytest.mark.parametrize("client", ["", "&client_encoding=utf8"])
@pytest.mark.parametrize("kind", ["engine", *CALLERS])
def test_what_the_database_cannot_hold_is_nobodys_name(latin1: str, kind: str, client: str) -> None:
    with bind_for(kind, latin1 + client) as bind:
        reader = ScoreReader(bind)
        for name in ("日本", "zo\u20ac", "zo\ud800"):
            assert reader.by_username(name) is None
            for method in (reader.score, reader.explain, reader.rank, reader.recompute):
                with pytest.raises(BadArgumentError, match=r"not the id of a user.*iso8859-1"):
                    method(name)
            with pytest.raises(BadArgumentError, match="not the id of a user"):
                reader.scores(["1", name])
        for name in ("日本", "zo\u20ac"):
            forged = cursors.encode(cursors.Position("6", name), IdType("text", "S"))
            with pytest.raises(BadArgumentError, match="its id is not the id of a user"):
                reader.leaderboard(after=forged)
        zoe = reader.by_username("zoë")
        assert zoe
        assert (zoe.user_id, zoe.username, reader.score("ë")) == ("ë", "zoë", 5)
        assert ids(reader.leaderboard(1, after=reader.leaderboard(1).next)) == ["ë"]


@pytest.mark.parametrize("kind", CALLERS)
def test_what_a_connection_cannot_send_is_named(
    db: Connection[Any], bare_database: str, kind: str
) -> None:
    """The database could hold it, but the client is said to speak Latin alone."""
    create_users(db, [(1, "日本", 7)])
    with bind_for(kind, bare_database + "&client_encoding=latin1") as bind:
        execute(bind, "create temporary table mine (x int)")
        reader = ScoreReader(bind)
        named = text("username = :name").bindparams(name="日本")
        for attempt in (lambda: reader.by_username("日本"), lambda: reader.above(1, where=named)):
            with pytest.raises(BadArgumentError, match=r"'日本' cannot be sent .*(latin|iso)"):
                attempt()
        assert reader.score(1) == 7
        assert execute(bind, "select count(*) from mine") == [(0,)]


@pytest.mark.parametrize("kind", ["psycopg", "psycopg autocommit"])
def test_a_connection_that_reads_bytes_is_told_how_to_read_text(sql_ascii: str, kind: str) -> None:
    with bind_for(kind, sql_ascii) as bind:
        execute(bind, "create temporary table mine (x int)")
        for attempt in (ScoreReader(bind).by_username, ScoreReader(bind).score):
            with pytest.raises(PyscoreError, match=r"as bytes.*client_encoding=utf8"):
                attempt("ann")
        assert execute(bind, "select count(*) from mine") == [(0,)]


@pytest.mark.parametrize("kind", ["engine", *CALLERS])
def test_a_database_without_an_encoding_is_read_as_utf8(sql_ascii: str, kind: str) -> None:
    with bind_for(kind, sql_ascii + "&client_encoding=utf8") as bind:
        reader = ScoreReader(bind)
        assert (reader.score("ë"), reader.by_username("日本")) == (5, None)
        assert [one.username for one in reader.leaderboard()] == ["ann", "zoë"]


def test_every_encoding_of_a_server_has_a_codec(db: Connection[Any]) -> None:
    # servers have those up to 34; the rest are for clients alone
    names = [
        row[0] for row in run(db, "select pg_encoding_to_char(n) from generate_series(0, 34) n")
    ]
    assert len(set(names)) == 35
    unknown = [name for name in names if codec(name) == "utf-8"]
    assert unknown == ["SQL_ASCII", "EUC_TW", "UTF8", "MULE_INTERNAL"]
    assert "ł".encode(codec("WIN1250")) == b"\xb3"


@pytest.mark.parametrize("method", ["explain", "rank", "recompute"])
@pytest.mark.parametrize("kind", ["engine", "connection", "psycopg"])
def test_without_us_there_is_nothing_to_explain(
    db: Connection[Any], bare_database: str, kind: str, method: str
) -> None:
    create_users(db, [(1, "ann", 42)])
    with bind_for(kind, bare_database) as bind:
        reader = ScoreReader(bind)
        with pytest.raises(PyscoreError, match=r"not installed .*: pyscore migrate"):
            getattr(reader, method)(1)
        assert reader.score(1) == 42


@pytest.mark.parametrize("key", ["bigint", "varchar(26)"])
def test_explaining_and_recomputing_on_an_application_of_its_own(
    empty_database: str, key: str
) -> None:
    with psycopg.connect(empty_database, autocommit=True) as db:
        create_application(db, key=key, score="double precision")
        migrator.upgrade(empty_database)
        user_id: Any = 1
        if key == "bigint":
            run(db, "insert into users (username, email, bio) values ('ann', 'a', 'builds')")
        else:
            user_id = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
            run(db, f"insert into users values ('{user_id}', 'ann', 'a', 'builds')")
        with engine_for(empty_database) as engine:
            reader = ScoreReader(engine)
            assert reader.recompute(user_id) == 15.0
            assert isinstance(reader.recompute(user_id), float)
            said = reader.explain(user_id)
            assert (said.user_id, said.points, said.score) == (user_id, 15.0, 15.0)
            assert (reader.rank(user_id), reader.percentile(user_id)) == (1, 0)
            assert reader.distribution() == {15.0: 1}
            assert [type(score) for score in reader.distribution()] == [float]
            for odd, tier in (("-1", 1), ("NaN", 1), ("Infinity", 4)):
                run(db, f"update users set builder_score = '{odd}'")
                said = reader.explain(user_id)
                assert said.score == pytest.approx(float(odd), nan_ok=True)
                assert (said.points, said.tier) == (15.0, TIERS[tier - 1])
            assert reader.recompute(user_id) == 15.0
            for method in (reader.recompute, reader.rank, reader.percentile):
                with pytest.raises(UnknownUserError):
                    method(2)


# Roles


@pytest.fixture
def role(database: str) -> Iterator[str]:
    """The application's role: it may write the host's tables and nothing else."""
    name = "the app's"
    with psycopg.connect(database, autocommit=True) as db:
        quoted = '"' + name + '"'
        run(db, f"create role {quoted} login")
        run(db, f"grant select, insert, update, delete on users, projects to {quoted}")
        yield name
        run(db, f"drop owned by {quoted}; drop role {quoted}")


@pytest.mark.parametrize("kind", [*CALLERS, "engine"])
def test_a_role_needs_no_grant_to_read_and_is_told_the_grant_to_do_more(
    server: PrivateCluster, database: str, role: str, kind: str
) -> None:
    with psycopg.connect(database, autocommit=True) as db:
        ann = add_user(db, "ann")
        add_project(db, ann, status="shipped")
        drain(db)
        add_project(db, ann, status="shipped", github_stars=1)
        name = db.info.dbname
        with bind_for(kind, server.conninfo(name, user=role)) as bind:
            reader = ScoreReader(bind)
            assert reader.score(ann) == 10
            assert reader.scores([ann]) == {ann: 10}
            assert reader.by_username("ann") == reader.leaderboard().entries[0]
            assert ids(reader.above(5)) == [ann]
            for method, function in (
                ("explain", "explain"),
                ("rank", "standing"),
                ("recompute", "recalculate"),
            ):
                with pytest.raises(
                    PyscoreError, match=r'^role "the app\'s" may not call'
                ) as refused:
                    getattr(reader, method)(ann)
                grants = str(refused.value).split("a DBA allows it with: ")[1]
                assert f"ON FUNCTION builder_score.{function}(builder_score.user_id)" in grants
                assert reader.score(ann) == 10  # the transaction goes on
                # each grant is needed, and both are enough
                for grant in grants.split("; "):
                    run(db, grant)
            with pytest.raises(PyscoreError) as refused:
                reader.distribution()
            assert "ON FUNCTION builder_score.distribution() TO" in str(refused.value)
            run(db, str(refused.value).split("; ")[2])
            assert reader.explain(ann).signals[0].raw == 2
            assert (reader.rank(ann), reader.percentile(ann)) == (1, 0)
            assert reader.distribution() == {10: 1}
            assert reader.recompute(ann) == 17


def test_one_grant_alone_is_not_enough(server: PrivateCluster, database: str, role: str) -> None:
    with psycopg.connect(database, autocommit=True) as db:
        ann = add_user(db, "ann")
        run(db, f'grant usage on schema builder_score to "{role}"')
        with bind_for("psycopg", server.conninfo(db.info.dbname, user=role)) as bind:
            with pytest.raises(PyscoreError, match="GRANT EXECUTE"):
                ScoreReader(bind).explain(ann)
            assert ScoreReader(bind).score(ann) == 0
        run(db, f'revoke usage on schema builder_score from "{role}"')
        run(
            db,
            f'grant execute on function builder_score.explain(builder_score.user_id) to "{role}"',
        )
        with bind_for("psycopg", server.conninfo(db.info.dbname, user=role)) as bind:
            with pytest.raises(PyscoreError, match="GRANT USAGE"):
                ScoreReader(bind).explain(ann)
            assert ScoreReader(bind).score(ann) == 0


@pytest.mark.parametrize("method", ["explain", "percentile", "recompute"])
def test_a_detached_schema_says_how_to_attach_it(database: str, method: str) -> None:
    with psycopg.connect(database) as db:
        ann = add_user(db, "ann")
        run(db, "select builder_score.detach()")
        with pytest.raises(PyscoreError, match=r"detached.*builder_score\.attach\(\)"):
            getattr(ScoreReader(db), method)(ann)
        assert ScoreReader(db).score(ann) == 0
        assert ScoreReader(db).distribution() == {}


def test_scores_outlive_an_uninstall(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as db, engine_for(database) as engine:
        ann = add_user(db, "ann", builder_score=9)
        reader = ScoreReader(engine)
        assert reader.score(ann) == 9
        migrator.downgrade(database)
        assert reader.score(ann) == 9
        with pytest.raises(PyscoreError, match="not installed"):
            reader.explain(ann)


# What our functions themselves refuse, where no look at the catalogue could have told


@pytest.mark.parametrize("kind", ["engine", "psycopg"])
def test_what_a_function_refuses_is_put_in_our_words(
    database: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(database, autocommit=True) as db:
        ann = add_user(db, "ann")
        # gone between the look at its row and the call
        gone = text(f"select builder_score.recalculate('{UUID(int=0)}')")
        with monkeypatch.context() as patch, bind_for(kind, database) as bind:
            patch.setattr(queries, "recomputation", Mock(return_value=gone))
            with pytest.raises(UnknownUserError, match=f'user "{UUID(int=0)}" does not exist'):
                ScoreReader(bind).recompute(ann)
        run(db, "update builder_score.host set attached_at = null")
        for method in ("explain", "rank", "recompute"):
            with bind_for(kind, database) as bind:
                with pytest.raises(PyscoreError, match=r"is detached .*attach") as refused:
                    getattr(ScoreReader(bind), method)(ann)
                assert "\n" not in str(refused.value)
        # an error that is nobody's fault stays what it is
        run(db, "drop table builder_score.signals cascade")
        expected = psycopg.Error if kind == "psycopg" else DBAPIError
        run(db, "update builder_score.host set attached_at = now()")
        with bind_for(kind, database) as bind, pytest.raises(expected, match="signals"):
            ScoreReader(bind).explain(ann)
