"""What a DBA builds on our schema: monitoring, and views of their own."""

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pyscore import migrator
from pyscore.cluster import PrivateCluster
from tests.commands import call, error_line, output
from tests.conftest import dsn


def test_a_monitoring_role_needs_the_schema_the_health_view_and_one_function(
    server: PrivateCluster, database: str
) -> None:
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("create role test_monitor login")
        try:
            db.execute("grant usage on schema builder_score to test_monitor")
            db.execute("grant select on builder_score.health to test_monitor")
            db.execute("grant execute on function builder_score.recent_rate to test_monitor")
            name = str(conninfo_to_dict(database)["dbname"])
            address = dsn(server, name, user="test_monitor")
            with psycopg.connect(address, autocommit=True) as monitor:
                row = monitor.execute(
                    "select queue_depth, due_now, oldest_due_age, dead_letters, retrying,"
                    " heartbeat_age, paused, recalculated_per_second from builder_score.health"
                ).fetchone()
            assert row is not None
        finally:
            db.execute("drop owned by test_monitor; drop role test_monitor")


def test_uninstall_names_a_view_that_somebody_built_on_ours_and_goes_on_without_it(
    empty_database: str,
) -> None:
    migrator.upgrade(empty_database)
    with psycopg.connect(empty_database, autocommit=True) as db:
        db.execute("create view waiting as select count(*) from builder_score.score_recalc_queue")
        line = error_line(call("uninstall", "--yes", "--dsn", empty_database))
        assert "view waiting depends on table builder_score.score_recalc_queue" in line
        db.execute("drop view waiting")
        output(call("uninstall", "--yes", "--dsn", empty_database))
        row = db.execute("select to_regnamespace('builder_score') is null").fetchone()
    assert row == (True,)
