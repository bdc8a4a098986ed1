"""``pyscore metrics``: what it exposes, in which form, and what without a database."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, cast
from uuid import uuid4

import psycopg
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics import parser
from prometheus_client.parser import text_string_to_metric_families as plain_text
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pyscore.cluster import PrivateCluster
from tests.commands import call, environment, error_line, output, running
from tests.community import add_user, configure, drain, one
from tests.conftest import dsn
from tests.interleave import until

open_metrics: Callable[[str], Iterable[Metric]] = cast(Any, parser).text_string_to_metric_families

Samples = dict[str, float]
"""Values by name and labels, as Prometheus writes them."""


def samples(families: Iterable[Metric]) -> Samples:
    found: Samples = {}
    for family in families:
        assert family.documentation, family.name
        for one_ in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(one_.labels.items()))
            key = f"{one_.name}{{{labels}}}" if labels else one_.name
            assert key not in found
            found[key] = one_.value
    return found


def printed(database: str) -> Samples:
    return samples(open_metrics(output(call("metrics", "--dsn", database))))


# What is exposed ----------------------------------------------------------------------------------


def test_names_are_by_the_conventions_of_prometheus(database: str, db: Connection[Any]) -> None:
    add_user(db, "ada")
    drain(db)
    text = output(call("metrics", "--dsn", database))
    assert text.endswith("\n# EOF\n")
    for family in open_metrics(text):
        assert re.fullmatch(r"pyscore(_[a-z]+)+", family.name)
        assert not family.name.endswith(("_total", "_count", "_sum", "_bucket", "_info"))
        assert family.type != "unknown"
        assert family.documentation.endswith(".")
        for unit in ("seconds", "bytes"):
            assert (family.unit == unit) == family.name.endswith(f"_{unit}")


def test_the_queue_is_told_by_priority(database: str, db: Connection[Any]) -> None:
    db.execute("delete from builder_score.score_recalc_queue")
    db.execute("""
        insert into builder_score.score_recalc_queue (user_id, priority, reason, not_before)
        select gen_random_uuid(), p, 'test', clock_timestamp() + d
        from (values (10, '-70 seconds'::interval), (10, '-5 seconds'), (10, '1 hour'),
                     (20, '1 hour')) as r(p, d)
    """)
    seen = printed(database)
    for priority, rows, due, oldest in (("high", 0, 0, 0), ("medium", 3, 2, 70), ("low", 1, 0, 0)):
        label = f'{{priority="{priority}"}}'
        assert seen[f"pyscore_queue_rows{label}"] == rows
        assert seen[f"pyscore_queue_due_rows{label}"] == due
        age = seen[f"pyscore_queue_oldest_due_age_seconds{label}"]
        assert oldest <= age < oldest + 60


TOTALS = {
    "batches": "pyscore_batch_seconds_count",
    "batch_seconds": "pyscore_batch_seconds_sum",
    "passes": "pyscore_passes_total",
    "recalculated": "pyscore_recalculations_total",
    "changed": "pyscore_score_changes_total",
    "failed": "pyscore_failures_total",
}


def test_totals_are_the_databases_and_only_grow(database: str, db: Connection[Any]) -> None:
    configure(db, debounce_window="0")
    db.execute("""
        create function refuse() returns trigger language plpgsql as
            'begin if new.username = ''eve'' then raise exception ''not her''; end if;
             return new; end';
        create trigger refuse before update of builder_score on users
            for each row execute function refuse();
    """)
    before = dict.fromkeys(TOTALS, 0.0)
    for names in (["ada", "eve"], ["grace"]):
        for name in names:
            add_user(db, name, bio="ships")
        drain(db)  # a run of its own, as after a restart of the worker
        seen = printed(database)
        now = {column: seen[f'{name}{{worker="drain"}}'] for column, name in TOTALS.items()}
        assert all(now[column] > before[column] for column in TOTALS if column != "failed"), now
        before = now
    assert (before["recalculated"], before["changed"], before["failed"]) == (2, 2, 1)
    last = one(
        db, "select last_batch_seconds from builder_score.worker_status where worker = 'drain'"
    )
    assert before["batch_seconds"] > last > 0
    assert seen["pyscore_retrying_users"] == 1


def test_the_distribution_has_buckets_and_tiers(database: str, db: Connection[Any]) -> None:
    scores = [0.0, 10.0, 10.5, 30.0, 30.9, 31.0, 55.5, 100.0]
    db.execute("delete from builder_score.score_state")
    db.execute(
        "insert into builder_score.score_state (user_id, score, computed_at)"
        " select gen_random_uuid(), s, now() from unnest(%s::numeric[]) as s",
        [scores],
    )
    seen = printed(database)
    for bound in range(0, 101, 10):
        expected = sum(score <= bound for score in scores)
        assert seen[f'pyscore_score_bucket{{le="{bound:.1f}"}}'] == expected
    assert seen['pyscore_score_bucket{le="+Inf"}'] == seen["pyscore_score_gcount"] == 8
    assert seen["pyscore_score_gsum"] == pytest.approx(sum(scores))
    tiers = [seen[f'pyscore_tier_people{{tier="{tier}"}}'] for tier in (1, 2, 3, 4)]
    assert tiers == [5, 2, 0, 1], "30.9 is still in the first"


def test_workers_that_beat_and_those_that_have_had_their_day(
    database: str, db: Connection[Any]
) -> None:
    assert not [name for name in printed(database) if "heartbeat" in name], "none ever ran"
    db.execute("update builder_score.settings set workers = 2")
    db.execute("""
        insert into builder_score.worker_status (worker, heartbeat_at)
        select 'resident-' || n, clock_timestamp() - interval '10 minutes'
        from generate_series(2, 3) as n
    """)
    db.execute(
        "update builder_score.worker_status set heartbeat_at = clock_timestamp()"
        " where worker = 'resident'"
    )
    seen = printed(database)
    ages = {name: value for name, value in seen.items() if "heartbeat" in name}
    assert list(ages) == [
        f'pyscore_heartbeat_age_seconds{{worker="{worker}"}}'
        for worker in ("resident", "resident-2")
    ]
    fresh, stale = ages.values()
    assert 0 <= fresh < 60
    assert 600 <= stale < 660
    assert (seen["pyscore_workers"], seen["pyscore_workers_heard"]) == (2, 1)


def test_state_problems_and_backfill(database: str, db: Connection[Any]) -> None:
    seen = printed(database)
    assert (seen["pyscore_paused"], seen["pyscore_attached"]) == (0, 1)
    assert seen["pyscore_backfill_running"] == 0
    assert "pyscore_backfill_seen_users" not in seen
    db.execute("select builder_score.start_backfill('a new formula', false)")
    db.execute("update builder_score.backfill set seen = 3, estimated_total = 7")
    db.execute("select builder_score.detach()")
    configure(db, paused=True)
    seen = printed(database)
    assert (seen["pyscore_paused"], seen["pyscore_attached"]) == (1, 0)
    assert seen["pyscore_problems"] == 2
    assert seen["pyscore_backfill_running"] == 1
    assert seen["pyscore_backfill_seen_users"] == 3
    assert seen["pyscore_backfill_estimated_users"] == 7
    assert seen['pyscore_scheduler{pyscore_scheduler="none"}'] == 1
    assert seen['pyscore_scheduler{pyscore_scheduler="pg_cron"}'] == 0
    assert seen['pyscore_table_size_bytes{table="score_recalc_queue"}'] > 0


def test_the_older_form_has_the_same_numbers(database: str, db: Connection[Any]) -> None:
    """For node_exporter's textfile collector, which refuses OpenMetrics' own types."""
    add_user(db, "ada")
    drain(db)
    text = output(call("metrics", "--format", "prometheus", "--dsn", database))
    types = set(re.findall(r"^# TYPE \w+ (\w+)$", text, re.M))
    assert types <= {"counter", "gauge", "summary", "histogram", "untyped"}
    older, newer = samples(plain_text(text)), printed(database)
    assert set(older) == set(newer)
    changing = ("pyscore_scrape_duration_seconds",)
    assert {name: value for name, value in older.items() if name not in changing} == {
        name: value for name, value in newer.items() if name not in changing
    }


# With which rights, and where ---------------------------------------------------------------------


def test_the_operator_role_is_enough(server: PrivateCluster, database: str) -> None:
    role = f"metrics_{uuid4().hex[:12]}"
    server.psql("-c", f"create role {role} login in role builder_score_operator")
    try:
        address = dsn(server, str(conninfo_to_dict(database)["dbname"]), user=role)
        assert set(printed(address)) == set(printed(database))
    finally:
        server.psql("-c", f"drop role {role}")


# How it ends --------------------------------------------------------------------------------------


def test_what_goes_wrong_is_one_line(database: str, empty_database: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = error_line(call("metrics", "--serve", port, "--dsn", database))
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use" in line
    line = error_line(
        call("metrics", "--serve", "0", "--address", "nowhere.invalid", "--dsn", database)
    )
    assert "cannot listen on nowhere.invalid" in line
    for options in ([], ["--serve", "0"]):
        assert "not installed" in error_line(call("metrics", *options, "--dsn", empty_database))
        error_line(call("metrics", *options, "--dsn", "mysql://x"), 2)
        assert "cannot connect" in error_line(
            call("metrics", *options, "--dsn", "host=127.0.0.1 port=1")
        )
    for options in (
        ["--serve", "70000"],
        ["--serve", "-1"],
        ["--serve", "x"],
        ["--address", "::1"],
        ["--serve", "0", "--format", "prometheus"],
        ["--timeout", "nan"],
        ["--timeout", "0"],
    ):
        error_line(call("metrics", *options, "--dsn", database), 2)


WITHOUT = """
import sys
sys.modules["prometheus_client"] = None
sys.argv = ["pyscore", "metrics"]
from pyscore.cli import main
main()
"""


def test_without_the_extra_it_says_what_to_install() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, env=environment()
    )
    line = error_line(done)
    assert line.endswith("install it with: pip install 'pyscore[metrics]'")


def test_a_statement_that_takes_too_long_is_given_up(database: str, db: Connection[Any]) -> None:
    with psycopg.connect(database) as other:
        other.execute("lock table builder_score.score_recalc_queue in access exclusive mode")
        line = error_line(call("metrics", "--timeout", "0.1", "--dsn", database))
    assert "statement timeout" in line


# Served -------------------------------------------------------------------------------------------


@contextmanager
def serving(database: str, *options: str) -> Generator["tuple[subprocess.Popen[str], str]"]:
    """Run the endpoint; give its process and address."""
    with running("metrics", "--serve", "0", "--dsn", database, *options) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.fullmatch(r"serving (http://.+:\d+/metrics)\n", line)
        assert found is not None, line + process.stderr.read()
        yield process, found[1]


def scrape(url: str) -> Samples:
    wanted = {"Accept": "application/openmetrics-text; version=1.0.0"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=wanted), timeout=30) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        return samples(open_metrics(answer.read().decode()))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_what_it_prints_until_it_is_told_to_end(
    database: str, number: signal.Signals
) -> None:
    with serving(database) as (process, url):
        assert url.startswith("http://127.0.0.1:"), "loopback, unless told otherwise"
        assert set(scrape(url)) == set(printed(database))
        process.send_signal(number)
        _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (0, "stopped\n")


def test_a_plain_scraper_gets_the_older_form(database: str) -> None:
    with serving(database, "--address", "::1") as (_, url):
        assert url.startswith("http://[::1]:")
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain")
            assert samples(plain_text(answer.read().decode()))["pyscore_up"] == 1


def test_a_database_that_goes_away_and_comes_back(database: str, db: Connection[Any]) -> None:
    name = conninfo_to_dict(database)["dbname"]
    maintenance = make_conninfo(database, dbname="postgres")
    with serving(database) as (process, url), psycopg.connect(maintenance, autocommit=True) as dba:
        assert scrape(url)["pyscore_up"] == 1
        dba.execute(f"alter database {name} allow_connections false".encode())
        for nth in (1, 2):
            down = scrape(url)
            assert down["pyscore_up"] == 0
            assert down["pyscore_scrape_errors_total"] == nth
            assert "pyscore_workers" not in down
        dba.execute(f"alter database {name} allow_connections true".encode())
        assert scrape(url)["pyscore_up"] == 1
        process.terminate()
        _, stderr = process.communicate(timeout=20)
    why, again, stopped = stderr.splitlines()
    assert why.startswith("pyscore: cannot connect to ")
    assert (again, stopped) == ("reading again", "stopped")


def test_scrapes_at_once_share_a_reading_however_long_it_takes(
    database: str, db: Connection[Any]
) -> None:
    readers = "select pid from pg_stat_activity where application_name = 'the metrics'"
    waiting = f"select exists ({readers} and wait_event_type = 'Lock')"
    address = make_conninfo(database, application_name="the metrics")
    with (
        serving(address, "--timeout", "2") as (process, url),
        psycopg.connect(database) as other,
        ThreadPoolExecutor(4) as scrapers,
    ):
        other.execute("lock table builder_score.score_state in access exclusive mode")
        scrapes = [scrapers.submit(scrape, url)]
        until(lambda: one(db, waiting), "a scrape is under way")
        pid = one(db, readers)
        os.kill(pid, signal.SIGSTOP)  # its statement does not time out: nothing comes any more
        try:
            scrapes += [scrapers.submit(scrape, url) for _ in range(3)]
            for answer in (one_.result() for one_ in scrapes):
                assert answer["pyscore_up"] == 0
                assert answer["pyscore_scrape_duration_seconds"] < 15, "it is not waited for"
        finally:
            os.kill(pid, signal.SIGCONT)
        other.rollback()
        until(lambda: scrape(url)["pyscore_up"] == 1, "it is up again")
        process.terminate()
        _, stderr = process.communicate(timeout=20)
    # one of its own would have had its statement time out
    assert stderr.splitlines() == ["pyscore: no answer within 3 s", "reading again", "stopped"]
