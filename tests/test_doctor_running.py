"""`pyscore doctor` where something goes on: sessions, roles, standbys, failures, an Alembic."""

import json
import re
import shlex
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from pyscore import address as addresses
from pyscore import migrator
from pyscore.cluster import PrivateCluster
from pyscore.doctor import Limits
from pyscore.doctor import examine as examine_with
from tests.commands import call, error_line, output, running
from tests.community import add_user, drain
from tests.conftest import dsn
from tests.examining import HEARD, Patient, examine, follow, level_of, mend, not_ok, of
from tests.host_schemas import PARTITIONED
from tests.hosts import create_application
from tests.interleave import Sessions, until
from tests.poison import poison
from tests.screen import on_screen
from tests.standby import standby_of
from tests.statements import connect, run
from tests.test_host_alembic import UNFILTERED, Application, established


@pytest.fixture(scope="module")
def patient(server: PrivateCluster, template: str) -> Iterator[Patient]:
    with Patient(server, template) as made:
        yield made


@pytest.fixture
def healthy(patient: Patient) -> Iterator[str]:
    """The address of a healthy database, which the test leaves healthy."""
    address = patient.address()
    yield address
    if not_ok(examine(address)) == []:
        patient.is_healthy(address)


@pytest.fixture
def sessions(healthy: str) -> Iterator[Sessions]:
    with Sessions(healthy) as opened:
        yield opened


# What is printed ----------------------------------------------------------------------------------


def test_lines_for_people_are_plain_when_piped_and_name_what_to_do(healthy: str) -> None:
    count = len(examine(healthy))
    with connect(healthy) as db:
        db.execute("alter table users disable trigger builder_score_insert")
        db.execute("alter table projects disable trigger builder_score_insert")
        db.execute(
            "update builder_score.settings set paused = true, paused_reason = 'a\033[1mmove'"
        )
    done = call("doctor", "--dsn", healthy)
    assert (done.returncode, done.stderr) == (3, "")
    *lines, summary = done.stdout.splitlines()
    assert summary == f"{count - 2} ok, 1 warning, 2 failures"
    place = lines.index(
        "fail  triggers       builder_score_insert on public.projects is disabled: "
        "what it should have noticed is lost"
    )
    assert lines[place + 1 : place + 3] == [
        "      ALTER TABLE public.projects ENABLE TRIGGER builder_score_insert;",
        "      SELECT builder_score.enqueue_everyone('a trigger was disabled');",
    ]
    assert "warn  heartbeat      paused (a?[1mmove)" in lines
    assert all(line == line.rstrip() for line in lines)
    with connect(healthy) as db:
        db.execute("alter table users enable trigger all; alter table projects enable trigger all")
        db.execute("update builder_score.settings set paused = false, paused_reason = null")
    said = output(call("doctor", "--dsn", healthy))
    assert said.splitlines()[-1] == f"{count} ok, 0 warnings, 0 failures"


def test_on_a_terminal_remedies_are_never_folded(healthy: str) -> None:
    with connect(healthy) as db:
        db.execute(
            'create publication "a name that is so long that it would not fit" for all tables'
        )
    shown = on_screen("doctor", "--dsn", healthy)
    assert "warn" in shown
    (line,) = [one for one in shown.splitlines() if "DROP PUBLICATION" in one]
    assert line.endswith("COMMIT;")
    with connect(healthy) as db:
        db.execute('drop publication "a name that is so long that it would not fit"')


def test_what_mends_several_things_is_printed_once(server: PrivateCluster, healthy: str) -> None:
    with role(server, "little") as name:
        done = call("doctor", "--dsn", as_role(server, healthy, name))
    assert done.returncode == 3
    assert done.stdout.count("as role postgres, or as a superuser") < done.stdout.count(
        "not looked at"
    )


@pytest.mark.parametrize("option", ["--dsn", "--cron-dsn"])
def test_a_server_that_is_not_there_is_one_line(healthy: str, option: str) -> None:
    addresses = {"--dsn": healthy, option: "postgresql://127.0.0.1:1/nowhere"}
    arguments = [word for pair in addresses.items() for word in pair]
    assert "cannot connect to host 127.0.0.1" in error_line(call("doctor", *arguments))


