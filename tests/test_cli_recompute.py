"""``pyscore recompute`` of named users."""

import io
import json
import sys
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict

from pyscore.cluster import PrivateCluster
from tests.commands import call, error_line, output, pyscore
from tests.community import add_project, add_user, drain, one, queue, score
from tests.interleave import Sessions, until
from tests.poison import poison
from tests.screen import on_screen
from tests.terminal import on_terminal

Db = Connection[Any]


def add_people(db: Db, *names: str) -> None:
    """Add people whose score will be 3."""
    for name in names:
        add_user(db, name, bio="ships")


def test_recompute_prints_both_scores_and_why(database: str, db: Connection[Any]) -> None:
    ada = add_user(db, "ada")
    add_project(db, ada, status="shipped")
    said = output(pyscore("recompute", "ada", "--dsn", database))
    first, heading, *signals = said.splitlines()
    assert first == "ada: 0 -> 10"
    assert heading.split() == ["signal", "raw", "points", "of"]
    assert [line.split()[0] for line in signals] == [
        "shipped",
        "vouches",
        "impact",
        "profile",
        "age",
    ]
    assert signals[0].split() == ["shipped", "1", "10.00", "30", "█" * 10 + "░" * 20]
    assert score(db, ada) == 10


def test_recompute_takes_ids_and_usernames_and_answers_in_json(
    database: str, db: Connection[Any]
) -> None:
    ada, grace = add_user(db, "ada"), add_user(db, "grace", bio="ships")
    add_project(db, ada, status="shipped")
    said = json.loads(output(pyscore("recompute", "grace", str(ada), "--json", "--dsn", database)))
    assert [(result["user"], result["user_id"]) for result in said] == [
        ("grace", str(grace)),
        (str(ada), str(ada)),
    ]
    assert [(result["old_score"], result["new_score"]) for result in said] == [(0, 3), (0, 10)]
    for result in said:
        assert [signal["signal"] for signal in result["signals"]] == [
            "shipped",
            "vouches",
            "impact",
            "profile",
            "age",
        ]
        assert set(result["signals"][0]) == {"signal", "raw", "points", "max_points"}
        points = sum(signal["points"] for signal in result["signals"])
        assert abs(points - result["new_score"]) <= 0.5, "it is the sum, rounded"


def test_an_unknown_user_is_named_and_nobody_is_recomputed(
    database: str, db: Connection[Any]
) -> None:
    ada = add_user(db, "ada", bio="ships")
    nobody = str(uuid4())
    line = error_line(pyscore("recompute", "ada", "nobody", nobody, "--dsn", database))
    assert f"no such user: nobody, {nobody};" in line
    assert "nothing was recomputed" in line
    assert score(db, ada) == 0
    assert db.execute("select count(*) from builder_score.score_state").fetchone() == (0,)


def test_recompute_goes_past_the_debounce_and_opens_a_new_window(
    database: str, db: Connection[Any]
) -> None:
    ada = add_user(db, "ada")
    drain(db)
    add_project(db, ada, status="shipped")
    drain(db)
    assert score(db, ada) == 0, "the window is open: the event has to wait"
    assert output(call("recompute", "ada", "--dsn", database)).startswith("ada: 0 -> 10")
    assert queue(db) == []
    add_project(db, ada, status="shipped")
    drain(db)
    assert score(db, ada) == 10


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_recompute_works_whatever_the_databases_default_isolation(
    server: PrivateCluster, database: str, db: Connection[Any], level: str
) -> None:
    name = conninfo_to_dict(database)["dbname"]
    add_user(db, "ada", bio="ships")
    server.psql("-c", f"alter database {name} set default_transaction_isolation = '{level}'")
    assert output(call("recompute", "ada", "--dsn", database)).startswith("ada: 0 -> 3")
    output(call("worker", "--once", "--dsn", database))
    assert "at revision" in output(call("migrate", "--dsn", database))


# several ------------------------------------------------------------------------------------------


def test_several_are_a_line_each_in_the_order_given_and_once(database: str, db: Db) -> None:
    add_people(db, "ada", "bob", "cyd")
    ada = one(db, "select id::text from users where username = 'ada'")
    said = output(call("recompute", "cyd", "ada", ada, "bob", "cyd", "--dsn", database))
    assert said.splitlines() == ["cyd: 0 -> 3", "ada: 0 -> 3", "bob: 0 -> 3"]


def test_users_from_a_file(database: str, db: Db, tmp_path: Path) -> None:
    add_people(db, "ada", "bob", "żółw z")
    path = tmp_path / "users.txt"
    path.write_bytes("\ufeffbob\r\n\r\n  \tżółw z \r\nbob\n".encode())
    said = output(call("recompute", "ada", "--file", str(path), "--dsn", database))
    assert said.splitlines() == ["ada: 0 -> 3", "bob: 0 -> 3", "żółw z: 0 -> 3"]


def test_users_from_standard_input(database: str, db: Db, monkeypatch: pytest.MonkeyPatch) -> None:
    add_people(db, "ada", "bob")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"bob\nada")))
    said = output(call("recompute", "--file", "-", "--dsn", database))
    assert said.splitlines() == ["bob: 0 -> 3", "ada: 0 -> 3"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file or directory"),
        (b" \n\n", "names nobody: expected one id or username a line"),
        (b"ada\n\xff\xfe", "is not UTF-8 text: expected one id or username a line"),
        (b"ada\nb\0b", "holds a NUL in line 2: expected one id or username a line"),
    ],
)
def test_a_file_that_is_of_no_use_is_named(
    tmp_path: Path, content: bytes | None, expected: str
) -> None:
    path = tmp_path / "users.txt"
    if content is not None:
        path.write_bytes(content)
    line = error_line(call("recompute", "--file", str(path)), 2)
    assert str(path) in line
    assert expected in line


