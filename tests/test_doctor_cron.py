"""`pyscore doctor` and pg_cron: each way in which the job does not run, and what mends it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from pyscore import migrator
from pyscore.cluster import PrivateCluster
from pyscore.doctor.cron import hba_lines
from tests.community import add_user
from tests.examining import examine, follow, level_of, mend, not_ok, of
from tests.interleave import until
from tests.statements import connect, run

SERVER: dict[str, str | int | float | bool] = {"fsync": False, "max_connections": 50}


LAUNCHER = "select pid from pg_stat_activity where backend_type = 'pg_cron launcher'"


def launcher(address: str) -> list[Any]:
    with connect(address) as db:
        return db.execute(LAUNCHER).fetchall()


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateCluster]:
    """A server of these tests' own: they restart it, drop roles, and change pg_hba.conf."""
    with PrivateCluster(settings=SERVER, cron_database="app") as cluster:
        cluster.psql("-c", "create database app", "-c", "create role ops login")
        migrator.upgrade(cluster.conninfo("app"))
        with connect(cluster.conninfo("app")) as db:
            add_user(db, "ann", bio="ships")
        yield cluster


@pytest.fixture
def app(server: PrivateCluster) -> str:
    """The address of a database in which pg_cron has run the job, and nothing is wrong."""
    address = server.conninfo("app")
    with connect(address) as db:
        stopped = db.execute(LAUNCHER).fetchall() == []
    if stopped:
        server.restart()
        until(lambda: launcher(address) != [], "the launcher runs")
    with connect(address) as db:
        # as after a run: what breaks is the job, and no test waits for the next minute
        db.execute("update builder_score.worker_status set heartbeat_at = clock_timestamp()")
        db.execute("truncate cron.job_run_details")
    assert not_ok(examine(address)) == []
    return address


@dataclass(frozen=True)
class Broken:
    """A way to be broken: the check that finds it, what it says, how it is broken."""

    check: str
    level: str
    says: str
    how: str
    also: tuple[str, ...] = ()


ALTER = "select cron.alter_job(jobid, {}) from cron.job where jobname = 'builder-score-worker'"
AS_OPS = """
    grant usage on schema cron to ops; grant builder_score_operator to ops;
    select cron.alter_job(jobid, username => 'ops') from cron.job
    where jobname like 'builder-score-worker%';
"""
NOT_HEARD = "update builder_score.worker_status set heartbeat_at = null;"