def test_a_configuration_that_is_not_there_is_wrong_usage(healthy: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "alembic.ini")
    assert missing in error_line(call("doctor", "--dsn", healthy, "--alembic-config", missing), 2)


# Before and after an installation -----------------------------------------------------------------


def test_before_it_is_installed_the_command_that_installs_is_printed(
    server: PrivateCluster, empty_database: str
) -> None:
    findings = examine(empty_database)
    (schema,) = of("schema", findings)
    assert (schema["level"], schema["remedy"]) == ("fail", "pyscore migrate")
    assert [one["check"] for one in findings] == [
        *("server", "schema", "rights", "tables", "pg_cron", "publications")
    ]
    assert level_of("rights", findings) == "ok"
    follow(server, empty_database, schema["remedy"])
    assert level_of("schema", examine(empty_database)) == "ok"


def test_before_it_is_installed_the_applications_tables_are_looked_for(
    server: PrivateCluster, empty_database: str
) -> None:
    def tables() -> tuple[str, str, str | None]:
        (one,) = of("tables", examine(empty_database))
        return one["level"], one["message"], one["remedy"]

    with connect(empty_database) as db:
        assert tables()[0] == "ok"  # none: they will be made
        db.execute("create table users (id bigint primary key)")
        level, message, _ = tables()
        assert level == "fail"
        assert message.endswith("it lacks project_collaborators, projects")
        db.execute("create table projects (id bigint); create table project_collaborators ()")
        level, message, _ = tables()
        assert level == "fail"
        assert message.startswith("the tables in schema public lack projects.owner_id, projects.")
        db.execute("drop table users, projects, project_collaborators")
        db.execute('create schema "The App"; set search_path = "The App"')
        create_application(db)
        level, message, remedy = tables()
        assert (level, remedy) == ("warn", "pyscore migrate --host-schema 'The App'")
        db.execute("create publication feed for table users")
        (published,) = of("publications", examine(empty_database))
        assert published["level"] == "warn"
        assert published["remedy"].endswith("pyscore migrate --subscribers-ready")
        follow(server, empty_database, f"{published['remedy']} --host-schema 'The App'")
        findings = examine(empty_database)
        assert level_of("schema", findings) == "ok"
        assert level_of("attached", findings) == "ok"
        assert level_of("publications", findings) == "ok"


def test_what_a_role_lacks_to_install_is_printed(
    server: PrivateCluster, empty_database: str
) -> None:
    with connect(empty_database) as db, role(server, "installer") as installer:
        create_application(db)
        address = as_role(server, empty_database, installer)
        findings = examine(address)
        said = [one["message"] for one in of("rights", findings)]
        assert said[0] == f"{installer} may not create a schema in this database"
        assert [one.split(",")[0] for one in said[1:4]] == [
            f"{installer} is not the owner of public.{table}"
            for table in ("project_collaborators", "projects", "users")
        ]
        what = "may not create or become the role builder_score_owner: it would own everything"
        assert said[4].startswith(f"{installer} {what}")
        assert [one["level"] for one in of("rights", findings)] == ["fail"] * 4 + ["warn"]
        assert f"GRANT builder_score_owner TO {installer};" in str(findings)
        mend(server, empty_database, of("rights", findings))
        (rights,) = of("rights", examine(address))
        assert rights["message"] == f"{installer} may install"
        run(db, f"drop owned by {installer}")


# What the roles of another database are to an installer: its attributes, whether it was granted the
# owner's, and what follows until PostgreSQL 15 and since.
INSTALLERS = {
    "who may do nothing": ("", False, "warn", "warn"),
    "who was granted the role": ("", True, "ok", "ok"),
    "who was, and does not inherit": ("noinherit", True, "fail", "fail"),
    "who creates roles": ("createrole", False, "ok", "warn"),
    "who does, and does not inherit": ("createrole noinherit", False, "fail", "warn"),
}