def test_standard_input_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert "standard input is closed" in error_line(call("recompute", "--file", "-"), 2)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "name users, or give --file or --all"),
        (("--all", "ada"), "--all means everyone"),
        (("--all", "--file", __file__), "--all means everyone"),
        (("--wait", "ada"), "--wait goes with --all"),
    ],
)
def test_options_that_do_not_go_together(arguments: tuple[str, ...], expected: str) -> None:
    assert expected in error_line(call("recompute", *arguments), 2)


def test_all_are_looked_up_in_one_query(
    database: str, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"user{n}" for n in range(20)]
    add_people(db, *names)
    asked: list[str] = []
    execute = psycopg.Cursor[Any].execute

    def counted(self: psycopg.Cursor[Any], query: Any, *rest: Any, **options: Any) -> Any:
        asked.append(str(query))
        return execute(self, query, *rest, **options)

    monkeypatch.setattr(psycopg.Cursor, "execute", counted)
    assert len(output(call("recompute", *names, "--dsn", database)).splitlines()) == 20
    assert sum("find_user" in query for query in asked) == 1


def test_many_unknown_users_are_counted(database: str, db: Db) -> None:
    add_people(db, "ada")
    nobodies = [f"nobody{n}" for n in range(15)]
    line = error_line(call("recompute", "ada", *nobodies, "--dsn", database))
    assert f"no such user: {', '.join(nobodies[:10])} and 5 more; expected" in line
    assert one(db, "select count(*) from builder_score.score_state") == 0


# failures -----------------------------------------------------------------------------------------


def test_one_who_fails_harms_nobody_else(database: str, db: Db) -> None:
    poison(db)
    add_people(db, "ada", "eve", "bob")
    done = call("recompute", "ada", "eve", "bob", "--dsn", database)
    line = error_line(done)
    assert line == (
        "pyscore: could not recompute eve (will not have eve); the other 2 were recomputed"
    )
    assert done.stdout.splitlines() == ["ada: 0 -> 3", "bob: 0 -> 3"]
    rows = db.execute("select username, builder_score from users order by 1").fetchall()
    assert rows == [("ada", 3), ("bob", 3), ("eve", 0)]
    assert [row[3] for row in queue(db)] == ["user inserted"], "eve stays queued"


def test_the_others_are_counted_in_words(database: str, db: Db) -> None:
    poison(db)
    add_people(db, "ada", "eve")
    line = error_line(call("recompute", "eve", "ada", "--dsn", database))
    assert line.endswith("(will not have eve); the other one was recomputed")
    db.execute("alter table users drop constraint users_username_key")
    db.execute("update users set builder_score = 0 where username = 'ada'")
    db.execute("update users set username = 'eve'")
    both = [str(user_id) for (user_id,) in db.execute("select id from users").fetchall()]
    line = error_line(call("recompute", *both, "--dsn", database))
    assert line.endswith("; nobody was recomputed")


def test_one_alone_who_fails(database: str, db: Db) -> None:
    poison(db)
    add_people(db, "eve")
    line = error_line(call("recompute", "eve", "--dsn", database))
    assert line == "pyscore: could not recompute eve (will not have eve)"


def test_failures_in_json(database: str, db: Db) -> None:
    poison(db)
    add_people(db, "ada", "eve")
    done = call("recompute", "eve", "ada", "--json", "--dsn", database)
    error_line(done)
    eve, ada = json.loads(done.stdout)
    assert (eve["user"], eve["error"]) == ("eve", "will not have eve")
    assert (ada["user"], ada["new_score"]) == ("ada", 3)
    assert "error" not in ada


def test_a_connection_that_breaks_loses_nothing_that_was_done(
    database: str, db: Db, sessions: Sessions
) -> None:
    add_people(db, "ada", "eve", "bob")
    keeper = sessions("keeper")
    keeper.run("begin")
    keeper.run("select from users where username = 'eve' for update")

    def terminate() -> None:
        waiting = "select pid from pg_stat_activity where %s = any(pg_blocking_pids(pid))"
        until(lambda: db.execute(waiting, [keeper.pid]).fetchall() != [], "eve is waited for")
        db.execute("select pg_terminate_backend(%s)", [one(db, waiting, keeper.pid)])

    other = Thread(target=terminate)
    other.start()
    done = call("recompute", "ada", "eve", "bob", "--dsn", database)
    other.join()
    keeper.run("rollback")
    assert error_line(done).endswith("; 1 of 3 users were done and stay so")
    assert done.stdout == "ada: 0 -> 3\n"
    rows = db.execute("select username, builder_score from users order by 1").fetchall()
    assert rows == [("ada", 3), ("bob", 0), ("eve", 0)]


# on a terminal ------------------------------------------------------------------------------------


def test_many_have_a_bar_on_a_terminal_and_none_in_the_output(database: str, db: Db) -> None:
    add_people(db, "ada", "bob")
    with on_terminal("recompute", "ada", "bob", "--dsn", database) as running:
        stdout = running.read_stdout()
    assert stdout.splitlines() == ["ada: 0 -> 3", "bob: 0 -> 3"]
    assert "recomputing" in running.shown
    assert running.returncode == 0


def test_the_bar_is_gone_when_all_is_done(database: str, db: Db) -> None:
    add_people(db, "ada", "bob")
    shown = on_screen("recompute", "ada", "bob", "--dsn", database)
    assert shown.splitlines() == ["ada: 0 -> 3", "bob: 0 -> 3"]
