"""``pyscore dead-letter``: who was given up, and what can be done about it."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import click
import pytest
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict

from pyscore.cluster import PrivateCluster
from tests.commands import call, error_line, output, pyscore
from tests.community import add_user, configure, drain, one, queue, score
from tests.conftest import dsn
from tests.interleave import make_due

MESSAGE = "will not have " + "this and that, " * 10 + "the end"
FAILED_SECONDS_AGO = (7200, 180)

TERMINAL = {"FORCE_COLOR": "1", "TERM": "dumb"}
"""What has rich take a pipe for a terminal: one of 80 columns, without colours."""


def add_letter(db: Connection[Any], user: UUID, message: str = MESSAGE) -> None:
    first, last = FAILED_SECONDS_AGO
    db.execute(
        """
        insert into builder_score.score_dead_letter
        values (%s, 5, 'P0001', %s, now() - make_interval(secs => %s),
                now() - make_interval(secs => %s))
        """,
        [user, message, first, last],
    )


def letters(db: Connection[Any]) -> set[UUID]:
    rows = db.execute("select user_id from builder_score.score_dead_letter").fetchall()
    return {user for (user,) in rows}


@pytest.fixture
def people(db: Connection[Any]) -> dict[str, UUID]:
    """Three people, of whom ada and grace are dead letters."""
    configure(db, debounce_window="0")
    found = {name: add_user(db, name, bio="ships") for name in ("ada", "grace", "linus")}
    drain(db)
    add_letter(db, found["ada"])
    add_letter(db, found["grace"], "short")
    db.execute(
        "update builder_score.score_dead_letter set last_failed_at = now() where user_id = %s",
        [found["grace"]],
    )
    return found


@pytest.fixture
def operator(server: PrivateCluster, database: str) -> Iterator[str]:
    """The address for a role that may do what operators may."""
    role = f"letters_{uuid4().hex[:12]}"
    server.psql("-c", f"create role {role} login in role builder_score_operator")
    yield dsn(server, str(conninfo_to_dict(database)["dbname"]), user=role)
    server.psql("-c", f"drop role {role}")


# list, show ---------------------------------------------------------------------------------------


def test_no_dead_letters_is_said(database: str) -> None:
    assert output(call("dead-letter", "list", "--dsn", database)) == "no dead letters\n"
    assert json.loads(output(call("dead-letter", "list", "--json", "--dsn", database))) == []


def test_the_list_has_two_lines_a_letter_the_last_failure_first(
    database: str, people: dict[str, UUID]
) -> None:
    said = output(call("dead-letter", "list", "--dsn", database))
    newest, its_message, who, why = said.splitlines()
    assert newest.startswith(f"grace  {people['grace']}  5 attempts, 2 h to ")
    assert its_message == "  P0001 short"
    assert who.startswith(f"ada  {people['ada']}  5 attempts, 2 h to 3 min ")
    assert why == f"  P0001 {MESSAGE}"


def test_on_a_terminal_the_list_has_as_much_of_a_message_as_fits(
    database: str, people: dict[str, UUID]
) -> None:
    said = output(call("dead-letter", "list", "--dsn", database, **TERMINAL))
    assert said.splitlines()[-1] == f"  P0001 {MESSAGE}"[:79] + "…"


def test_the_list_in_json_has_all_of_it(database: str, people: dict[str, UUID]) -> None:
    data = json.loads(output(call("dead-letter", "list", "--json", "--dsn", database)))
    assert [one["username"] for one in data] == ["grace", "ada"]
    ada = data[1]
    assert set(ada) == {
        "user_id",
        "username",
        "attempts",
        "sqlstate",
        "message",
        "first_failed_at",
        "last_failed_at",
        "exists",
        "stored_score",
        "computed_at",
    }
    assert (ada["user_id"], ada["attempts"], ada["sqlstate"], ada["message"]) == (
        str(people["ada"]),
        5,
        "P0001",
        MESSAGE,
    )
    assert (ada["exists"], ada["stored_score"]) == (True, 3)


def test_show_tells_everything_and_what_to_do(database: str, people: dict[str, UUID]) -> None:
    said = output(call("dead-letter", "show", "ada", "--dsn", database))
    lines = said.splitlines()
    facts = dict(line.split("  ", 1) for line in lines if "  " in line.strip())
    assert facts["user"].strip() == "ada"
    assert facts["user id"].strip() == str(people["ada"])
    assert (facts["attempts"].strip(), facts["SQLSTATE"].strip()) == ("5", "P0001")
    assert " ".join(said.split()).count(MESSAGE) == 1, "whole, over several lines"
    assert facts["last failed"].rstrip().endswith(" ago")
    assert facts["stored score"].strip().startswith("3, computed ")
    assert facts["pending"].strip() == "nothing"
    assert lines[-1] == f"  pyscore dead-letter retry {people['ada']}"


def test_show_tells_what_is_pending(
    database: str, db: Connection[Any], people: dict[str, UUID]
) -> None:
    db.execute("select builder_score.enqueue(%s, 20, 'a test')", [people["ada"]])
    said = output(call("dead-letter", "show", str(people["ada"]), "--dsn", database))
    assert "a test (for user), due now" in said
    assert said.splitlines()[-1].startswith("it is queued already")
    data = json.loads(output(call("dead-letter", "show", "ada", "--json", "--dsn", database)))
    assert [(row["reason"], row["priority"]) for row in data["pending"]] == [("a test", 20)]
    assert data["message"] == MESSAGE


def test_the_dead_letter_of_a_deleted_user_is_named_by_its_id(
    database: str, db: Connection[Any]
) -> None:
    gone = uuid4()
    add_letter(db, gone, "gone")
    assert f"{gone}  5 attempts" in output(call("dead-letter", "list", "--dsn", database))
    said = output(call("dead-letter", "show", str(gone), "--dsn", database))
    assert f"{gone}, who is gone" in said
    assert said.splitlines()[-1] == f"forget it with: pyscore dead-letter discard {gone}"
    output(call("dead-letter", "discard", str(gone), "--dsn", database))
    assert letters(db) == set()


def test_messages_cannot_play_tricks_on_the_terminal(database: str, db: Connection[Any]) -> None:
    user = add_user(db, "[red]\x1b[2J")
    add_letter(db, user, "[bold]\x1b[2J\nsecond line")
    said = output(call("dead-letter", "list", "--dsn", database))
    assert said.startswith("[red]?[2J  ")
    assert "  P0001 [bold]?[2J second line" in said
    assert "[bold]?[2J" in output(call("dead-letter", "show", str(user), "--dsn", database))


def test_a_console_without_unicode_gets_none(database: str, people: dict[str, UUID]) -> None:
    variables = TERMINAL | {"PYTHONIOENCODING": "ascii"}
    done = pyscore("dead-letter", "list", "--dsn", database, **variables)
    assert output(done).splitlines()[-1] == f"  P0001 {MESSAGE}"[:80]


# retry --------------------------------------------------------------------------------------------


def test_a_retried_dead_letter_goes_when_its_score_is_computed(
    database: str, db: Connection[Any], people: dict[str, UUID]
) -> None:
    configure(db, debounce_window="1 day")
    db.execute("call builder_score.run_worker('0')")
    said = output(call("dead-letter", "retry", "ada", "--dsn", database))
    assert said == "1 dead letter queued to be tried again, past the debounce\n"
    assert queue(db) == [(people["ada"], None, 0, "dead letter retried")]
    assert letters(db) == {people["ada"], people["grace"]}
    drain(db)
    assert letters(db) == {people["grace"]}


def test_a_retry_that_fails_again_leaves_the_dead_letter_with_the_new_message(
    database: str, db: Connection[Any], people: dict[str, UUID]
) -> None:
    configure(db, max_attempts=1)
    db.execute("""
        create function object() returns trigger language plpgsql as
        'begin raise exception ''still not''; end';
        create trigger object before update on users for each row execute function object();
        alter table users disable trigger user;
        update users set builder_score = 0;
        alter table users enable trigger user;
    """)
    output(call("dead-letter", "retry", "ada", "--dsn", database))
    make_due(db)
    drain(db)
    query = "select message from builder_score.score_dead_letter where user_id = %s"
    assert one(db, query, people["ada"]) == "still not"


def test_all_can_be_retried_at_once(
    database: str, db: Connection[Any], people: dict[str, UUID]
) -> None:
    assert json.loads(
        output(call("dead-letter", "retry", "--all", "--json", "--dsn", database))
    ) == {"retried": 2}
    drain(db)
    assert letters(db) == set()
    said = output(call("dead-letter", "retry", "--all", "--dsn", database))
    assert said == "0 dead letters queued to be tried again, past the debounce\n"


def test_a_retry_that_nobody_will_do_says_so(
    database: str, db: Connection[Any], people: dict[str, UUID]
) -> None:
    said = output(call("dead-letter", "retry", "ada", "--dsn", database))
    assert said.splitlines()[1:] == ["nothing runs the worker: pyscore status"]
    configure(db, paused=True)
    said = output(call("dead-letter", "retry", "ada", "--dsn", database))
    assert said.splitlines()[1:] == ["computing scores is paused: pyscore resume"]


# discard ------------------------------------------------------------------------------------------


def test_a_discarded_dead_letter_leaves_the_score_until_the_next_event(
    database: str, db: Connection[Any], people: dict[str, UUID]
) -> None:
    said = output(call("dead-letter", "discard", "ada", str(people["ada"]), "--dsn", database))
    assert said.splitlines() == [
        "1 dead letter discarded",
        "the stored scores stay as they are until the users' next event",
    ]
    assert letters(db) == {people["grace"]}
    assert (score(db, people["ada"]), queue(db)) == (3, [])


def test_discarding_all_asks_first_and_no_discards_none(
    database: str, db: Connection[Any], people: dict[str, UUID]
) -> None:
    for answer in ("n\n", ""):
        done = pyscore("dead-letter", "discard", "--all", "--dsn", database, stdin=answer)
        assert done.returncode == 1
        assert "Discard 2 dead letters? The stored scores stay as they are" in done.stderr
        assert "Traceback" not in done.stderr
        assert len(letters(db)) == 2
    done = pyscore("dead-letter", "discard", "--all", "--dsn", database, stdin="y\n")
    assert output(done).startswith("2 dead letters discarded\n")
    assert letters(db) == set()


def test_yes_is_not_asked(database: str, db: Connection[Any], people: dict[str, UUID]) -> None:
    done = call("dead-letter", "discard", "--all", "--yes", "--json", "--dsn", database)
    assert (json.loads(output(done)), done.stderr) == ({"discarded": 2}, "")
    assert letters(db) == set()


def test_what_fails_while_the_question_waits_is_not_discarded(
    database: str, db: Connection[Any], people: dict[str, UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(question: str, **options: Any) -> bool:
        assert question.startswith("Discard 2 dead letters?")
        add_letter(db, people["linus"])
        return True

    monkeypatch.setattr(click, "confirm", answer)
    said = output(call("dead-letter", "discard", "--all", "--dsn", database))
    assert said.startswith("2 dead letters discarded\n")
    assert letters(db) == {people["linus"]}


def test_only_discarding_all_asks_and_the_help_says_so() -> None:
    said = " ".join(output(call("dead-letter", "discard", "--help")).split())
    assert "Forget dead letters; --all asks first." in said
    assert "--yes With --all: do not ask." in said


# Who is meant -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["retry", "discard"])
def test_one_name_too_many_and_nothing_is_done(
    database: str, db: Connection[Any], people: dict[str, UUID], command: str
) -> None:
    done = {"retry": "retried", "discard": "discarded"}[command]
    nobody = str(uuid4())
    for names, complaint in (
        (("ada", "nobody", "linus", nobody), f"no such user: nobody, {nobody}; "),
        (("ada", "linus"), "no dead letter: linus; expected one that `pyscore dead-letter list`"),
    ):
        line = error_line(call("dead-letter", command, *names, "--dsn", database))
        assert complaint in line
        assert line.endswith(f"nothing was {done}")
    assert (queue(db), len(letters(db))) == ([], 2)


def test_show_of_somebody_who_is_none_ends_with_1(database: str, people: dict[str, UUID]) -> None:
    line = error_line(call("dead-letter", "show", "nobody", "--dsn", database))
    assert "no such user: nobody" in line
    assert "no dead letter: linus" in error_line(
        call("dead-letter", "show", "linus", "--dsn", database)
    )


@pytest.mark.parametrize("command", ["show", "retry", "discard"])
def test_bytes_that_are_no_text_are_a_usage_error(database: str, command: str) -> None:
    # how Python passes them on
    line = error_line(call("dead-letter", command, "a\udcff", "--dsn", database), 2)
    assert "'a?' holds bytes that are no text in this shell's locale" in line


@pytest.mark.parametrize("command", ["retry", "discard"])
@pytest.mark.parametrize("arguments", [(), ("ada", "--all")])
def test_users_or_all_and_not_both(command: str, arguments: tuple[str, ...]) -> None:
    line = error_line(call("dead-letter", command, *arguments), 2)
    assert "expected users, or --all, and not both" in line


def test_the_operator_may_do_all_of_it(
    operator: str, db: Connection[Any], people: dict[str, UUID]
) -> None:
    assert "ada" in output(call("dead-letter", "list", "--dsn", operator))
    assert "ada" in output(call("dead-letter", "show", "ada", "--dsn", operator))
    output(call("dead-letter", "retry", "ada", "--dsn", operator))
    output(call("dead-letter", "discard", "grace", "--dsn", operator))
    assert (letters(db), len(queue(db))) == ({people["ada"]}, 1)


@pytest.mark.parametrize(
    "arguments", [("list",), ("show", "ada"), ("retry", "ada"), ("discard", "ada")]
)
def test_a_detached_database_says_what_to_do(
    database: str, db: Connection[Any], arguments: tuple[str, ...]
) -> None:
    db.execute("select builder_score.detach()")
    line = error_line(call("dead-letter", *arguments, "--dsn", database))
    assert "detached" in line
    assert "builder_score.attach()" in line