@pytest.mark.parametrize("case", INSTALLERS)
def test_whether_an_installer_can_use_roles_that_are_there_is_said_as_migrate_finds_it(
    server: PrivateCluster, template: str, empty_database: str, case: str
) -> None:
    attributes, granted, before_16, since = INSTALLERS[case]
    with connect(empty_database) as db, role(server, "installer", attributes) as installer:
        name = conninfo_to_dict(empty_database)["dbname"]
        server.psql("-c", f"alter database {name} owner to {installer}")
        run(db, f"grant create on schema public to {installer}")  # by name: it may not inherit
        if granted:
            server.psql("-c", f"grant builder_score_owner to {installer}")
        address = as_role(server, empty_database, installer)
        migrate = ("migrate", "--dry-run", "--json", "--dsn", address)
        levels: list[str] = []
        while not levels or levels[-1] != "ok":
            assert len(levels) < 3
            (rights,) = of("rights", examine(address))
            levels.append(rights["level"])
            if rights["level"] == "fail":
                lacks = f"{installer} does not inherit the rights of builder_score_owner"
                assert rights["message"].startswith(lacks)
                assert f"role {lacks}" in error_line(call(*migrate))
            else:
                notes = json.loads(output(call(*migrate)))["notes"]
                alone = [one for one in notes if "may not create or become the role" in one]
                assert len(alone) == (rights["level"] == "warn")
            mend(server, empty_database, [rights])
        assert levels[0] == (since if server.version >= 16 else before_16)
        run(db, f"alter database {name} owner to postgres; drop owned by {installer}")


def test_a_schema_of_that_name_that_is_not_ours(
    server: PrivateCluster, empty_database: str
) -> None:
    with connect(empty_database) as db:
        db.execute("create schema builder_score; create table builder_score.notes ()")
        (schema,) = of("schema", examine(empty_database))
        assert "that pyscore did not make" in schema["message"]
        follow(server, empty_database, schema["remedy"])
        assert level_of("schema", examine(empty_database)) == "ok"
        assert db.execute("select from builder_score_old.notes").fetchall() == []


def test_a_newer_schema_is_said_and_still_looked_at(healthy: str) -> None:
    with connect(healthy) as db:
        db.execute("update builder_score.alembic_version set version_num = '9999'")
        findings = examine(healthy)
        (schema,) = of("schema", findings)
        assert "at revision 9999, newer than this package" in schema["message"]
        assert "pip install --upgrade pyscore" in schema["remedy"]
        assert [check for check, _, _ in not_ok(findings)] == ["schema"]
        run(db, f"update builder_score.alembic_version set version_num = '{migrator.head()}'")


def test_a_schema_in_which_something_is_missing_costs_a_line_and_no_more(healthy: str) -> None:
    with connect(healthy) as db:
        db.execute("alter function builder_score.needed_indexes rename to other")
        findings = examine(healthy)
        assert not_ok(findings) == [
            (
                "indexes",
                "fail",
                "could not be looked at: function builder_score.needed_indexes() does not exist. "
                "No function matches the given name and argument types. You might need to add "
                "explicit type casts",
            )
        ]
        db.execute("alter function builder_score.other rename to needed_indexes")


def test_a_table_of_the_hosts_that_is_missing(healthy: str) -> None:
    with connect(healthy) as db:
        db.execute("drop table project_collaborators cascade")
        (attached,) = of("attached", examine(healthy))
    assert attached["message"] == "schema public has no project_collaborators"
    assert attached["remedy"].endswith("SELECT * FROM builder_score.attach();")


# Roles --------------------------------------------------------------------------------------------


@contextmanager
def role(server: PrivateCluster, name: str, options: str = "") -> Generator[str]:
    name = f"{name}_{uuid4().hex[:8]}"
    server.psql("-c", f"create role {name} login {options}")
    yield name
    server.psql("-c", f"drop owned by {name}", "-c", f"drop role {name}")


def as_role(server: PrivateCluster, address: str, name: str) -> str:
    return dsn(server, str(conninfo_to_dict(address)["dbname"]), user=name)