BROKEN = {
    "no job": Broken(
        "job",
        "fail",
        "pg_cron has no job for this database",
        "select cron.unschedule(jobid) from cron.job",
    ),
    "a job that is not active": Broken(
        "job", "fail", r"job builder-score-worker .* is not active", ALTER.format("active => false")
    ),
    "a job that runs something else": Broken(
        "job",
        "fail",
        r"is not what it should be: \* \* \* \* \* select 1",
        ALTER.format("command => 'select 1'"),
    ),
    "a job that runs too seldom": Broken(
        "job",
        "fail",
        r"is not what it should be: 0 4 \* \* \*",
        ALTER.format("schedule => '0 4 * * *'"),
    ),
    "no job at the server's start": Broken(
        "job",
        "warn",
        "the job that starts with the server is missing",
        "select cron.unschedule('builder-score-worker-at-start')",
    ),
    "a job of another role's beside it": Broken(
        "job",
        "warn",
        r"a second job, builder-score-worker \(as ops\)",
        """grant usage on schema cron to ops; grant builder_score_operator to ops;
        set role ops;
        select cron.schedule('builder-score-worker', '* * * * *', 'call builder_score.run_worker()')
        """,
    ),
    "a job of another role's for the second worker": Broken(
        "job",
        "warn",
        r"a second job, builder-score-worker-2 \(as ops\)",
        """update builder_score.settings set workers = 2; select builder_score.schedule();
        grant usage on schema cron to ops; grant builder_score_operator to ops;
        set role ops;
        select cron.schedule('builder-score-worker-2', '* * * * *',
            'call builder_score.run_worker(null, 2)')""",
    ),
    "more workers than jobs": Broken(
        "job",
        "warn",
        "settings.workers is 3, and pg_cron has no job for worker 2, 3",
        "update builder_score.settings set workers = 3",
        ("heartbeat",),
    ),
    "more jobs than workers": Broken(
        "job",
        "warn",
        "settings.workers is 1, and pg_cron has a job for worker 2",
        "update builder_score.settings set workers = 2; select builder_score.schedule();"
        "update builder_score.settings set workers = 1",
    ),
    "a second job that runs the first worker": Broken(
        "job",
        "fail",
        r"job builder-score-worker-2 \(as postgres\) is not what it should be",
        "update builder_score.settings set workers = 2; select builder_score.schedule();"
        + ALTER.format("command => 'call builder_score.run_worker()'").replace(
            "'builder-score-worker'", "'builder-score-worker-2'"
        ),
    ),
    "a job whose role may not log in": Broken(
        "job", "fail", "role ops, .* may not log in", AS_OPS + "alter role ops nologin"
    ),
    "a job whose role may not run the worker": Broken(
        "job",
        "fail",
        "role ops, .* may not run the worker",
        AS_OPS + "revoke builder_score_operator from ops",
    ),
    "a job whose role may not connect": Broken(
        "job",
        "fail",
        "role ops, .* may not connect",
        AS_OPS + "revoke connect on database app from public",
    ),
    "a job whose role is gone": Broken(
        "job",
        "fail",
        "role gone, as which the job runs, is gone",
        "update cron.job set username = 'gone'",
        ("pg_cron",),  # whose launcher ends as soon as it would start such a job
    ),
    "a superuser's job on tables of somebody who is none": Broken(
        "trust",
        "warn",
        r"superuser postgres runs the worker, and ops \(owner of public\.users\) can become one",
        "alter table users owner to ops",
    ),
    "a superuser's job where others may create triggers": Broken(
        "trust",
        "warn",
        r"ops \(may create triggers on public\.users\) can become one",
        "grant trigger on users to ops",
    ),
    "a superuser's job where a trigger is somebody else's": Broken(
        "trust",
        "warn",
        r"ops \(owner of public\.audit\(\), which a trigger calls\) can become one",
        "create or replace function public.audit() returns trigger language plpgsql"
        " as 'begin return null; end';"
        "alter function public.audit() owner to ops;"
        "create or replace trigger audit after update on users"
        " for each row execute function public.audit()",
    ),
    "a statement_timeout of the role": Broken(
        "statement_timeout",
        "warn",
        "30s for postgres",
        "alter role postgres set statement_timeout = '30s'",
    ),
    "a statement_timeout of the database": Broken(
        "statement_timeout",
        "warn",
        "45000 for postgres",
        "alter role postgres in database app reset all;"
        "alter database app set statement_timeout = 45000",
    ),
    "an old pg_cron": Broken(
        "pg_cron",
        "fail",
        r"pg_cron 1\.3 is too old: 1\.4 is needed",
        "drop extension pg_cron; create extension pg_cron version '1.3'",
        ("job",),
    ),
    "a pg_cron whose library is newer": Broken(
        "pg_cron",
        "warn",
        r"pg_cron 1\.4 runs with the library of 1\.(4-|[5-9])",
        "drop extension pg_cron; create extension pg_cron version '1.4'",
        ("job",),
    ),
    "no extension": Broken(
        "pg_cron",
        "fail",
        "the extension pg_cron is not created, and nothing else runs the worker",
        NOT_HEARD + "drop extension pg_cron",
        ("heartbeat",),
    ),
    "a run that failed": Broken(
        "job runs",
        "fail",
        r"the last run, as postgres, failed: could not start background process",
        """insert into cron.job_run_details (jobid, runid, status, return_message)
        select jobid, 1000000, 'failed', 'could not start background process; more details may be'
        ' available in the server log' from cron.job limit 1""",
    ),
}


@pytest.mark.pg_cron
@pytest.mark.parametrize("broken", BROKEN.values(), ids=list(BROKEN))
def test_what_is_broken_is_said_and_mended_by_the_line_that_says_it(
    server: PrivateCluster, app: str, broken: Broken
) -> None:
    with connect(app) as db:
        run(db, broken.how)
        db.execute("reset role")
        findings = examine(app)
        # the minute may strike meanwhile, and a run that is broken on purpose fail
        expected = {broken.check, *broken.also, "job runs"}
        assert {check for check, _, _ in not_ok(findings)} <= expected
        assert level_of(broken.check, findings) == broken.level
        assert any(re.search(broken.says, one["message"]) for one in of(broken.check, findings))
        if broken.check == "job runs":
            # only a later run can make this good; here it is forgotten
            assert "SET max_worker_processes = 16;" in of("job runs", findings)[0]["remedy"]
            db.execute("truncate cron.job_run_details")
            return
        mend(server, app, [one for one in findings if one["check"] == broken.check])
        assert level_of(broken.check, examine(app)) == "ok"
        for _ in range(2):  # what was broken on the way
            db.execute("update builder_score.worker_status set heartbeat_at = clock_timestamp()")
            db.execute("truncate cron.job_run_details")
            mend(server, app, [one for one in examine(app) if one["check"] != "job runs"])
        run(
            db,
            "alter role ops login; grant connect on database app to public;"
            "alter table users owner to postgres; drop function if exists public.audit() cascade;"
            "revoke all on users from ops;"
            "alter role postgres reset statement_timeout;"
            "alter database app reset statement_timeout;"
            "alter role postgres in database app reset statement_timeout;"
            "select cron.alter_job(jobid, username => 'postgres') from cron.job"
            " where not exists (select from cron.job where username = 'postgres');"
            "update builder_score.settings set workers = 1; select builder_score.schedule()",
        )


