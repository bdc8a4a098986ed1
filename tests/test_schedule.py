"""The pg_cron job: scheduled for this database from another one, by a role without attributes."""

import json
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import Connection, errors, sql
from psycopg.conninfo import conninfo_to_dict

from pyscore import migrator
from pyscore.cluster import PrivateCluster
from tests.catalogue import schema_dump
from tests.commands import call, error_line, output
from tests.community import add_user, configure, one, score
from tests.conftest import CRON_DATABASE, dsn, janitor
from tests.interleave import until
from tests.statements import run

pytestmark = pytest.mark.pg_cron

OWNER = "app_owner"
CALL = "call builder_score.run_worker()"


@pytest.fixture(scope="module")
def cron_server(managed_server: PrivateCluster) -> Iterator[PrivateCluster]:
    """Its role OWNER is all that a managed service gives: no attribute but LOGIN."""
    managed_server.psql("-c", f"create role {OWNER} login")
    yield managed_server
    managed_server.psql("-c", f"drop owned by {OWNER}; drop role {OWNER}")


@contextmanager
def application(server: PrivateCluster, name: str | None = None) -> Generator[str]:
    """A database of OWNER's, migrated by it. What is left in cron.job goes with it."""
    with janitor(server, name or f"app_{uuid4().hex[:8]}") as address:
        database = str(conninfo_to_dict(address)["dbname"])
        server.psql("-c", f'alter database "{database}" owner to {OWNER}')
        owned = dsn(server, database, user=OWNER)
        migrator.upgrade(owned)
        try:
            yield owned
        finally:
            server.psql("-c", "select cron.unschedule(jobid) from cron.job")


@pytest.fixture
def app(cron_server: PrivateCluster) -> Iterator[str]:
    with application(cron_server) as address:
        yield address


@pytest.fixture
def cron(cron_server: PrivateCluster) -> Iterator[Connection[Any]]:
    """A superuser's connection to the database that pg_cron works in."""
    with psycopg.connect(cron_server.conninfo("postgres"), autocommit=True) as db:
        yield db


@pytest.fixture
def cron_dsn(cron_server: PrivateCluster, cron: Connection[Any]) -> str:
    """What OWNER reaches it by, with the grants that the guide asks for."""
    run(cron, f"grant usage on schema cron to {OWNER}")
    run(
        cron,
        "grant execute on function"
        f" cron.schedule_in_database(text, text, text, text, text, boolean) to {OWNER}",
    )
    return dsn(cron_server, "postgres", user=OWNER)


def jobs(cron: Connection[Any]) -> list[tuple[str, str, str, str]]:
    return cron.execute(
        "select jobname::text, database, username, schedule from cron.job order by jobid"
    ).fetchall()


def database_of(address: str) -> str:
    return str(conninfo_to_dict(address)["dbname"])


def expected_jobs(database: str, role: str = OWNER) -> list[tuple[str, str, str, str]]:
    return [
        (f"builder-score-worker@{database}", database, role, "* * * * *"),
        (f"builder-score-worker-at-start@{database}", database, role, "@reboot"),
        (f"builder-score-worker-purge@{database}", "postgres", role, "17 4 * * *"),
    ]


def schedule(address: str, cron_dsn: str, *options: str) -> str:
    return output(call("schedule", "--dsn", address, "--cron-dsn", cron_dsn, *options))


def scheduler(address: str) -> tuple[str, str | None]:
    with psycopg.connect(address) as db:
        query = "select scheduler, cron_database from builder_score.health"
        return db.execute(query).fetchall()[0]


# From another database ----------------------------------------------------------------------------


def test_the_jobs_run_the_worker_in_our_database_from_pg_crons_own(
    app: str, cron: Connection[Any], cron_dsn: str
) -> None:
    database = database_of(app)
    assert scheduler(app) == ("none", None)
    for _ in range(2):  # the second time changes nothing
        said = schedule(app, cron_dsn)
        assert f"builder-score-worker@{database}, as {OWNER}, in database postgres" in said
        assert jobs(cron) == expected_jobs(database)
    commands = cron.execute("select command from cron.job order by jobid").fetchall()
    assert [command for (command,) in commands[:2]] == [CALL, CALL]
    assert scheduler(app) == ("pg_cron", "postgres")
    status = call("status", "--dsn", app).stdout
    assert "pg_cron, in database postgres" in status
    assert "in cron.job_run_details of database postgres" in status

    said = output(call("unschedule", "--dsn", app, "--cron-dsn", cron_dsn))
    assert said.count("removed") == 3
    assert jobs(cron) == []
    assert scheduler(app) == ("none", None)