def test_a_role_that_may_do_nothing_learns_what_it_could_not_look_at(
    server: PrivateCluster, healthy: str
) -> None:
    with role(server, "little") as name:
        address = as_role(server, healthy, name)
        findings = examine(address)
        (schema,) = of("schema", findings)
        assert schema["level"] == "fail"
        assert schema["message"] == (
            f"not looked at as {name}: permission denied for schema builder_score"
        )
        assert level_of("triggers", findings) == "warn"
        assert f"GRANT builder_score_operator TO {name};" in schema["remedy"]
        follow(server, healthy, schema["remedy"])
        (activity,) = [one for one in of("xmin", findings) if one["level"] != "ok"]
        follow(server, healthy, activity["remedy"])
        left = not_ok(examine(address))
        assert [(check, level) for check, level, _ in left] == [
            ("indexes", "warn"),
            ("trial write", "warn"),
        ]


def test_what_of_ours_was_dropped_by_hand_says_how_to_install_anew(
    server: PrivateCluster, empty_database: str
) -> None:
    migrator.upgrade(empty_database)
    with connect(empty_database) as db:
        db.execute("drop view builder_score.health")
        (found,) = of("grants", examine(empty_database))
        assert found["message"].startswith("could not be looked at: relation")
        follow(server, empty_database, found["remedy"])
        db.execute(HEARD)
    assert level_of("grants", examine(empty_database)) == "ok"


def test_the_operator_is_told_of_what_is_broken(server: PrivateCluster, healthy: str) -> None:
    with connect(healthy) as db, role(server, "ops", "in role builder_score_operator") as name:
        db.execute("alter table users disable trigger builder_score_insert")
        findings = examine(as_role(server, healthy, name))
        assert level_of("triggers", findings) == "fail"
        db.execute("alter table users enable trigger builder_score_insert")


def test_where_the_installer_may_not_create_roles_it_is_said_what_that_means(
    server: PrivateCluster, empty_database: str
) -> None:
    name = str(conninfo_to_dict(empty_database)["dbname"])
    with role(server, "plain") as plain:
        server.psql("-c", f"alter database {name} owner to {plain}")
        address = as_role(server, empty_database, plain)
        with connect(empty_database) as db, connect(address) as owner:
            run(db, f"grant create on schema public to {plain}")
            migrator.upgrade(address)
            owner.execute(HEARD)
            add_user(owner, "ann")
            findings = examine(address)
            (roles,) = of("roles", findings)
            assert roles["level"] == "warn"
            for said in (
                f"{plain} could not have roles apart, and owns everything itself",
                f"run with all rights of {plain}",
                "no role that may only look",
            ):
                assert said in roles["message"]
            rest = [check for check, _, _ in not_ok(findings)]
            assert rest in (["roles"], ["roles", "xmin"])
            owner.execute("alter table projects enable row level security")
            owner.execute("alter table projects force row level security")
            (policies,) = of("policies", examine(address))
            assert policies["level"] == "fail"
            assert policies["message"].startswith("row level security is forced on public.projects")
            follow(server, address, policies["remedy"])
            assert level_of("policies", examine(address)) == "ok"
            # as printed: first as a superuser, then as the installer
            superusers, installers = roles["remedy"].split("\n# ")
            follow(server, empty_database, superusers)
            follow(server, address, f"# {installers}")
            owner.execute(HEARD)
            assert level_of("roles", examine(address)) == "ok"
            migrator.downgrade(address)
            server.psql("-c", f"alter database {name} owner to postgres")
            run(db, f"drop owned by {plain} cascade")


def test_a_policy_that_hid_rows_from_everybody_goes_on_hiding_them_from_all_others(
    server: PrivateCluster, healthy: str
) -> None:
    with (
        connect(healthy) as db,
        role(server, "by_column") as by_column,
        role(server, "reads_all", "in role pg_read_all_data") as reads_all,
    ):
        run(db, f"grant select (id) on projects to {by_column}")
        db.execute("alter table projects enable row level security")
        db.execute("create policy everything on projects using (true)")
        db.execute("create policy nothing on projects as restrictive using (false)")
        mend(server, healthy, of("policies", examine(healthy)))
        assert level_of("policies", examine(healthy)) == "ok"
        for name in (by_column, reads_all):
            with connect(as_role(server, healthy, name)) as somebody:
                assert somebody.execute("select id from projects").fetchall() == []
        db.execute("drop policy everything on projects; drop policy nothing on projects")
        db.execute("alter table projects disable row level security")
        run(db, f"drop owned by {by_column}, {reads_all}")


