"""``pyscore settings``, ``pause`` and ``resume``."""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict

from pyscore.cli.settings import NAMES
from pyscore.cluster import PrivateCluster
from tests.commands import call, error_line, output, pyscore
from tests.community import add_user, configure, drain, one, score
from tests.conftest import dsn

TERMINAL = {"FORCE_COLOR": "1", "TERM": "dumb"}
"""What has rich take a pipe for a terminal: one of 80 columns, without colours."""


@pytest.fixture
def operator(server: PrivateCluster, database: str) -> Iterator[str]:
    """The address for a role that may do what operators may."""
    role = f"settings_{uuid4().hex[:12]}"
    server.psql("-c", f"create role {role} login in role builder_score_operator")
    yield dsn(server, str(conninfo_to_dict(database)["dbname"]), user=role)
    server.psql("-c", f"drop role {role}")


def setting(db: Connection[Any], name: str) -> Any:
    return one(db, f"select {name} from builder_score.settings")


def everything(db: Connection[Any]) -> Any:
    return one(db, "select to_jsonb(s) from builder_score.settings as s")


# get ----------------------------------------------------------------------------------------------


def test_all_settings_are_shown_with_their_meaning(database: str) -> None:
    said = output(call("settings", "--dsn", database))
    assert output(call("settings", "get", "--dsn", database)) == said
    heading, *lines = said.splitlines()
    assert heading.split() == ["setting", "value", "meaning"]
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(NAMES)
    assert "one_row" not in said
    (window,) = (line for line in lines if line.startswith("debounce_window"))
    assert " ".join(window.split()) == (
        "debounce_window 5 minutes Least time between two unforced recalculations of a user; "
        "0 is off."
    )
    assert "Default" not in said
    on_terminal = output(call("settings", "--dsn", database, **TERMINAL)).splitlines()
    assert max(map(len, on_terminal)) <= 80


def test_the_names_known_without_a_database_are_its_columns(db: Connection[Any]) -> None:
    columns = db.execute(
        "select attname from pg_attribute where attrelid = 'builder_score.settings'::regclass"
        " and attnum > 0 and attname <> 'one_row' order by attnum"
    ).fetchall()
    assert [name for (name,) in columns] == list(NAMES)


def test_what_is_not_as_at_first_is_marked(database: str, db: Connection[Any]) -> None:
    configure(db, debounce_window="90 minutes", batch_size=100, paused_reason="a restore")
    said = " ".join(output(call("settings", "--dsn", database)).split())
    assert "debounce_window 1 hour 30 minutes " in said
    assert "0 is off. Default: 5 minutes. " in said
    assert said.endswith("for the next person who looks. Default: none.")
    assert said.count("Default: ") == 3
    data = json.loads(output(call("settings", "--json", "--dsn", database)))
    assert list(data) == list(NAMES)
    assert {name for name, one in data.items() if one["changed"]} == {
        "debounce_window",
        "batch_size",
        "paused_reason",
    }
    assert data["batch_size"] == {
        "value": 100,
        "default": 500,
        "changed": True,
        "meaning": "Users that a worker takes in one transaction, at most.",
    }
    assert (data["debounce_window"]["value"], data["debounce_window"]["default"]) == (5400, 300)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", "500"),
        ("poll_interval", "0.1 seconds"),
        ("retry_cap", "1 hour"),
        ("refresh_after", "7 days"),
        ("paused", "false"),
        ("paused_reason", ""),
    ],
)
def test_the_value_of_one_is_printed_bare(database: str, name: str, value: str) -> None:
    assert output(call("settings", "get", name, "--dsn", database)) == f"{value}\n"


def test_a_reason_cannot_play_tricks_on_the_terminal(database: str, db: Connection[Any]) -> None:
    configure(db, paused_reason="a\x1b[2J\nrestore")
    arguments = ("settings", "get", "paused_reason", "--dsn", database)
    assert output(call(*arguments, **TERMINAL)) == "a?[2J?restore\n"
    assert output(call(*arguments)) == "a\x1b[2J\nrestore\n", "a script has it as it is"


def test_one_in_json_is_that_one(database: str) -> None:
    data = json.loads(output(call("settings", "get", "batch_size", "--json", "--dsn", database)))
    assert (data["value"], data["changed"]) == (500, False)


def test_options_before_the_command_hold_for_it(database: str) -> None:
    before = call("settings", "--json", "--dsn", database, "get", "batch_size")
    assert json.loads(output(before))["value"] == 500
    nowhere = "postgresql://app@127.0.0.1:1/app?sslmode=disable"
    assert "cannot connect" in error_line(call("settings", "--dsn", nowhere, "set", "batch_size=1"))


# set ----------------------------------------------------------------------------------------------


