"""``pyscore leaderboard``: the ranking, page by page, for whoever may read users."""

import json
import re
import shlex
from collections.abc import Generator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict

from pyscore import migrator
from pyscore.cluster import PrivateCluster
from tests.commands import call, error_line, output
from tests.community import add_user
from tests.conftest import dsn, janitor
from tests.screen import on_screen

Db = Connection[Any]


@pytest.fixture
def people(db: Db) -> None:
    """Six people, two of whom share a score, one of whom has none."""
    for name, score in {"ada": 80, "bob": 56, "cyd": 56, "dan": 30, "eve": 0, "nil": None}.items():
        add_user(db, name, builder_score=score)


@pytest.fixture
def application(server: PrivateCluster, database: str) -> Generator[str]:
    """The address for the application's role, which may read users and nothing of ours."""
    name = f"app_{uuid4().hex[:12]}"
    with psycopg.connect(database, autocommit=True) as db:
        db.execute(f"create role {name} login; grant select on users to {name}".encode())
        yield dsn(server, str(conninfo_to_dict(database)["dbname"]), user=name)
        db.execute(f"drop owned by {name}; drop role {name}".encode())


def rows(said: str) -> list[list[str]]:
    return [line.split() for line in said.split("\n\n")[0].splitlines()]


def test_the_highest_first_with_places_bars_and_tiers(database: str, people: None) -> None:
    heading, *entries = rows(output(call("leaderboard", "--dsn", database)))
    assert heading == ["place", "user", "score", "tier"]
    ada, second, third, dan, eve = entries
    assert ada == ["1", "ada", "80", "█" * 16, "76", "and", "over"]
    # the same score, the same place
    assert sorted([second, third]) == [
        ["2", name, "56", "█" * 11, "56-75"] for name in ("bob", "cyd")
    ]
    assert dan == ["4", "dan", "30", "█" * 6, "0-30"]
    assert eve == ["5", "eve", "0", "0-30"]


def test_each_page_prints_the_command_for_the_next(database: str, people: None) -> None:
    words = ["pyscore", "leaderboard", "-n", "2", "--above", "0", "--dsn", database]
    names: list[str] = []
    headings: list[str] = []
    while words:
        page, _, rest = output(call(*words[1:])).partition("\n\n")
        heading, *entries = page.splitlines()
        headings.append(heading.split()[0])
        names += [line.split()[1 if len(headings) == 1 else 0] for line in entries]
        words = shlex.split(rest.removeprefix("next page: "))
    assert [names[0], sorted(names[1:3]), names[3:]] == ["ada", ["bob", "cyd"], ["dan"]]
    assert headings == ["place", "user"], "a later page does not know its places"


def test_the_next_page_in_json(database: str, people: None, db: Db) -> None:
    page = json.loads(output(call("leaderboard", "-n", "3", "--json", "--dsn", database)))
    (ada, _, _) = page["entries"]
    row = db.execute("select id::text from users where username = 'ada'").fetchone()
    assert row == (ada["user_id"],)
    assert (ada["username"], ada["score"]) == ("ada", 80)
    assert ada["tier"] == {"number": 4, "low": 76, "high": None}
    rest = call("leaderboard", "--after", page["next"], "--json", "--dsn", database)
    page = json.loads(output(rest))
    assert [one["username"] for one in page["entries"]] == ["dan", "eve"]
    assert page["next"] is None


def test_above_is_strictly_above(database: str, people: None) -> None:
    said = output(call("leaderboard", "--above", "56", "--dsn", database))
    assert [row[1] for row in rows(said)[1:]] == ["ada"]
    said = output(call("leaderboard", "--above", "1000", "--dsn", database))
    assert said == "nobody has a score above 1000\n"


def test_nobody_at_all(database: str) -> None:
    assert output(call("leaderboard", "--dsn", database)) == "nobody has a score here\n"