# What goes on -------------------------------------------------------------------------------------


def test_dead_letters_are_retried_by_the_command_that_is_printed(
    server: PrivateCluster, healthy: str
) -> None:
    with connect(healthy) as db:
        poison(db)
        db.execute("update users set bio = 'evil' where username = 'eve'")
        drain(db)
        findings = examine(healthy)
        (letters,) = of("dead letters", findings)
        assert letters["level"] == "fail"
        assert letters["message"] == ("1 user given up, 1 with P0001 will not have eve")
        # one user may be written, another not: the trial is of one
        db.execute("drop function poison cascade")
        follow(server, healthy, letters["remedy"])
        drain(db)
        assert level_of("dead letters", examine(healthy)) == "ok"


def test_a_worker_that_is_not_heard_of_is_started_by_the_command_that_is_printed(
    healthy: str,
) -> None:
    with connect(healthy) as db:
        for moment, says in (
            ("null", "no worker was ever heard of"),
            ("now() - interval '5 minutes'", "none for 0:05:00"),
        ):
            run(db, f"update builder_score.worker_status set heartbeat_at = {moment}")
            findings = examine(healthy)
            (beat,) = of("heartbeat", findings)
            assert beat["level"] == "fail"
            assert beat["message"] == says
            # where pg_cron works elsewhere, that is one of the ways out
            assert level_of("pg_cron", findings) == "fail"
        (*advice, command) = beat["remedy"].splitlines()
        assert all(line.startswith("#") for line in advice)
        with running(*shlex.split(command)[1:], DATABASE_URL=healthy) as worker:
            until(lambda: level_of("heartbeat", examine(healthy)) == "ok", "the worker is heard of")
            assert not_ok(examine(healthy)) == []
            worker.terminate()
            worker.wait()


def test_a_superuser_who_runs_the_worker_on_tables_of_somebody_elses_is_told_of_a_role_for_it(
    server: PrivateCluster, healthy: str
) -> None:
    with connect(healthy) as db, role(server, "deploy") as name:
        run(db, f"alter table users owner to {name}")
        assert level_of("trust", examine(healthy)) == "ok"
        with running("worker", DATABASE_URL=healthy) as worker:
            until(lambda: level_of("trust", examine(healthy)) == "warn", "the worker runs")
            (found,) = of("trust", examine(healthy))
            worker.terminate()
            worker.wait()
        assert f"postgres runs the worker, and {name} (owner of public.users)" in found["message"]
        *statements, advice = found["remedy"].splitlines()
        assert advice == "# then run `pyscore worker` as builder_score_worker"
        follow(server, healthy, "\n".join(statements))
        own = as_role(server, healthy, "builder_score_worker")
        with running("worker", DATABASE_URL=own) as worker:
            connected = (
                "select exists (select from pg_stat_activity where usename = 'builder_score_worker'"
                " and application_name = 'builder-score-worker')"
            )
            until(lambda: db.execute(connected).fetchone() == (True,), "the worker runs")
            assert level_of("trust", examine(healthy)) == "ok"
            worker.terminate()
            worker.wait()
        run(db, "alter table users owner to postgres; drop role builder_score_worker")


def test_a_silent_session_that_keeps_the_workers_lock_is_named_and_ended(
    server: PrivateCluster, healthy: str, sessions: Sessions
) -> None:
    silent = sessions("silent")
    silent.run("select pg_advisory_lock(1651271539, 0)")
    with connect(healthy) as db:
        db.execute("update builder_score.worker_status set heartbeat_at = null")
        (beat,) = of("heartbeat", examine(healthy))
        assert f"process {silent.pid} holds the worker's lock" in beat["message"]
        follow(server, healthy, beat["remedy"].replace("\npyscore worker", ""))
        held = "select exists (select from pg_locks where locktype = 'advisory' and pid = %s)"
        until(lambda: db.execute(held, [silent.pid]).fetchone() == (False,), "the lock is free")
        db.execute(HEARD)


