"""``pyscore rank``: where it says that somebody stands."""

import json
from typing import Any
from uuid import UUID

import pytest
from psycopg import Connection

from tests.commands import call, error_line, output
from tests.community import add_user
from tests.ranks import add_four_people

Db = Connection[Any]


@pytest.fixture
def people(db: Db) -> dict[str, UUID]:
    return add_four_people(db)


def rank(database: str, user: str) -> str:
    return output(call("rank", user, "--dsn", database))


def test_everybody_by_name_and_by_id(database: str, people: dict[str, UUID]) -> None:
    assert rank(database, "ada") == "ada: rank 1 of 4 with 13, above 100.0 % of the others\n"
    assert rank(database, "cyd") == "cyd: rank 2 of 4 with 3, above 33.3 % of the others\n"
    assert rank(database, str(people["dan"])) == (
        "dan: rank 4 of 4 with 0, above 0.0 % of the others\n"
    )


def test_as_data(database: str, people: dict[str, UUID]) -> None:
    data = json.loads(output(call("rank", "bob", "--json", "--dsn", database)))
    assert data == {
        "user": "bob",
        "user_id": str(people["bob"]),
        "username": "bob",
        "score": 3,
        "rank": 2,
        "people": 4,
        "percentile": pytest.approx(100 / 3),
    }


def test_without_a_score_there_is_no_rank(database: str, db: Db, people: dict[str, UUID]) -> None:
    add_user(db, "eve\x1b[31m")
    assert rank(database, "eve\x1b[31m") == "eve?[31m: no score yet\n"
    data = json.loads(output(call("rank", "eve\x1b[31m", "--json", "--dsn", database)))
    assert (data["score"], data["rank"], data["percentile"], data["people"]) == (
        None,
        None,
        None,
        4,
    )


def test_nobody_is_an_error(database: str, people: dict[str, UUID]) -> None:
    assert "no such user: zoe" in error_line(call("rank", "zoe", "--dsn", database))
