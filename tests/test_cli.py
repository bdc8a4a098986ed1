"""The commands as people and programs meet them: what they print, and how they end."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict

from pyscore.cluster import PrivateCluster
from tests.catalogue import dump
from tests.commands import ROOT, Done, call, environment, error_line, output, pyscore, running
from tests.community import add_user, configure, drain, queue, score
from tests.conftest import dsn


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.01)


@pytest.fixture
def role(server: PrivateCluster) -> Generator[str]:
    """A role that may log in and no more."""
    name = f"cli_{uuid4().hex[:12]}"
    server.psql("-c", f"create role {name} login")
    yield name
    server.psql("-c", f"drop role {name}")


def as_role(server: PrivateCluster, database: str, role: str) -> str:
    return dsn(server, str(conninfo_to_dict(database)["dbname"]), user=role)


# migrate, uninstall -------------------------------------------------------------------------------


def test_migrate_says_where_the_database_is_now(empty_database: str) -> None:
    said = output(pyscore("migrate", "--dsn", empty_database))
    assert "keep `pyscore worker` running instead" in said, "there is no pg_cron in this database"
    assert said.splitlines()[-1] == "at revision 0005"


def test_uninstall_asks_first_and_no_changes_nothing(server: PrivateCluster, database: str) -> None:
    before = dump(server, database)
    done = pyscore("uninstall", "--dsn", database, stdin="n\n")
    assert done.returncode == 1
    name = conninfo_to_dict(database)["dbname"]
    assert "Remove the schema builder_score" in done.stderr
    assert f"database {name}" in done.stderr
    assert "Traceback" not in done.stderr
    assert dump(server, database) == before


def test_uninstall_goes_ahead_on_yes(database: str, db: Connection[Any]) -> None:
    assert "uninstalled" in output(pyscore("uninstall", "--dsn", database, stdin="y\n"))
    assert db.execute("select to_regnamespace('builder_score')").fetchone() == (None,)


# worker -------------------------------------------------------------------------------------------


def test_worker_once_does_what_is_due_and_returns(database: str, db: Connection[Any]) -> None:
    ada = add_user(db, "ada", bio="ships")
    output(pyscore("worker", "--once", "--dsn", database))
    assert (score(db, ada), queue(db)) == (3, [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_worker_cleanly(
    database: str, db: Connection[Any], number: signal.Signals
) -> None:
    with running("worker", "--dsn", database) as worker:
        ada = add_user(db, "ada", bio="ships")
        wait_until(lambda: score(db, ada) == 3, "the score arrives while the worker runs")
        worker.send_signal(number)
        _, stderr = worker.communicate(timeout=20)
    assert worker.returncode == 0
    assert stderr.splitlines()[1:] == ["stopped"]
    assert stderr.startswith("working on ")


def test_a_batch_that_a_signal_interrupts_is_done_again_not_half_done(
    database: str, db: Connection[Any]
) -> None:
    # a batch that lasts as long as this test needs
    db.execute(
        "create function hold() returns trigger language plpgsql as"
        " 'begin perform pg_advisory_xact_lock(42); return new; end'"
    )
    db.execute("create trigger hold before update on users for each row execute function hold()")
    configure(db, lock_timeout="10 seconds")
    db.execute("select pg_advisory_lock(42)")
    ada, grace = add_user(db, "ada", bio="ships"), add_user(db, "grace", bio="ships")
    with running("worker", "--dsn", database) as worker:
        blocked = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
        wait_until(lambda: db.execute(blocked).fetchall() == [(1,)], "a batch is under way")
        worker.send_signal(signal.SIGTERM)
        worker.communicate(timeout=20)
        assert worker.returncode == 0
    assert db.execute(blocked).fetchall() == [(0,)], "its batch is still running"
    assert (score(db, ada), score(db, grace), len(queue(db))) == (0, 0, 2)
    assert db.execute("select count(*) from builder_score.score_state").fetchone() == (0,)
    db.execute("select pg_advisory_unlock(42)")
    drain(db)
    assert (score(db, ada), score(db, grace), len(queue(db))) == (3, 3, 0)


def test_the_worker_survives_the_loss_of_its_backend(database: str, db: Connection[Any]) -> None:
    resident = (
        "select pid from pg_stat_activity where application_name = 'builder-score-worker'"
        " and datname = current_database()"
    )
    with running("worker", "--dsn", database) as worker:
        wait_until(lambda: len(db.execute(resident).fetchall()) == 1, "the worker is connected")
        (old,) = db.execute(resident).fetchall()
        db.execute("select pg_terminate_backend(%s)", old)
        wait_until(lambda: db.execute(resident).fetchall() not in ([], [old]), "it comes back")
        ada = add_user(db, "ada", bio="ships")
        wait_until(lambda: score(db, ada) == 3, "the score arrives")
        worker.send_signal(signal.SIGTERM)
        _, stderr = worker.communicate(timeout=20)
    assert worker.returncode == 0
    _, trouble, *_ = stderr.splitlines()
    assert trouble.startswith("pyscore: ")
    assert trouble.endswith("; trying again")
    assert "Traceback" not in stderr


SESSIONS = "select sessions from pg_stat_database where datname = current_database()"
PAUSED = "update builder_score.settings set paused = true, paused_reason = 'maintenance'"


@pytest.mark.parametrize(
    ("statement", "obstacle"),
    [
        (PAUSED, "paused (maintenance): pyscore resume"),
        ("select builder_score.detach()", "detached: SELECT * FROM builder_score.attach()"),
    ],
)
def test_worker_once_says_that_it_may_not_work(
    database: str, db: Connection[Any], statement: str, obstacle: str
) -> None:
    db.execute(statement.encode())
    done = call("worker", "--once", "--dsn", database)
    assert (done.returncode, done.stderr) == (0, f"nothing was processed: {obstacle}\n")
    db.execute(
        "insert into builder_score.score_recalc_queue (user_id, priority, reason)"
        " values (gen_random_uuid(), 20, 'test')"
    )
    line = error_line(call("worker", "--once", "--dsn", database), 3)
    assert line == f"pyscore: nothing was processed: {obstacle}"


def test_a_paused_worker_says_so_once_and_goes_on(database: str, db: Connection[Any]) -> None:
    db.execute(PAUSED.encode())
    with running("worker", "--dsn", database) as worker:
        assert worker.stderr is not None
        assert worker.stderr.readline().startswith("working on ")
        said = worker.stderr.readline()
        assert said == "nothing is processed: paused (maintenance): pyscore resume\n"
        # it comes for a look and leaves
        looks: set[Any] = set()

        def looked_again() -> bool:
            looks.update(db.execute(SESSIONS).fetchall())
            return len(looks) > 2

        wait_until(looked_again, "it has looked again and again")
        db.execute("update builder_score.settings set paused = false, paused_reason = null")
        assert worker.stderr.readline() == "going on\n"
        ada = add_user(db, "ada", bio="ships")
        wait_until(lambda: score(db, ada) == 3, "the score arrives")
        worker.send_signal(signal.SIGTERM)
        _, stderr = worker.communicate(timeout=20)
    assert stderr == "stopped\n"


# errors -------------------------------------------------------------------------------------------

COMMANDS = [
    ("migrate",),
    ("uninstall", "--yes"),
    ("leaderboard",),
    ("explain", "ada"),
    ("rank", "ada"),
    ("recompute", "ada"),
    ("recompute", "--all"),
    ("status",),
    ("verify",),
    ("verify", "--repair"),
    ("dead-letter", "list"),
    ("dead-letter", "retry", "--all"),
    ("dead-letter", "discard", "--all", "--yes"),
    ("pause",),
    ("resume",),
    ("settings",),
    ("settings", "set", "batch_size", "7"),
    ("worker",),
    ("worker", "--once"),
]


@pytest.mark.parametrize(
    "arguments", [(), ("recompute",), ("status", "--no-such-option"), ("no-such-command",)]
)
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...]) -> None:
    done = call(*arguments)
    assert done.returncode == 2
    if arguments:
        assert "--help" in error_line(done, 2)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_server_that_is_down_is_one_line(
    server: PrivateCluster, command: tuple[str, ...]
) -> None:
    address = "postgresql://app:s3cret@127.0.0.1:1/app?sslmode=disable"
    line = error_line(call(*command, "--dsn", address))
    assert "cannot connect to host 127.0.0.1, port 1, database app, user app:" in line
    assert "Connection refused" in line, "the cause, not libpq's guess alone"
    assert "check that the server runs and the address is right" in line
    assert "s3cret" not in line


@pytest.mark.parametrize(
    "address",
    [
        "mysql://app:s3cret@localhost/app",
        "postgresql://app:s3cret@localhost/app?no_such_option=1",
        "host=localhost password=s3cret no_such_option=1",
        "password=s3cret' host",
        "s3cret",
    ],
)
def test_an_address_that_is_none_is_one_line_without_the_password(address: str) -> None:
    done = call("status", "--dsn", address)
    line = error_line(done, 2)
    assert "--dsn" in line
    assert "expected postgresql://user@host:port/database" in line
    assert "s3cret" not in line


@pytest.mark.parametrize("variables", [{}, {"DATABASE_URL": "postgresql://app:s3cret\udcff@h/"}])
def test_an_address_that_is_no_text_is_one_line(variables: dict[str, str]) -> None:
    arguments = () if variables else ("--dsn", "password=s3cret host=\udcff")
    line = error_line(call("status", *arguments, **variables), 2)
    assert f"{'DATABASE_URL' if variables else '--dsn'} holds bytes that are not text" in line
    assert "expected postgresql://user@host:port/database" in line
    assert "s3cret" not in line


def test_a_wrong_password_is_never_printed() -> None:
    with PrivateCluster(settings={"fsync": False}) as server:
        server.psql("-c", "create role app login password 'right'")
        hba = server.data_dir / "pg_hba.conf"
        hba.write_text("host all app all scram-sha-256\n" + hba.read_text())
        server.psql("-c", "select pg_reload_conf()")
        address = f"postgresql://app:s3cret@127.0.0.1:{server.port}/postgres"
        line = error_line(pyscore("status", "--dsn", address))
        assert 'password authentication failed for user "app"' in line
        assert "s3cret" not in line


# a leaderboard needs users alone
@pytest.mark.parametrize("command", COMMANDS[3:])
def test_a_database_without_our_schema_is_one_line(
    empty_database: str, command: tuple[str, ...]
) -> None:
    line = error_line(call(*command, "--dsn", empty_database))
    assert "builder_score is not installed in this database" in line
    assert "pyscore migrate" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_a_role_without_privileges_is_one_line(
    server: PrivateCluster, role: str, database: str, command: tuple[str, ...]
) -> None:
    before = dump(server, database)
    line = error_line(call(*command, "--dsn", as_role(server, database, role)))
    assert "permission denied" in line
    if command[0] not in ("migrate", "uninstall"):
        grant = f"a DBA may allow it: GRANT builder_score_operator TO {role}"
        assert line.endswith(f"; {grant}")
    assert dump(server, database) == before


def test_the_operator_role_may_look_and_recompute_and_no_more(
    server: PrivateCluster, role: str, database: str, db: Connection[Any]
) -> None:
    server.psql("-c", f"grant builder_score_operator to {role}")
    address = as_role(server, database, role)
    add_user(db, "ada", bio="ships")
    assert output(call("recompute", "ada", "--dsn", address)).startswith("ada: 0 -> 3")
    assert output(call("explain", "ada", "--dsn", address)).startswith("ada: 3,")
    assert output(call("rank", "ada", "--dsn", address)).startswith("ada: rank 1 of 1")
    assert output(call("recompute", "--all", "--dsn", address)).startswith("everyone is enqueued")
    assert call("status", "--dsn", address).returncode == 3
    output(call("worker", "--once", "--dsn", address))
    with psycopg.connect(address, autocommit=True) as operator:
        operator.execute("update builder_score.settings set paused = true")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            operator.execute("update users set builder_score = 100")
    error_line(call("uninstall", "--yes", "--dsn", address))


def test_a_detached_database_says_what_to_do(database: str, db: Connection[Any]) -> None:
    add_user(db, "ada")
    db.execute("select builder_score.detach()")
    for command in ("recompute", "explain", "rank"):
        line = error_line(call(command, "ada", "--dsn", database))
        assert "builder_score is detached from the host's tables. Its views" in line
        assert "builder_score.attach()" in line


def test_where_nothing_may_be_written_the_primary_is_named(
    database: str, db: Connection[Any]
) -> None:
    add_user(db, "ada")
    name = conninfo_to_dict(database)["dbname"]
    db.execute(f"alter database {name} set default_transaction_read_only = on".encode())
    line = error_line(call("recompute", "ada", "--dsn", database))
    assert "read-only transaction" in line
    assert "run it on the primary" in line


def test_what_is_typed_is_no_trouble_for_the_terminal() -> None:
    line = error_line(call("stat\x1b[2J\udcff"), 2)
    assert "No such command 'stat?[2J?'" in line
    assert "Did you mean 'status'?" in error_line(call("statu"), 2)


# Ctrl-C -------------------------------------------------------------------------------------------

# sends itself what Ctrl-C sends, at the moment when a module is about to be loaded
INTERRUPTED = """
import os, signal, sys
module, sys.argv = sys.argv[1], ["pyscore", *sys.argv[2:]]
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from pyscore.cli import main
main()
"""


def run_python(program: str, *arguments: str) -> Done:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment()
    )


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("click", ["--help"]),
        ("psycopg", ["status"]),
        ("pyscore.cli.explain", ["explain", "ada"]),
        ("pyscore.cli.version", ["--version"]),
    ],
)
def test_interrupted_while_it_is_loading(module: str, arguments: list[str]) -> None:
    done = run_python(INTERRUPTED, module, *arguments)
    assert (done.stderr, done.returncode) == ("pyscore: stopped\n", 1)


def test_interrupted_while_it_connects() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with running("status", "--dsn", f"host=127.0.0.1 port={port} sslmode=disable") as process:
            connection, _ = silent.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                _, stderr = process.communicate(timeout=20)
    assert (stderr, process.returncode) == ("pyscore: stopped\n", 1)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--nonsense"], ["explain", "--help"], ["leaderboard", "-h"]]
)
def test_help_loads_no_more_than_it_needs(arguments: list[str]) -> None:
    program = f"""