def test_each_worker_has_a_job_and_those_beyond_are_removed(
    app: str, cron: Connection[Any], cron_dsn: str
) -> None:
    database = database_of(app)
    with psycopg.connect(app, autocommit=True) as db:
        configure(db, workers=3)
        said = schedule(app, cron_dsn)
        last = f"builder-score-worker-3@{database}"
        assert f"jobs builder-score-worker@{database} to {last}, as {OWNER}" in said
        first, at_start, purge = expected_jobs(database)
        others = [
            (f"builder-score-worker-{number}@{database}", database, OWNER, "* * * * *")
            for number in (2, 3)
        ]
        assert jobs(cron) == [first, *others, at_start, purge]
        commands = cron.execute("select command from cron.job order by jobid").fetchall()
        numbered = [f"call builder_score.run_worker(null, {number})" for number in (2, 3)]
        assert [command for (command,) in commands[:4]] == [CALL, *numbered, CALL]
        assert last in commands[4][0], "its runs are purged too"
        configure(db, workers=1)
        said = schedule(app, cron_dsn)
        assert [f"{last}, as {OWNER}, removed" in said, said.count("removed")] == [True, 2]
        assert jobs(cron) == expected_jobs(database)
        assert one(db, "select count(*) from builder_score.known_jobs()") == 3
        configure(db, workers=2)
        schedule(app, cron_dsn)
        said = output(call("unschedule", "--dsn", app, "--cron-dsn", cron_dsn))
        assert said.count("removed") == 4
        assert jobs(cron) == []


def test_a_missing_privilege_is_one_line_with_the_grants_that_mend_it(
    app: str, cron_server: PrivateCluster, cron: Connection[Any]
) -> None:
    run(cron, f"drop owned by {OWNER}")
    cron_dsn = dsn(cron_server, "postgres", user=OWNER)
    arguments = ("schedule", "--dsn", app, "--cron-dsn", cron_dsn)
    line = error_line(call(*arguments))
    grants = re.findall(r"GRANT .*?;", line)
    assert len(grants) == 2
    assert jobs(cron) == []
    run(cron, grants[0])
    assert error_line(call(*arguments)) == line, "USAGE alone is not enough"
    with psycopg.connect(app) as db:
        assert db.execute("select * from builder_score.scheduled_jobs").fetchall() == []
    run(cron, grants[1])
    output(call(*arguments))
    assert len(jobs(cron)) == 3


def test_two_databases_scheduled_by_one_role_have_a_job_each(
    cron_server: PrivateCluster, cron: Connection[Any], cron_dsn: str
) -> None:
    # beyond what pg_cron keeps of a name, with the part that differs at the end
    names = [f"{'long' * 14}_{letter}" for letter in "ab"]
    with application(cron_server, names[0]) as one_, application(cron_server, names[1]) as other:
        schedule(one_, cron_dsn)
        schedule(other, cron_dsn)
        found = [(name, database) for name, database, _, when in jobs(cron) if when == "@reboot"]
        assert [database for _, database in found] == names
        assert len({name for name, _ in found}) == 2
        output(call("unschedule", "--dsn", one_, "--cron-dsn", cron_dsn))
        assert {database for _, database, _, _ in jobs(cron)} == {names[1], "postgres"}
        assert len(jobs(cron)) == 3
        assert scheduler(other) == ("pg_cron", "postgres")


def test_a_database_that_was_renamed_or_copied_has_the_jobs_that_are_its_own(
    cron_server: PrivateCluster, cron: Connection[Any], cron_dsn: str
) -> None:
    with application(cron_server, "before") as address:
        schedule(address, cron_dsn)
        with janitor(cron_server, "copy_of_it", template="before"):
            copy = dsn(cron_server, "copy_of_it", user=OWNER)
            assert scheduler(copy) == ("none", None), "what was noted is the original's"
            said = output(call("unschedule", "--dsn", copy, "--cron-dsn", cron_dsn))
            assert "no pg_cron job" in said
            assert jobs(cron) == expected_jobs("before")
        run(cron, "alter database before rename to renamed")
        try:
            renamed = dsn(cron_server, "renamed", user=OWNER)
            schedule(renamed, cron_dsn)
            left = [job for job in jobs(cron) if job not in expected_jobs("renamed")]
            output(call("unschedule", "--dsn", renamed, "--cron-dsn", cron_dsn))
            assert left == expected_jobs("before"), "known by their numbers until they are removed"
            assert jobs(cron) == []
        finally:
            run(cron, "alter database renamed rename to before")