def test_one_worker_of_two_that_is_silent_is_named_with_who_keeps_its_lock(
    server: PrivateCluster, healthy: str, sessions: Sessions
) -> None:
    silent = sessions("silent")
    silent.run("select pg_advisory_lock(1651271539, 202)")
    with connect(healthy) as db:
        run(db, "update builder_score.settings set workers = 2")
        (beat,) = of("heartbeat", examine(healthy))
        assert beat["level"] == "warn"
        assert beat["message"] == (
            f"worker 2 of 2 was never heard of; process {silent.pid} holds its lock"
            " and does nothing"
        )
        end, advice, command = beat["remedy"].splitlines()
        assert advice.startswith("# keep this running")
        follow(server, healthy, end)
        with running(*shlex.split(command)[1:], DATABASE_URL=healthy) as worker:
            until(lambda: level_of("heartbeat", examine(healthy)) == "ok", "it is heard of")
            (beat,) = of("heartbeat", examine(healthy))
            assert beat["message"].startswith("2 workers, each heard 0:00:0")
            worker.terminate()
            worker.wait()
        ago = "heartbeat_at = now() - interval '5 minutes'"
        run(db, f"update builder_score.worker_status set {ago} where worker = 'resident-2'")
        (beat,) = of("heartbeat", examine(healthy))
        assert beat["message"] == "worker 2 of 2 is silent for 0:05:00"


def test_who_holds_our_advisory_locks_and_is_no_worker_is_named_and_ended(
    server: PrivateCluster, healthy: str
) -> None:
    with role(server, "stranger") as name, Sessions(as_role(server, healthy, name)) as sessions:
        stranger = sessions("psql")
        for key in (0, 1, 102, 202, 203, 300):
            stranger.run(f"select pg_advisory_lock(1651271539, {key})")
        stranger.run("select pg_advisory_lock(1651271540, 0), pg_advisory_lock(0)")
        (found,) = of("locks", examine(healthy))
        assert found["level"] == "warn"
        assert re.fullmatch(
            rf"process {stranger.pid} \(psql, role {name}\), idle for 0:00:\d\d, is no worker and "
            "holds advisory locks of ours: worker 1, 2, 3 is away for up to a minute at a time; "
            "workers take it for one of them, and leave it a share; no migration begins",
            found["message"],
        )
        # its query does not make it one of ours
        stranger.start("select pg_sleep(60) /* builder_score.run_worker() */")
        with connect(healthy) as db:
            busy = "select state = 'active' from pg_stat_activity where pid = %s"
            until(lambda: db.execute(busy, [stranger.pid]).fetchone() == (True,), "it is active")
            (again,) = of("locks", examine(healthy))
            assert "active for" in again["message"]
            assert "worker 1, 2, 3 is away" in again["message"]
            follow(server, healthy, found["remedy"])
            gone = "select not exists (select from pg_stat_activity where pid = %s)"
            until(lambda: db.execute(gone, [stranger.pid]).fetchone() == (True,), "it is gone")
        with pytest.raises(psycopg.OperationalError):
            stranger.finish()
        assert not_ok(examine(healthy)) == []


def test_workers_and_migrations_are_none_of_these(
    server: PrivateCluster, healthy: str, sessions: Sessions
) -> None:
    worker, migration = sessions("worker"), sessions("migration")
    migration.run("select pg_advisory_lock(1651271539, 1)")
    with connect(healthy) as db, role(server, "little") as name:
        db.execute("update builder_score.settings set workers = 2")
        worker.start("call builder_score.run_worker('1 minute', 2)")
        held = "select exists (select from pg_locks where objid = 202 and pid = %s)"
        until(lambda: db.execute(held, [worker.pid]).fetchone() == (True,), "it works")
        assert level_of("locks", examine(healthy)) == "ok"
        run(db, f"grant builder_score_operator to {name}")
        assert level_of("locks", examine(as_role(server, healthy, name))) == "ok"
        db.execute("update builder_score.settings set paused = true")
        worker.finish()
        run(db, "update builder_score.settings set workers = 1, paused = false")
        # a run that was cancelled leaves its lock to its session
        worker.run("select pg_advisory_lock(1651271539, 202)")
        (found,) = of("locks", examine(healthy))
        assert f"process {worker.pid} (worker, " in found["message"]
        worker.run("select pg_advisory_unlock_all()")