@pytest.mark.pg_cron
def test_a_launcher_that_has_ended(server: PrivateCluster, app: str) -> None:
    with connect(app) as db:
        db.execute(f"select pg_terminate_backend(pid) from ({LAUNCHER}) as l")
    # for the first ten seconds of a server's life it counts as starting
    until(lambda: level_of("pg_cron", examine(app)) == "fail", "its end is noticed")
    (ended,) = of("pg_cron", [one for one in examine(app) if one["level"] == "fail"])
    assert ended["message"] == "pg_cron's launcher has ended, and starts no job any more"
    assert ended["remedy"].endswith(f"# pg_ctl restart -D {server.data_dir}")
    server.restart()
    until(lambda: level_of("pg_cron", examine(app)) == "ok", "the launcher is back")


@pytest.mark.pg_cron
@pytest.mark.parametrize("change", ["nodename = 'db.example'", "nodeport = nodeport + 1"])
def test_a_job_that_leads_to_the_server_where_it_was_made(
    server: PrivateCluster, app: str, change: str
) -> None:
    # as after the promotion of a standby that is at another address, or a restore
    with connect(app) as db:
        run(db, f"update cron.job set {change}")
    (job,) = of("job", examine(app))
    assert job["level"] == "fail"
    assert f"this one is at {server.host}, port {server.port}" in job["message"]
    follow(server, app, job["remedy"])
    assert level_of("job", examine(app)) == "ok"


@pytest.mark.pg_cron
def test_a_connection_that_pg_hba_refuses(server: PrivateCluster, app: str) -> None:
    hba = server.data_dir / "pg_hba.conf"
    before = hba.read_text()
    with connect(app) as db:
        db.execute('create role "Ops Team" login; grant usage on schema cron to "Ops Team"')
        db.execute('grant builder_score_operator to "Ops Team"')
        db.execute("select cron.alter_job(jobid, username => 'Ops Team') from cron.job")
    try:
        hba.write_text("local all postgres trust\n")
        server.restart()  # the job starts with the server

        def runs() -> dict[str, Any]:
            return of("job runs", examine(app))[0]

        until(lambda: runs()["level"] == "fail", "the run has failed")
        refused = runs()
        assert "as Ops Team, failed: connection failed" in refused["message"]
        comment, line, then, reload = refused["remedy"].splitlines()
        assert str(hba) in comment
        assert (then, reload) == ("-- then:", "SELECT pg_reload_conf();")
        assert line == 'local app "Ops Team" trust'
        hba.write_text(f"{line}\n{hba.read_text()}")
        follow(server, app, reload)
        server.restart()
        until(lambda: runs()["level"] == "ok", "the run goes on")
        assert not_ok(examine(app)) == []
        with connect(app) as db:  # a run that outlives its job is no `pyscore worker`
            db.execute("select cron.unschedule(jobid) from cron.job")
            (job,) = of("job", examine(app))
            assert (job["level"], job["message"]) == (
                "fail",
                "pg_cron has no job for this database",
            )
            follow(server, app, job["remedy"])
    finally:
        hba.write_text(before)
        server.psql("-c", "select pg_reload_conf()")
        with connect(app) as db:
            db.execute("select cron.alter_job(jobid, username => 'postgres') from cron.job")


@pytest.mark.parametrize(
    ("host", "lines"),
    [
        (None, ["host app ops 127.0.0.1/32 trust", "host app ops ::1/128 trust"]),
        ("", ["local app ops trust"]),
        ("10.1.2.3", ["host app ops 10.1.2.3/32 trust"]),
        ("db.example.org", ["host app ops db.example.org trust"]),
    ],
)
def test_the_line_for_pg_hba_fits_cron_host(host: str | None, lines: list[str]) -> None:
    assert hba_lines(host, "app", "ops") == lines