def test_what_cannot_work_is_refused_in_one_line(
    app: str,
    cron_server: PrivateCluster,
    server: PrivateCluster,
    cron: Connection[Any],
    cron_dsn: str,
) -> None:
    def refused(other: str, *options: str) -> str:
        return error_line(call("schedule", "--dsn", app, "--cron-dsn", other, *options))

    assert "leads to another server" in refused(server.conninfo(CRON_DATABASE))
    assert "leads to the database itself: leave it out" in refused(app)
    without = refused(dsn(cron_server, "template1", user=OWNER))
    assert "database template1 has no pg_cron" in without
    assert "the one that SHOW cron.database_name tells a superuser" in without
    without = refused(cron_server.conninfo("template1"))
    assert "it works in database postgres (cron.database_name): give its address" in without
    assert f"only a superuser may schedule a job for another role, and {OWNER}" in refused(
        cron_dsn, "--as", "postgres"
    )
    superusers = cron_server.conninfo("postgres")
    assert "there is no role nobody" in refused(superusers, "--as", "nobody")
    assert "role pg_monitor cannot log in" in refused(superusers, "--as", "pg_monitor")
    done = call("schedule", "--dsn", app, "--cron-dsn", "mysql://x/y")
    assert "--cron-dsn names a mysql:// database" in error_line(done, exit_code=2)
    run(cron, "create role stranger login")
    try:
        assert "role stranger may not run the worker: schedule as" in refused(
            superusers, "--as", "stranger"
        )
        run(cron, f'revoke connect on database "{database_of(app)}" from public')
        connect = refused(superusers, "--as", "stranger")
        assert f"GRANT CONNECT ON DATABASE {database_of(app)} TO stranger;" in connect
    finally:
        run(cron, "drop role stranger")
    assert jobs(cron) == []


def test_a_superuser_chooses_the_role_and_the_last_choice_holds(
    cron_server: PrivateCluster, cron: Connection[Any]
) -> None:
    superusers = cron_server.conninfo("postgres")
    with application(cron_server) as address:
        database = database_of(address)
        schedule(address, superusers)
        assert jobs(cron) == expected_jobs(database, "postgres")
        said = schedule(address, superusers, "--as", OWNER)
        assert said.count("as postgres, removed") == 3
        assert jobs(cron) == expected_jobs(database)
        # by role OWNER's own connection, which sees its jobs alone, a superuser's stay: it says so
        schedule(address, superusers)
        line = error_line(
            call("unschedule", "--dsn", address, "--cron-dsn", dsn(cron_server, "postgres", OWNER))
        )
        assert 'in database "postgres", as role postgres or a superuser: SELECT cron' in line
        mends = re.findall(r"SELECT cron\.unschedule\(\d+\);", line)
        assert len(mends) == 3
        for mend in mends:
            run(cron, mend)
        assert jobs(cron) == []


# Uninstall ----------------------------------------------------------------------------------------


def test_uninstall_takes_the_jobs_out_of_the_other_database(
    app: str, cron_server: PrivateCluster, cron: Connection[Any], cron_dsn: str
) -> None:
    schedule(app, cron_dsn)
    assert len(jobs(cron)) == 3
    run(
        cron,
        "insert into cron.job_run_details (jobid, runid, username)"
        " select jobid, jobid, username from cron.job",
    )
    output(call("uninstall", "--yes", "--dsn", app, "--cron-dsn", cron_dsn))
    assert jobs(cron) == []
    assert one(cron, "select count(*) from cron.job_run_details where runid = jobid") == 0
    assert "builder_score" not in schema_dump(cron_server, app)


