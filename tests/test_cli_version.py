"""``pyscore`` itself: its version, its help, the database for all commands, shell completion."""

import re
from typing import Any
from uuid import uuid4

import click
import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict

from pyscore import __version__, migrator, schema
from pyscore.cli.root import SECTIONS, cli
from pyscore.cluster import PrivateCluster
from tests.commands import call, error_line, output, pyscore
from tests.community import add_user
from tests.conftest import dsn

NOWHERE = "postgresql://app:s3cret@127.0.0.1:1/app?sslmode=disable"


def lines(*arguments: str, **variables: str) -> list[str]:
    return output(call(*arguments, **variables)).splitlines()


# --version ----------------------------------------------------------------------------------------


def test_versions_of_the_package_and_of_the_schema(database: str) -> None:
    package, schema = lines("--version", "--dsn", database)
    assert package == f"pyscore {__version__}"
    name = conninfo_to_dict(database)["dbname"]
    assert re.fullmatch(rf"schema {migrator.head()} \(host .*, database {name}, .*\)", schema)
    assert lines("--dsn", database, "--version") == [package, schema]
    assert lines("--version", DATABASE_URL=database) == [package, schema]


def test_the_newest_revision_is_alembics() -> None:
    assert schema.newest() == migrator.head()


def test_a_database_without_our_schema(empty_database: str) -> None:
    _, schema = lines("--version", "--dsn", empty_database)
    name = conninfo_to_dict(empty_database)["dbname"]
    assert schema.startswith("schema not installed in host ")
    assert f"database {name}" in schema


@pytest.mark.parametrize("address", [NOWHERE, "mysql://app:s3cret@localhost/app"])
def test_no_database_costs_one_line(address: str) -> None:
    package, schema = lines("--version", DATABASE_URL=address)
    assert package == f"pyscore {__version__}"
    assert schema.startswith("schema unknown: ")
    assert "s3cret" not in schema


def test_an_address_that_is_none_is_wrong_usage() -> None:
    assert "--dsn names a mysql:// database" in error_line(
        call("--version", "--dsn", "mysql://localhost/app"), 2
    )


def test_a_role_that_may_not_look(server: PrivateCluster, database: str) -> None:
    role = f"version_{uuid4().hex[:12]}"
    server.psql("-c", f"create role {role} login")
    name = str(conninfo_to_dict(database)["dbname"])
    _, schema = lines("--version", "--dsn", dsn(server, name, user=role))
    server.psql("-c", f"drop role {role}")
    assert schema.startswith("schema unknown: permission denied")
    assert f"database {name}" in schema


def test_a_server_that_never_answers_is_waited_for_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def connect(conninfo: str, **options: Any) -> Connection[Any]:
        asked.append(conninfo)
        raise psycopg.OperationalError("timeout expired")

    monkeypatch.setattr(psycopg, "connect", connect)
    lines("--version", "--dsn", "host=db1")
    lines("--version", "--dsn", "host=db1 connect_timeout=9")
    assert [conninfo_to_dict(one)["connect_timeout"] for one in asked] == ["3", "9"]


# --dsn for all commands ---------------------------------------------------------------------------


def test_the_database_can_be_named_first(database: str, db: Connection[Any]) -> None:
    add_user(db, "ada", bio="ships")
    assert output(call("--dsn", database, "recompute", "ada")).startswith("ada: 0 -> 3")
    assert output(call("--dsn", database, "settings", "get", "batch_size")) == "500\n"
    output(call("--dsn", database, "dead-letter", "list"))


def test_a_commands_own_dsn_wins(database: str, db: Connection[Any]) -> None:
    add_user(db, "ada", bio="ships")
    done = call("--dsn", NOWHERE, "recompute", "ada", "--dsn", database)
    assert output(done).startswith("ada: 0 -> 3")


def test_both_win_over_the_environment(database: str, db: Connection[Any]) -> None:
    add_user(db, "ada")
    output(call("--dsn", database, "explain", "ada", DATABASE_URL=NOWHERE))


# help ---------------------------------------------------------------------------------------------


def test_help_lists_every_command_once_in_its_section() -> None:
    said = output(call("--help"))
    listed = [name for names in SECTIONS.values() for name in names]
    assert sorted(cli.commands) == sorted(listed)
    at = [said.index(f"\n{section}:\n") for section in SECTIONS]
    assert at == sorted(at)
    for name in cli.commands:
        (line,) = re.findall(rf"^  {name} +(.+)$", said, re.MULTILINE)
        assert line[0].isupper()


def test_without_arguments_the_help_is_printed() -> None:
    for arguments in ((), ("dead-letter",)):
        done = call(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("Usage: pyscore")
        assert len(done.stderr.splitlines()) > 10


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_commands_help_fits_eighty_columns(name: str) -> None:
    said = output(call(name, "--help"))
    assert said.startswith(f"Usage: pyscore {name}")
    assert max(map(len, said.splitlines())) <= 80


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_the_list_says_what_the_commands_say_themselves(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.name == name
    assert cli.commands[name].short_help == command.get_short_help_str(80)


# completion ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_asks_pyscore(shell: str) -> None:
    said = output(call("completion", shell))
    assert f"_PYSCORE_COMPLETE={shell}_complete" in said


def test_commands_and_options_complete() -> None:
    def complete(words: str, place: int) -> list[str]:
        variables = {"COMP_WORDS": words, "COMP_CWORD": str(place)}
        said = output(pyscore(_PYSCORE_COMPLETE="bash_complete", **variables))
        return [line.partition(",")[2] for line in said.splitlines()]

    assert complete("pyscore re", 1) == ["report", "recompute", "resume"]
    assert "--version" in complete("pyscore --", 1)
    assert complete("pyscore recompute --a", 2) == ["--all"]


def test_another_shell_is_wrong_usage() -> None:
    line = error_line(call("completion", "tcsh"), 2)
    assert "'bash', 'zsh', 'fish'" in line