import sys
sys.argv = ["pyscore", *{arguments}]
from pyscore.cli import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""
    loaded = set(run_python(program).stderr.split())
    assert "click" in loaded
    assert not loaded & {"alembic", "sqlalchemy"}
    if len(arguments) == 1:
        assert not loaded & {"psycopg", "rich", "pyscore.cli.explain"}


# other people's functions -------------------------------------------------------------------------

# They fit better than PostgreSQL's own, which take an integer. Created by the superuser here: whose
# they are makes no difference to which is found.
BETTER_FITTING = (
    "create table public.loot (who text)",
    """
    create function public.col_description(oid, smallint) returns text language plpgsql as $$
    begin
        insert into public.loot values (current_user);
        return pg_catalog.col_description($1, $2::integer);
    end $$
    """,
    """
    create function public.round(numeric, smallint) returns numeric language plpgsql as $$
    begin
        insert into public.loot values (current_user);
        return pg_catalog.round($1, $2::integer);
    end $$
    """,
)


@pytest.mark.parametrize(
    "command",
    [
        ("settings",),
        ("status",),
        ("explain", "ada"),
        ("rank", "ada"),
        ("recompute", "ada"),
        ("verify",),
        ("leaderboard",),
        ("--version",),
    ],
)
def test_a_superuser_runs_no_function_of_somebody_elses(
    database: str, db: Connection[Any], command: tuple[str, ...]
) -> None:
    add_user(db, "ada", bio="ships")
    drain(db)
    for statement in BETTER_FITTING:
        db.execute(statement.encode())
    # the bait is one: a bare name finds it
    db.execute("select col_description('users'::regclass, 1::smallint)")
    assert db.execute("delete from public.loot returning who").fetchall() == [("postgres",)]
    done = call(*command, "--dsn", database)
    assert done.returncode in (0, 3), done.stderr
    assert db.execute("select * from public.loot").fetchall() == []


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("batch_size", 0, "batch_size must be between 1 and 10000"),
        ("poll_interval", "2 seconds", "poll_interval must be between 20 ms and 1 second"),
        ("debounce_window", "-1 second", "debounce_window must be between 0 and 1 day"),
        ("retry_cap", "1 second", "retry_cap must be between retry_base and 7 days"),
    ],
)
def test_a_setting_out_of_range_says_what_is_expected(
    db: Connection[Any], setting: str, value: Any, expected: str
) -> None:
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        configure(db, **{setting: value})
    assert caught.value.diag.constraint_name == expected