def test_uninstall_without_access_says_what_removes_the_jobs_and_they_do_nothing_meanwhile(
    app: str, cron_server: PrivateCluster, cron: Connection[Any], cron_dsn: str
) -> None:
    schedule(app, cron_dsn)
    line = error_line(call("unschedule", "--dsn", app))
    assert "--cron-dsn removes them" in line
    said = output(call("uninstall", "--yes", "--dsn", app))
    (warning,) = [line for line in said.splitlines() if "jobs stay" in line]
    assert f'in database "postgres", as role {OWNER} or a superuser' in warning

    left = cron.execute(
        "select command from cron.job where database = %s", [database_of(app)]
    ).fetchall()
    assert len(left) == 2
    before = schema_dump(cron_server, app)
    with psycopg.connect(app, autocommit=True) as db:
        for (command,) in left:
            with pytest.raises(errors.InvalidSchemaName):
                db.execute(command)
    assert schema_dump(cron_server, app) == before

    with psycopg.connect(cron_dsn, autocommit=True) as role:
        for mend in re.findall(r"SELECT cron\.unschedule\(\d+\);", warning):
            run(role, mend)
    assert jobs(cron) == []


# It runs ------------------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["over connections", "as background workers"])
def way_to_run(request: pytest.FixtureRequest, cron_server: PrivateCluster) -> Iterator[None]:
    """How pg_cron starts its jobs; the next start of the server heeds it."""
    cron_server.settings["cron.use_background_workers"] = request.param
    yield
    del cron_server.settings["cron.use_background_workers"]


@pytest.mark.usefixtures("way_to_run")
def test_it_runs_and_everybody_sees_who_runs_the_worker(
    app: str, cron_server: PrivateCluster, cron_dsn: str
) -> None:
    with psycopg.connect(app, autocommit=True) as db:
        configure(db, debounce_window="0")
        ann = add_user(db, "ann", bio="ships")
    schedule(app, cron_dsn)
    cron_server.restart()  # @reboot spares us the wait for the next minute
    with psycopg.connect(app, autocommit=True) as db:
        until(lambda: score(db, ann) == 3, "the job computes it")
        status = "builder_score.worker_status where worker = 'resident'"
        assert one(db, f"select run_by from {status}") == "pg_cron"
        run(db, "delete from builder_score.scheduled_jobs")
        assert scheduler(app) == ("pg_cron", None), "by who keeps the heartbeat going"
        configure(db, paused=True)
        running = "select count(*) from pg_stat_activity where pid = %s"
        pid = one(db, f"select backend_pid from {status}")
        until(lambda: one(db, running, pid) == 0, "the worker leaves")


def test_the_purge_deletes_only_old_runs_of_this_databases_jobs(
    app: str, cron: Connection[Any], cron_dsn: str
) -> None:
    schedule(app, cron_dsn)
    run(cron, "truncate cron.job_run_details")
    with psycopg.connect(cron_dsn, autocommit=True) as role:  # for another database of its own
        run(role, "select cron.schedule('builder-score-worker@x', '@reboot', 'x')")
    run(
        cron,
        "insert into cron.job_run_details (jobid, runid, username, status, end_time)"
        " select j.jobid, 1000 + row_number() over (), j.username, j.jobname || ' ' || age,"
        " now() - age * interval '1 day' from cron.job as j cross join unnest(array[6, 8]) as age",
    )
    purge = one(cron, "select command from cron.job where jobname like '%%-purge@%%'")
    with psycopg.connect(cron_dsn, autocommit=True) as role:
        run(role, purge)
    left = cron.execute("select status from cron.job_run_details order by runid").fetchall()
    ours = [name for name, _, _, _ in expected_jobs(database_of(app))]
    assert sorted(status for (status,) in left) == sorted(
        [f"{name} 6" for name in ours] + ["builder-score-worker@x 6", "builder-score-worker@x 8"]
    )


# In our own database ------------------------------------------------------------------------------