def test_a_change_is_made_and_told(database: str, db: Connection[Any]) -> None:
    said = output(call("settings", "set", "debounce_window", "1 minute", "--dsn", database))
    assert said == "debounce_window: 5 minutes -> 1 minute\n"
    assert setting(db, "debounce_window") == timedelta(minutes=1)
    said = output(call("settings", "set", "debounce_window", "60 seconds", "--dsn", database))
    assert said == "debounce_window: 1 minute, as it was\n"


def test_several_are_changed_in_either_form(database: str, db: Connection[Any]) -> None:
    changes = ("batch_size=100", "poll_interval", "20 ms", "retry_cap=2 hours", "retry_base", "1")
    said = output(call("settings", "set", *changes, "--dsn", database))
    assert said.splitlines() == [
        "batch_size: 500 -> 100",
        "poll_interval: 0.1 seconds -> 0.02 seconds",
        "retry_cap: 1 hour -> 2 hours",
        "retry_base: 10 seconds -> 1 second",
    ]
    assert (setting(db, "batch_size"), setting(db, "retry_cap")) == (100, timedelta(hours=2))
    done = call("settings", "set", "--json", "batch_size", "7", "--dsn", database)
    assert json.loads(output(done))["batch_size"]["value"] == 7


def test_two_that_are_right_only_together_can_be_set_together(
    database: str, db: Connection[Any]
) -> None:
    configure(db, retry_cap="1 minute")
    together = ("retry_base=30 minutes", "retry_cap=30 minutes")
    output(call("settings", "set", *together, "--dsn", database))
    assert setting(db, "retry_base") == setting(db, "retry_cap") == timedelta(minutes=30)


def test_what_get_prints_can_be_set(database: str, db: Connection[Any]) -> None:
    for text in ("1 day", "23 hours 59 minutes 59.999999 seconds", "0 seconds", "1 second"):
        output(call("settings", "set", "debounce_window", text, "--dsn", database))
        assert output(call("settings", "get", "debounce_window", "--dsn", database)) == f"{text}\n"


WRONG: dict[tuple[str, ...], str] = {
    ("batch_siz", "1"): "no such setting: batch_siz; expected one of debounce_window, batch_size,",
    ("batch_siz=1",): "no such setting: batch_siz; ",
    ("--no-such-option", "1"): "no such setting: --no-such-option; ",
    ("one_row", "true"): "no such setting: one_row; ",
    ("batch_size",): "batch_size has no value: expected NAME VALUE or NAME=VALUE",
    ("batch_size", "1", "batch_size=2"): "batch_size is given twice",
    ("paused", "true"): "`pyscore pause --reason TEXT` and `pyscore resume` do it",
    ("paused_reason=x",): "`pyscore pause --reason TEXT` and `pyscore resume` do it",
    ("batch_size", "many"): "batch_size must be a whole number, not 'many'",
    ("batch_size", "1.5"): "batch_size must be a whole number, not '1.5'",
    ("batch_size", "99999999999"): (
        "batch_size must be between 1 and 10000; given: batch_size 99999999999; nothing was changed"
    ),
    ("batch_size", "-99999999999"): "batch_size must be between 1 and 10000; given: ",
    ("backfill_per_second=99999999999",): "backfill_per_second must be between 1 and 1000000;",
    ("debounce_window", "soon"): "debounce_window must be a duration such as '5 minutes',",
    ("debounce_window", "9999999999 years"): "debounce_window must be between 0 and 1 day;",
    ("refresh_after", "200000000 years"): "refresh_after must be between 1 day and 365 days;",
    ("retry_cap", "99999999999999999999 s"): "retry_cap must be between retry_base and 7 days;",
    ("batch_size", "0"): "batch_size must be between 1 and 10000; given: batch_size 0;",
    ("debounce_window", "-1 second"): (
        "debounce_window must be between 0 and 1 day; given: debounce_window -1 second;"
    ),
    ("batch_size", "7", "retry_base", "2 hours"): (
        "retry_base must be between 10 ms and 1 hour; given: retry_base 2 hours;"
    ),
    ("retry_cap=1",): "retry_cap must be between retry_base and 7 days; given: retry_cap 1;",
}


@pytest.mark.parametrize("changes", WRONG)
def test_what_cannot_be_set_is_one_line_and_nothing_changes(
    database: str, db: Connection[Any], changes: tuple[str, ...]
) -> None:
    before = everything(db)
    # a right one first: it is not to be half done
    line = error_line(call("settings", "set", "max_attempts=9", *changes, "--dsn", database), 2)
    assert WRONG[changes] in line
    assert everything(db) == before


def test_an_unknown_name_to_get_is_one_line() -> None:
    assert "no such setting: batch" in error_line(call("settings", "get", "batch"), 2)