@pytest.mark.pg_cron
def test_pg_cron_in_another_database_and_its_job_are_looked_at(
    server: PrivateCluster, app: str
) -> None:
    server.psql("-c", "create database elsewhere")
    address = server.conninfo("elsewhere")
    migrator.upgrade(address)
    (elsewhere,) = of("pg_cron", examine(address))
    assert elsewhere["level"] == "fail"
    assert elsewhere["message"].startswith("pg_cron works in another database, app, and nothing")
    assert elsewhere["remedy"].startswith("pyscore schedule --cron-dsn ")
    findings = examine(address, "--cron-dsn", app)
    assert level_of("pg_cron", findings) == "ok"
    (job,) = of("job", findings)
    assert (job["level"], job["remedy"]) == ("fail", elsewhere["remedy"])
    follow(server, address, elsewhere["remedy"])
    (job,) = of("job", examine(address, "--cron-dsn", app))
    assert job["message"] == "builder-score-worker@elsewhere, every minute, as postgres"
    (job,) = of("job", examine(app))  # which the other is none of
    assert job["message"] == "builder-score-worker, every minute, as postgres"
    with connect(app) as db:
        db.execute(
            "select cron.alter_job(jobid, active => false) from cron.job"
            " where jobname = 'builder-score-worker@elsewhere'"
        )
    (job,) = of("job", examine(address, "--cron-dsn", app))
    assert "is not active" in job["message"]
    assert job["remedy"].startswith("-- in database app:")
    follow(server, app, job["remedy"])
    assert level_of("job", examine(address, "--cron-dsn", app)) == "ok"
    with connect(address) as db:
        db.execute("alter table users owner to ops")
    (trust,) = of("trust", examine(address, "--cron-dsn", app))
    assert trust["level"] == "warn"
    follow(server, address, trust["remedy"])
    findings = examine(address, "--cron-dsn", app)
    assert level_of("trust", findings) == "ok"
    assert {one["message"].split(" as ")[1] for one in of("job", findings)} == {
        "builder_score_worker"
    }


@pytest.mark.pg_cron
def test_a_pg_cron_that_is_not_loaded_or_on_another_server(app: str) -> None:
    with PrivateCluster(settings=SERVER) as server:
        server.psql("-c", "create database app")
        address = server.conninfo("app")
        migrator.upgrade(address)
        (missing,) = of("pg_cron", examine(address))
        assert missing["level"] == "fail"
        assert missing["message"].startswith("pg_cron is installed on this server, and not loaded")
        comment, *lines, then, schedule = missing["remedy"].splitlines()
        config = re.match(r"# at the end of (\S+), then restart the server:$", comment)
        assert config
        assert config[1] == str(server.data_dir / "postgresql.conf")
        assert then == "-- then:"
        with open(config[1], "a") as opened:
            # and where this server can be reached
            opened.write("\n".join([*lines, f"cron.host = '{server.host}'", ""]))
        server.restart()
        follow(server, address, schedule)
        findings = examine(address)
        assert level_of("pg_cron", findings) == "ok"
        assert level_of("job", findings) == "ok"
        (other,) = of("pg_cron", examine(app, "--cron-dsn", address))
        assert (other["level"], other["message"]) == (
            "fail",
            "--cron-dsn leads to another server",
        )


@pytest.mark.pg_cron
def test_who_may_not_use_pg_cron_is_told_which_grant_is_missing(
    server: PrivateCluster, app: str
) -> None:
    with connect(app) as db:
        db.execute("create role looks login in role builder_score_operator")
        address = server.conninfo("app", user="looks")
        findings = examine(address)
        (job,) = of("job", findings)
        assert job["message"] == "not looked at as looks: permission denied for schema cron"
        follow(server, app, job["remedy"])
        assert "not looked at" not in str(
            [of(one, examine(address)) for one in ("job", "heartbeat")]
        )
        db.execute("drop owned by looks; drop role looks")


@pytest.mark.pg_cron
def test_a_job_that_somebody_else_removed_is_scheduled_as_the_installer(
    server: PrivateCluster, app: str
) -> None:
    with connect(app) as db:
        db.execute("create role boss superuser login")
        db.execute("select cron.unschedule(jobid) from cron.job")
        (job,) = of("job", examine(server.conninfo("app", user="boss")))
        assert job["remedy"].startswith("-- as postgres, ")
        db.execute("drop role boss")
        db.execute("select builder_score.schedule()")


@pytest.mark.pg_cron
def test_a_run_that_failed_is_quoted_without_the_statements_that_it_came_from(app: str) -> None:
    with connect(app) as db:
        db.execute(
            "insert into cron.job_run_details (jobid, runid, database, username, command, status,"
            " return_message, start_time)"
            " select jobid, 1000000, database, username, command, 'failed',"
            " E'ERROR:  no such thing\\nDETAIL:  none.\\nCONTEXT:  SQL statement', now()"
            " from cron.job where jobname = 'builder-score-worker'"
        )
        (found,) = of("job runs", examine(app))
        db.execute("truncate cron.job_run_details")
    assert found["message"].endswith("failed: ERROR: no such thing DETAIL: none.")