def test_where_pg_cron_is_in_this_database_the_command_schedules_it_here(
    cron_database: str, server: PrivateCluster
) -> None:
    def here() -> list[tuple[str, str]]:
        with psycopg.connect(cron_database) as db:
            return db.execute("select jobname::text, username from cron.job order by 1").fetchall()

    both = ["builder-score-worker", "builder-score-worker-at-start"]
    role = f"runs_{uuid4().hex[:8]}"
    assert here() == [(name, "postgres") for name in both]
    with psycopg.connect(cron_database, autocommit=True) as db:
        run(db, f"create role {role} login")
        try:
            said = error_line(call("schedule", "--as", role, "--dsn", cron_database))
            assert f"GRANT builder_score_operator TO {role}" in said
            run(db, f"grant builder_score_operator to {role}")
            output(call("schedule", "--as", role, "--dsn", cron_database))
            assert here() == [(name, role) for name in both]

            # whoever is not that role cannot see the job, and knows of it
            with psycopg.connect(dsn(server, CRON_DATABASE, user=role)) as other:
                assert one(other, "select builder_score.scheduler()") == "pg_cron"
            watcher = f"watches_{uuid4().hex[:8]}"
            run(db, f"create role {watcher} login in role builder_score_operator")
            try:
                address = dsn(server, CRON_DATABASE, user=watcher)
                assert scheduler(address) == ("pg_cron", None)
                seen = json.loads(call("status", "--json", "--dsn", address).stdout)
                assert (seen["scheduler"], seen["job_runs"]) == ("pg_cron", [])
                # and who would see it knows that it has gone
                run(db, "select cron.unschedule(jobid) from cron.job")
                assert scheduler(cron_database) == ("none", None)
            finally:
                run(db, f"drop role {watcher}")

            done = call("schedule", "--dsn", cron_database, PGOPTIONS="-c statement_timeout=50s")
            assert "as postgres" in output(done)
            assert "statement_timeout is 50s for postgres" in done.stderr
            assert (
                "ALTER ROLE postgres IN DATABASE pyscore_cron SET statement_timeout" in done.stderr
            )
            assert here() == [(name, "postgres") for name in both]

            # another database's, which pg_cron runs in this one
            theirs = "builder-score-worker-purge@other"
            run(db, f"select cron.schedule('{theirs}', '17 4 * * *', 'select 1')")
            assert "removed" in output(call("unschedule", "--dsn", cron_database))
            assert here() == [(theirs, "postgres")]
            run(db, f"select cron.unschedule('{theirs}')")

            run(db, "drop extension pg_cron; create extension pg_cron version '1.3'")
            line = error_line(call("schedule", "--dsn", cron_database))
            assert "pg_cron is 1.3 in this database, and 1.4 is the oldest that serves" in line
            assert "ALTER EXTENSION pg_cron UPDATE;" in line
            run(db, "drop extension pg_cron")
            assert one(db, "select to_regclass('cron.job') is null")
            output(call("schedule", "--dsn", cron_database))
        finally:
            run(db, f"drop role {role}")


def test_an_extension_that_cannot_be_created_does_not_keep_us_from_being_installed(
    server: PrivateCluster,
) -> None:
    address = dsn(server, CRON_DATABASE)
    with psycopg.connect(address, autocommit=True) as db:
        run(
            db,
            "create function public.no() returns event_trigger language plpgsql as"
            " $$ begin raise exception 'not in this database'; end $$;"
            " create event trigger no on ddl_command_start when tag in ('CREATE EXTENSION')"
            " execute function public.no()",
        )
        try:
            said = output(call("migrate", "--dsn", address))
            assert "the extension pg_cron could not be created (not in this database)" in said
            assert "keep `pyscore worker` running instead" in said
        finally:
            run(db, "drop event trigger no; drop function public.no()")
            migrator.downgrade(address)


def test_where_nothing_can_be_scheduled_the_command_fails_with_the_reason(database: str) -> None:
    line = error_line(call("schedule", "--dsn", database))
    assert 'pg_cron works in database "pyscore_cron"' in line
    assert "pyscore schedule --cron-dsn ADDRESS" in line


def test_identifiers_that_need_quotes_are_quoted_in_the_jobs_and_the_grants(
    cron_server: PrivateCluster, cron: Connection[Any]
) -> None:
    role, name = 'Role "x"', "Odd %'name"
    quoted = sql.Identifier(role).as_string()
    run(cron, f"create role {quoted} login")
    try:
        with janitor(cron_server, name) as address:
            migrator.upgrade(address)
            line = error_line(
                call(
                    *("schedule", "--dsn", address, "--as", role),
                    *("--cron-dsn", cron_server.conninfo("postgres")),
                )
            )
            grant = re.findall(r"GRANT .*;", line)[0]
            with psycopg.connect(address, autocommit=True) as db:
                run(db, grant)
            schedule(address, cron_server.conninfo("postgres"), "--as", role)
            assert jobs(cron) == expected_jobs(name, role)
            purge = one(cron, "select command from cron.job where jobname like '%%-purge@%%'")
            run(cron, purge)
            output(
                call(
                    *("uninstall", "--yes", "--dsn", address),
                    *("--cron-dsn", cron_server.conninfo("postgres")),
                )
            )
            assert jobs(cron) == []
    finally:
        run(cron, f"drop role {quoted}")