def test_transactions_that_hold_back_vacuum_are_named_and_ended(
    server: PrivateCluster, healthy: str, sessions: Sessions
) -> None:
    idle = sessions("the app")
    idle.run("begin")
    idle.run("update users set bio = 'x'")
    other = sessions("another")
    other.run("begin")
    other.run("insert into users (username, email) values ('x', 'x')")
    other.run("prepare transaction 'it''s'")
    with connect(healthy) as db:
        db.execute("select pg_create_physical_replication_slot('unused', true)")
    assert level_of("xmin", examine(healthy)) == "warn"  # a slot is, at any age
    found = of("xmin", examine(healthy, "--held-for", "0"))
    assert [one["level"] for one in found] == ["warn"] * 3
    assert (
        f"process {idle.pid} (the app, role postgres), idle in transaction," in found[0]["message"]
    )
    assert "transaction 'it''s' of postgres is prepared" in found[1]["message"]
    assert "replication slot unused" in found[2]["message"]
    mend(server, healthy, found)
    until(
        lambda: level_of("xmin", examine(healthy, "--held-for", "0")) == "ok",
        "the session has ended",
    )


def test_a_locked_user_is_not_waited_for(healthy: str, sessions: Sessions) -> None:
    app = sessions("app")
    for lock, level, says in (
        ("select from users for update", "ok", "not tried: all users were locked by somebody else"),
        (
            "lock table users",
            "warn",
            "not tried to the end: canceling statement due to lock timeout",
        ),
    ):
        app.run("begin")
        app.run(lock)
        (trial,) = of("trial write", examine(healthy))
        assert trial["level"] == level
        assert trial["message"].startswith(says)
        app.run("rollback")


def test_nothing_of_the_trial_stays(healthy: str) -> None:
    state = (
        "select (select array_agg(u order by id) from users as u),"
        " (select count(*) from builder_score.score_recalc_queue)"
    )
    with connect(healthy) as db:
        before = db.execute(state).fetchone()
        (trial,) = of("trial write", examine(healthy))
        assert trial["message"].startswith("a score can be written")
        assert db.execute(state).fetchone() == before


ALWAYS = """
    do $$ declare t record; begin
        for t in select tgrelid::regclass as host, tgname from pg_trigger
                 where tgname like 'builder\\_score\\_%' loop
            execute format('alter table %s enable always trigger %I', t.host, t.tgname);
        end loop;
    end $$
"""


@pytest.fixture
def subscriber(healthy: str) -> Iterator[str]:
    """A database whose users are written by a subscription, as its catalogue has it."""
    with connect(healthy) as db:
        db.execute(
            "create subscription feed connection 'dbname=elsewhere' publication feed"
            " with (connect = false)"
        )
        db.execute(
            "insert into pg_subscription_rel (srsubid, srrelid, srsubstate)"
            " select oid, 'users'::regclass, 'r' from pg_subscription where subname = 'feed'"
        )
        yield healthy
        db.execute("alter subscription feed set (slot_name = none)")
        db.execute("drop subscription feed")


def test_a_subscription_that_writes_past_our_triggers(
    server: PrivateCluster, subscriber: str
) -> None:
    (feed,) = of("subscriptions", examine(subscriber))
    assert feed["level"] == "warn"
    assert feed["message"].startswith("subscription feed writes public.users: triggers do not")
    follow(server, subscriber, feed["remedy"])
    assert level_of("subscriptions", examine(subscriber)) == "ok"
    with connect(subscriber) as db:
        db.execute("update builder_score.settings set paused = false, paused_reason = null")
        db.execute(ALWAYS)
    assert level_of("subscriptions", examine(subscriber)) == "ok"


