"""Profiles with scores, by name and by ids, from whatever columns an application has."""

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from pyscore import BadArgumentError, Profile, PyscoreError, ScoreReader, UserScore
from pyscore.cluster import PrivateCluster
from pyscore.locations import SQL
from pyscore.reading import host
from tests.reading import bind_for, create_users, engine_for
from tests.statements import run

REFERENCE = """
    avatar_url text, headline text, bio text, primary_role text, timezone text, contact_links jsonb,
    created_at timestamptz
"""
ADA = """
    insert into users values (1, 'ada', 57, 'a.png', 'Ships', null, 'engineer', 'UTC',
        '{"web": ["x", 1.5]}', '2024-02-29 12:00:00.123456+02')
"""
PROFILE = Profile(
    1,
    "ada",
    57,
    avatar_url="a.png",
    headline="Ships",
    bio=None,
    primary_role="engineer",
    timezone="UTC",
    contact_links={"web": ["x", 1.5]},
    created_at=datetime(2024, 2, 29, 10, 0, 0, 123456, tzinfo=UTC),
)


@pytest.fixture
def db(bare: Connection[Any]) -> Connection[Any]:
    return bare


def profile(db: Connection[Any], name: str = "ada") -> Profile | None:
    # in the connection's own transaction: a time zone and formats of its own
    run(
        db, "set timezone = 'America/New_York'; set datestyle = 'German'; set bytea_output = escape"
    )
    return ScoreReader(db).profile(name)


@pytest.mark.parametrize("kind", ["engine", "session", "psycopg"])
def test_a_profile_by_name_and_by_id(db: Connection[Any], bare_database: str, kind: str) -> None:
    create_users(db, more=REFERENCE)
    run(db, ADA)
    run(db, "insert into users (id, username) values (2, 'bob')")
    with bind_for(kind, bare_database) as bind:
        reader = ScoreReader(bind)
        assert reader.profile("ada") == PROFILE
        assert reader.profile("ada").tier == reader.by_username("ada").tier  # type: ignore[union-attr]
        assert reader.profile("bob") == Profile(2, "bob", None)
        assert reader.profile("eve") is None
        assert reader.profiles(["2", 3, 1, "1"]) == {
            "2": Profile(2, "bob", None),
            1: PROFILE,
            "1": PROFILE,
        }
        with pytest.raises(BadArgumentError, match="17 is not a username"):
            reader.profile(17)  # type: ignore[arg-type]
        with pytest.raises(BadArgumentError, match="'x' is not the id"):
            reader.profiles([1, "x"])
        with pytest.raises(BadArgumentError, match="'12' is one id"):
            reader.profiles("12")


def test_of_several_with_a_name_it_is_the_lowest_ids(db: Connection[Any]) -> None:
    create_users(db, [(2, "ada", 1), (1, "ada", 2)])
    assert profile(db) == Profile(1, "ada", 2)


def test_columns_that_are_missing_are_none(db: Connection[Any]) -> None:
    create_users(db, [(1, "ada", 5)])
    assert profile(db) == Profile(1, "ada", 5)