def test_the_applications_role_needs_nothing_of_ours(application: str, people: None) -> None:
    said = output(call("leaderboard", "-n", "1", "--dsn", application))
    assert rows(said)[1][:3] == ["1", "ada", "80"]


@pytest.fixture
def role(server: PrivateCluster) -> Generator[str]:
    name = f"reader_{uuid4().hex[:12]}"
    server.psql("-c", f"create role {name} login")
    yield name
    server.psql("-c", f"drop role {name}")


def test_the_operator_may_look_though_users_are_closed_to_them(
    server: PrivateCluster, database: str, role: str, people: None
) -> None:
    address = dsn(server, str(conninfo_to_dict(database)["dbname"]), user=role)
    line = error_line(call("leaderboard", "--dsn", address))
    assert line == (
        "pyscore: permission denied for table users; "
        f"a DBA may allow it: GRANT builder_score_operator TO {role}"
    )
    server.psql("-c", f"grant builder_score_operator to {role}")
    said = output(call("leaderboard", "-n", "3", "--dsn", address))
    assert rows(said)[1][:3] == ["1", "ada", "80"]
    _, _, following = said.partition("next page: ")
    assert rows(output(call(*shlex.split(following)[1:])))[1][0] == "dan"


def test_a_detached_database_still_has_its_scores(database: str, db: Db, people: None) -> None:
    db.execute("select builder_score.detach()")
    assert rows(output(call("leaderboard", "--dsn", database)))[1][:3] == ["1", "ada", "80"]


def test_finds_users_in_another_schema(server: PrivateCluster) -> None:
    with janitor(server, f"elsewhere_{uuid4().hex[:8]}") as address:
        with psycopg.connect(address, autocommit=True) as db:
            db.execute("create schema app")
        migrator.upgrade(address, settings=migrator.install_settings("app"))
        with psycopg.connect(address, autocommit=True) as db:
            db.execute("set search_path = app")
            add_user(db, "ada", builder_score=80)
        assert rows(output(call("leaderboard", "--dsn", address)))[1][:3] == ["1", "ada", "80"]


def test_the_schema_can_be_said(server: PrivateCluster, role: str) -> None:
    with janitor(server, f"elsewhere_{uuid4().hex[:8]}") as address:
        with psycopg.connect(address, autocommit=True) as db:
            db.execute("create schema app")
        migrator.upgrade(address, settings=migrator.install_settings("app"))
        with psycopg.connect(address, autocommit=True) as db:
            db.execute(f"set search_path = app; grant usage on schema app to {role}".encode())
            db.execute(f"grant select on users to {role}".encode())
            for name in ("ada", "bob"):
                add_user(db, name, builder_score=80)
        mine = dsn(server, str(conninfo_to_dict(address)["dbname"]), user=role)
        line = error_line(call("leaderboard", "--dsn", mine))
        assert "there is no table users in the search_path (public)" in line
        assert line.endswith("name the schema of its users: --schema SCHEMA")
        said = output(call("leaderboard", "-n", "1", "--schema", "app", "--dsn", mine))
        _, _, following = said.partition("next page: ")
        both = rows(said)[1:] + rows(output(call(*shlex.split(following)[1:])))[1:]
        assert [row[0] if row[0] != "1" else row[1] for row in both] in (
            ["ada", "bob"],
            ["bob", "ada"],
        )
        line = error_line(call("leaderboard", "--schema", "nowhere", "--dsn", mine))
        assert "there is no table users in schema nowhere" in line


def test_a_password_is_not_repeated(database: str, people: None) -> None:
    address = f"{database}&password=s3cret"
    said = output(call("leaderboard", "-n", "1", "--dsn", address))
    assert "s3cret" not in said
    assert said.rstrip().endswith("--dsn ADDRESS")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("-n", "0"), "1<=x<=1000"),
        (("-n", "1001"), "1<=x<=1000"),
        (("-n", "many"), "not a valid integer"),
        (("--above", "high"), "not a valid float"),
        (("--above", "nan"), "expected a score"),
        (("--after", "garbage"), "give the one that a page ended with"),
    ],
)
def test_bad_arguments_are_one_line(
    database: str, arguments: tuple[str, ...], expected: str
) -> None:
    assert expected in error_line(call("leaderboard", *arguments, "--dsn", database), 2)