def test_a_trigger_that_is_disabled_or_missing_on_one_partition(
    server: PrivateCluster, empty_database: str
) -> None:
    with connect(empty_database) as db:
        run(db, PARTITIONED.tables)
        migrator.upgrade(empty_database)
        db.execute("alter table users_1 disable trigger builder_score_insert")
        (disabled,) = of("triggers", examine(empty_database))
        assert disabled["message"].startswith("builder_score_insert on public.users_1 is disabled")
        follow(server, empty_database, disabled["remedy"])
        assert level_of("triggers", examine(empty_database)) == "ok"
        # as on a partition that came later
        db.execute("drop trigger builder_score_truncate on users_1")
        (missing,) = of("triggers", examine(empty_database))
        assert missing["message"] == "public.users_1 lacks builder_score_truncate"
        follow(server, empty_database, missing["remedy"])
        assert level_of("triggers", examine(empty_database)) == "ok"
        # of the parent's and its copies' only the parent's is said
        db.execute("alter table users disable trigger builder_score_insert")
        (disabled,) = of("triggers", examine(empty_database))
        follow(server, empty_database, disabled["remedy"])
        assert level_of("triggers", examine(empty_database)) == "ok"


# A standby ----------------------------------------------------------------------------------------


def test_a_hot_standby_is_looked_at_and_holds_back_vacuum_when_it_says_so() -> None:
    settings: dict[str, str | int | float | bool] = {"fsync": False, "max_connections": 30}
    with PrivateCluster(settings=settings) as primary:
        migrator.upgrade(primary.conninfo())
        feedback = settings | {"hot_standby_feedback": True, "wal_receiver_status_interval": "1s"}
        with connect(primary.conninfo()) as db:
            add_user(db, "ann")
            drain(db)
            db.execute(HEARD)
            with standby_of(primary, settings=feedback) as standby:
                db.execute("update users set bio = 'x'")
                findings = examine(standby.conninfo())
                assert not_ok(findings) == []
                assert "a hot standby" in of("server", findings)[0]["message"]
                (trial,) = of("trial write", findings)
                assert trial["message"] == "not tried: this is a hot standby"

                def held() -> list[str]:
                    with addresses.connect(primary.conninfo()) as looking:
                        looking.row_factory = cast(Any, dict_row)
                        found = examine_with(looking, limits=Limits(xids=3))
                    return [
                        str(one.remedy)
                        for one in found
                        if one.check == "xmin" and one.level == "warn"
                    ]

                with connect(standby.conninfo()) as reader:
                    reader.execute("begin isolation level repeatable read")
                    reader.execute("select from users")
                    for _ in range(5):
                        db.execute("update users set bio = bio || 'x'")
                    until(lambda: held() != [], "the standby's snapshot is the oldest")
                    follow(standby, standby.conninfo(), held()[0])
                    until(lambda: held() == [], "the standby keeps it to itself")


# The application's Alembic ------------------------------------------------------------------------


@pytest.fixture
def application(tmp_path: Path, empty_database: str) -> Application:
    return established(tmp_path, empty_database)


@pytest.mark.filterwarnings("ignore:Did not recognize type:sqlalchemy.exc.SAWarning")
def test_what_the_applications_autogenerate_would_drop_is_mended_by_two_lines_in_its_env(
    server: PrivateCluster, application: Application
) -> None:
    address, folder = application.address, application.folder
    migrator.upgrade(address)
    with connect(address) as db:
        db.execute(HEARD)
    (unknown,) = of("autogenerate", examine(address))
    assert unknown["level"] == "warn"
    assert unknown["remedy"] == "pyscore doctor --alembic-config alembic.ini"

    config = ("--alembic-config", str(folder / "alembic.ini"))
    application.filter(UNFILTERED, include_schemas=True)
    (would_drop,) = of("autogenerate", examine(address, *config))
    assert would_drop["level"] == "fail"
    for said in (
        "drop column users.builder_score",
        "drop index idx_users_builder_score",
        "drop table builder_score.",
    ):
        assert said in would_drop["message"]
    comment, first, another_comment, arguments = would_drop["remedy"].splitlines()
    assert comment.startswith("#")
    assert another_comment.startswith("#")
    application.filter((first, arguments), include_schemas=True)
    assert application.differences() == ""
    with connect(address) as db:  # the application's own business is none of ours
        db.execute("create table not_in_the_models ()")
    (fine,) = of("autogenerate", examine(address, *config))
    assert (fine["level"], fine["remedy"]) == ("ok", None)

    (folder / "env.py").write_text("raise SystemExit('no database for you')")
    (broken,) = of("autogenerate", examine(address, *config))
    assert broken["level"] == "fail"
    assert re.search(r"could not be run: no database for you$", broken["message"])