def test_the_operator_may_look_and_is_told_who_may_change(
    operator: str, db: Connection[Any]
) -> None:
    assert output(call("settings", "get", "batch_size", "--dsn", operator)) == "500\n"
    line = error_line(call("settings", "set", "batch_size", "7", "--dsn", operator))
    assert "permission denied for table settings: settings are changed by the role that" in line
    assert setting(db, "batch_size") == 500


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("pyscore settings get re", ["retry_base", "retry_cap", "refresh_after"]),
        ("pyscore settings set pa", []),
        ("pyscore settings set batch_size 7 notif", ["notify_max_ids"]),
        ("pyscore dead-letter re", ["retry"]),
    ],
)
def test_the_shell_completes_names(words: str, offered: list[str]) -> None:
    # what bash sends, and the last word is the one to complete
    done = pyscore(
        _PYSCORE_COMPLETE="bash_complete",
        COMP_WORDS=words,
        COMP_CWORD=str(len(words.split()) - 1),
    )
    assert [line.removeprefix("plain,") for line in done.stdout.split()] == offered


# pause, resume ------------------------------------------------------------------------------------


def test_pause_stops_the_worker_and_resume_lets_it_go_on(
    database: str, db: Connection[Any]
) -> None:
    said = output(call("pause", "--reason", "a restore", "--dsn", database))
    first, second, last = said.splitlines()
    assert first == "paused: a restore (before: running)"
    assert second.startswith("a batch that is running now finishes")
    assert last == "go on with: pyscore resume"
    ada = add_user(db, "ada", bio="ships")
    drain(db)
    assert score(db, ada) == 0

    said = output(call("resume", "--dsn", database))
    assert said.splitlines() == [
        "running again (before: paused, a restore)",
        "nothing runs the worker: pyscore status",
    ]
    drain(db)
    assert score(db, ada) == 3


def test_pausing_again_keeps_the_reason_unless_a_new_one_is_given(
    database: str, db: Connection[Any]
) -> None:
    def pause(*options: str) -> str:
        return output(call("pause", *options, "--dsn", database)).splitlines()[0]

    assert pause() == "paused (before: running)"
    assert setting(db, "paused_reason") is None
    assert pause("--reason", "a restore") == ("paused: a restore (before: paused, no reason given)")
    assert pause() == "paused already: a restore"
    assert pause("--reason", "an audit") == "paused: an audit (before: paused, a restore)"
    assert pause("--reason", " ") == "paused (before: paused, an audit)"
    assert (setting(db, "paused"), setting(db, "paused_reason")) == (True, None)


def test_a_reason_of_bytes_that_are_no_text_is_a_usage_error(
    database: str, db: Connection[Any]
) -> None:
    line = error_line(call("pause", "--reason", "a \udcff", "--dsn", database), 2)
    assert "--reason" in line
    assert "'a ?' holds bytes that are no text in this shell's locale" in line
    assert setting(db, "paused") is False


def test_resume_forgets_the_reason_and_may_be_said_twice(
    database: str, db: Connection[Any]
) -> None:
    configure(db, paused=True, paused_reason="a restore")
    output(call("resume", "--dsn", database))
    assert (setting(db, "paused"), setting(db, "paused_reason")) == (False, None)
    assert output(call("resume", "--dsn", database)) == "running already\n"
    assert output(call("pause", "--dsn", database)).splitlines()[0] == "paused (before: running)"


def test_pause_and_resume_in_json_say_what_was_before(database: str) -> None:
    done = call("pause", "--reason", "a restore", "--json", "--dsn", database)
    assert json.loads(output(done)) == {
        "paused": True,
        "paused_reason": "a restore",
        "paused_before": False,
        "paused_reason_before": None,
    }
    assert json.loads(output(call("resume", "--json", "--dsn", database))) == {
        "paused": False,
        "paused_reason": None,
        "paused_before": True,
        "paused_reason_before": "a restore",
    }


def test_resume_says_who_goes_on(database: str, db: Connection[Any], cron_database: str) -> None:
    db.execute("call builder_score.run_worker('0')")
    configure(db, paused=True)
    said = output(call("resume", "--dsn", database))
    assert "the worker goes on, within a minute at the latest" in said
    output(call("pause", "--dsn", cron_database))
    said = output(call("resume", "--dsn", cron_database))
    assert "pg_cron's next run, within a minute, goes on" in said


def test_the_operator_may_pause_and_resume(operator: str, db: Connection[Any]) -> None:
    output(call("pause", "--reason", "a restore", "--dsn", operator))
    assert (setting(db, "paused"), setting(db, "paused_reason")) == (True, "a restore")
    output(call("resume", "--dsn", operator))
    assert setting(db, "paused") is False


@pytest.mark.parametrize("command", ["pause", "resume"])
def test_where_nothing_can_be_written_is_one_line(database: str, command: str) -> None:
    options = "-c default_transaction_read_only=on"
    line = error_line(call(command, "--dsn", database, PGOPTIONS=options))
    assert "read-only transaction" in line