def test_without_usernames_there_are_profiles_by_id_alone(db: Connection[Any]) -> None:
    run(db, "create table users (id bigint, builder_score integer, bio text)")
    run(db, "insert into users values (1, 5, 'Ships')")
    assert ScoreReader(db).profiles([1]) == {1: Profile(1, None, 5, bio="Ships")}
    with pytest.raises(PyscoreError, match="has no column username: find users by their id"):
        profile(db)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("json", """'{"a": 1}'""", {"a": 1}),
        ("jsonb", "'null'", None),
        ("jsonb", "null", None),
        ("jsonb", """'"x"'""", "x"),
        ("text", """'{"a": 1}'""", {"a": 1}),
        ("text", "'12'", "12"),
        ("text", "'me@example.org'", "me@example.org"),
        ("text[]", "array['a', 'b']", "{a,b}"),
        ("links", """'{"a": [true]}'""", {"a": [True]}),
        # of more digits, or deeper, than Python reads
        ("jsonb", "('[1' || repeat('0', 9000) || ']')::jsonb", [Decimal("1" + "0" * 9000)]),
        ("json", "(repeat('[', 5000) || repeat(']', 5000))::json", "[" * 5000 + "]" * 5000),
    ],
)
def test_contact_links_of_every_type(
    db: Connection[Any], kind: str, value: str, expected: Any
) -> None:
    run(db, "create domain links as jsonb")
    create_users(db, more=f"contact_links {kind}")
    run(db, f"insert into users values (1, 'ada', 5, {value})")
    found = profile(db)
    assert found is not None
    assert found.contact_links == expected
    assert hash(found) == hash(found)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("timestamptz", "'2024-06-01 00:00+00'", datetime(2024, 6, 1, tzinfo=UTC)),
        ("timestamp", "'2024-06-01 00:00'", datetime(2024, 6, 1, tzinfo=UTC)),
        ("date", "'2024-06-01'", datetime(2024, 6, 1, tzinfo=UTC)),
        ("born", "'1969-07-20 20:17:40.5+00'", datetime(1969, 7, 20, 20, 17, 40, 500000, UTC)),
        ("timestamptz", "'9999-12-31 23:59:59.999999+00'", datetime.max.replace(tzinfo=UTC)),
        ("timestamptz", "'infinity'", None),
        ("timestamp", "'-infinity'", None),
        ("timestamptz", "'10000-01-01'", None),
        ("timestamptz", "'4713-01-01 BC'", None),
        ("text", "'2024-06-01'", None),
        ("time", "'12:00'", None),
        ("timestamptz", "null", None),
    ],
)
def test_created_at_of_every_type(
    db: Connection[Any], kind: str, value: str, expected: datetime | None
) -> None:
    run(db, "create domain born as timestamptz")
    create_users(db, more=f"created_at {kind}")
    run(db, f"insert into users values (1, 'ada', 5, {value})")
    assert profile(db) == Profile(1, "ada", 5, created_at=expected)


def test_other_columns_are_text_whatever_they_are(db: Connection[Any]) -> None:
    run(db, "create type role as enum ('engineer', 'designer'); create domain short as varchar(9)")
    more = "primary_role role, bio short, timezone name, avatar_url bytea, headline integer"
    create_users(db, more=more)
    run(db, "insert into users values (1, 'ada', 5, 'designer', 'b', 'UTC', 'x', 7)")
    # bytes as this connection prints them
    assert profile(db) == Profile(
        1, "ada", 5, avatar_url="x", headline="7", bio="b", primary_role="designer", timezone="UTC"
    )


def test_a_column_that_came_later_is_found_after_the_next_failure(
    db: Connection[Any], bare_database: str
) -> None:
    """What was learned of a table is kept, as for its other columns."""
    create_users(db, [(1, "ada", 5)])
    with engine_for(bare_database) as engine:
        assert ScoreReader(engine).profile("ada") == Profile(1, "ada", 5)
        run(db, "alter table users add bio text default 'Ships'")
        with pytest.raises(BadArgumentError):
            ScoreReader(engine).score("x")
        assert ScoreReader(engine).profile("ada") == Profile(1, "ada", 5, bio="Ships")
        run(db, "alter table users drop column bio")
        with pytest.raises(Exception, match="bio"):
            ScoreReader(engine).profile("ada")
        assert ScoreReader(engine).profile("ada") == Profile(1, "ada", 5)


def test_scores_and_names_need_no_privilege_on_a_profile(
    db: Connection[Any], server: PrivateCluster
) -> None:
    create_users(db, [(1, "ada", 5)], more="bio text")
    run(
        db,
        "create role narrow login; grant usage on schema public to narrow;"
        "grant select (id, username, builder_score) on users to narrow",
    )
    address = server.conninfo(db.info.dbname, user="narrow")
    try:
        with psycopg.connect(address) as theirs:
            reader = ScoreReader(theirs)
            assert reader.by_username("ada") == UserScore(1, "ada", 5)
            assert reader.scores([1]) == {1: 5}
            assert len(reader.leaderboard()) == 1
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                reader.profile("ada")
    finally:
        run(db, "drop owned by narrow; drop role narrow")


def test_a_profile_holds_the_fields_that_count() -> None:
    attaching = (SQL / "600_attach.sql").read_text(encoding="utf-8")
    (fields,) = re.findall(r"foreach v_field in array array\[(.*?)\]", attaching)
    assert {*re.findall(r"\w+", fields), "created_at"} == set(host.PROFILE)