def test_a_database_without_scores_says_what_to_do(empty_database: str) -> None:
    assert "users" in error_line(call("leaderboard", "--dsn", empty_database))
    with psycopg.connect(empty_database, autocommit=True) as db:
        db.execute("create table users (id bigint primary key, username text)")
    assert "pyscore migrate" in error_line(call("leaderboard", "--dsn", empty_database))


def test_a_username_cannot_play_with_the_terminal(database: str, db: Db) -> None:
    add_user(db, "\x1b[31mred[bold]", builder_score=5)
    said = output(call("leaderboard", "--dsn", database))
    assert "?[31mred[bold]" in said
    assert "\x1b" not in said


def test_a_long_username_is_not_cut(database: str, db: Db) -> None:
    add_user(db, "x" * 200, builder_score=5)
    said = output(call("leaderboard", "--dsn", database))
    assert "x" * 200 in said, "nor folded where there is no terminal"


def screen(columns: int, *arguments: str) -> list[str]:
    shown = on_screen("leaderboard", *arguments, COLUMNS=str(columns))
    return [line.rstrip() for line in shown.splitlines()]


def test_a_narrow_terminal_has_room_for_everything_but_bars(database: str, people: None) -> None:
    heading, ada, *_ = screen(40, "--dsn", database)
    assert heading.split() == ["place", "user", "score", "tier"]
    assert re.fullmatch(r" +1  ada   +80  █{6}   76 and over", ada), "shorter bars"
    heading, ada, *_ = screen(32, "--dsn", database)
    assert heading.split() == ["place", "user", "score", "tier"]
    assert ada.split() == ["1", "ada", "80", "76", "and", "over"], "no bars"


def test_a_terminal_folds_long_names(database: str, db: Db) -> None:
    add_user(db, "x" * 200, builder_score=5)
    said = screen(80, "--dsn", database)
    assert "".join(said).count("x") == 200
    assert max(map(len, said)) <= 80


def test_no_columns_are_taken_for_eighty(database: str, people: None) -> None:
    assert rows(output(call("leaderboard", "--dsn", database, COLUMNS="0")))[1][1] == "ada"
    assert "ada" in screen(0, "--dsn", database)[1]


@pytest.mark.parametrize(
    ("stored", "printed", "json_value", "bar"),
    [
        ("NaN", "NaN", "NaN", 0),
        ("Infinity", "Infinity", "Infinity", 20),
        ("1e300", f"{1e300:f}".rstrip("0").rstrip("."), 1e300, 20),
        ("-5", "-5", -5, 0),
    ],
)
def test_what_never_was_computed_is_shown_as_it_is(
    server: PrivateCluster, stored: str, printed: str, json_value: Any, bar: int
) -> None:
    with janitor(server, f"odd_{uuid4().hex[:8]}") as address:
        with psycopg.connect(address, autocommit=True) as db:
            db.execute(
                "create table users (id bigint primary key, username text,"
                " builder_score double precision)"
            )
            db.execute("insert into users values (5, 'ada', %s)", [stored])
        row = rows(output(call("leaderboard", "--dsn", address)))[1]
        assert row[:3] == ["1", "ada", printed]
        assert sum(field.count("█") for field in row) == bar
        (one,) = parsed(output(call("leaderboard", "--json", "--dsn", address)))["entries"]
    assert (one["user_id"], one["score"]) == ("5", json_value), "ids are text"


def parsed(said: str) -> Any:
    """Read JSON as strictly as others do."""
    return json.loads(said, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
