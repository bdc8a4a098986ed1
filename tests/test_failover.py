"""The primary dies under load and its standby takes over: the job goes on there by itself."""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any

import pytest
from psycopg import Connection

from pyscore.cluster import PrivateCluster, Setting
from tests.attacks import Attack
from tests.community import one
from tests.interleave import assert_right, is_quiet, until
from tests.journal import (
    MEMBERS,
    Clients,
    assert_kept,
    assert_nothing_done_twice,
    fetch,
    prepare,
)
from tests.standby import standby_of
from tests.statements import connect

pytestmark = pytest.mark.pg_cron

SETTINGS: dict[str, Setting] = {
    "fsync": False,  # see test_crashes
    "max_connections": 50,
    "shared_preload_libraries": "pg_cron",
    "cron.database_name": "app",
    # What "localhost" is to servers on machines of their own: the one that runs the job. Its socket
    # is beside its data directory, in which all of its processes live.
    "cron.host": "/proc/self/cwd/..",
}
WORKER = "select pid from pg_stat_activity where query = 'call builder_score.run_worker()'"
STREAMING = "select sync_state from pg_stat_replication where state = 'streaming'"


@contextmanager
def primary_with_job() -> Generator[PrivateCluster]:
    with PrivateCluster(settings=SETTINGS, tcp=False) as server:
        server.psql("-c", "create database app")
        prepare(server.conninfo("app"))
        server.restart()  # the @reboot job spares us the wait for the next minute
        with connect(server.conninfo("app")) as db:
            until(lambda: len(fetch(db, WORKER)) == 1, "the job runs")
        yield server


@contextmanager
def reading(address: str) -> Generator[list[int]]:
    """Read everybody's score all the while, in one session; give how often that was done."""
    times, stop = [0], Event()

    def read() -> None:
        with connect(address) as db:
            while not stop.wait(0.002):
                found = fetch(db, "select builder_score from users where username ~ '^member'")
                assert len(found) == len(MEMBERS)
                assert all(0 <= score <= 100 for (score,) in found)
                times[0] += 1

    with ThreadPoolExecutor(1) as thread:
        reader = thread.submit(read)
        try:
            yield times
        finally:
            stop.set()
        reader.result()


def make_synchronous(db: Connection[Any]) -> None:
    """From here on a commit is acknowledged when the standby has it."""
    db.execute("alter system set synchronous_standby_names = '*'")
    db.execute("select pg_reload_conf()")
    until(lambda: fetch(db, STREAMING) == [("sync",)], "the standby is synchronous")
    until(lambda: one(db, "show synchronous_standby_names") == "*", "and sessions know it")


def until_all_wait(db: Connection[Any], clients: int) -> None:
    """Return once every client has a commit that the standby does not acknowledge."""
    waiting = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'"
    until(lambda: one(db, waiting) >= clients, "every client's commit waits")


def until_received(db: Connection[Any], standby: Connection[Any]) -> None:
    """Let the standby receive what there is by now."""
    now = one(db, "select pg_current_wal_insert_lsn()")
    received = "select coalesce(pg_last_wal_receive_lsn() >= %s, false)"
    until(lambda: one(standby, received, now), "the standby has what was committed")


def cut_off(standby: Connection[Any]) -> None:
    """Let the standby receive nothing that comes later."""
    standby.execute("alter system set primary_conninfo = ''")
    standby.execute("select pg_reload_conf()")
    receivers = "select count(*) from pg_stat_wal_receiver"
    until(lambda: one(standby, receivers) == 0, "nothing more is received")


REPLICATION = ("synchronous", "asynchronous")


@pytest.mark.parametrize("replication", REPLICATION)
def test_a_promoted_standby_carries_on_by_itself_with_all_that_had_reached_it(
    replication: str, attack: Attack
) -> None:
    for dice in attack.rounds(1):
        seed = dice.randrange(2**32)
        # or it dies in the middle of sending; in two rounds each kind of replication has both
        is_cut_off = attack.in_turn([True, False], place=REPLICATION.index(replication))
        with (
            primary_with_job() as primary,
            connect(primary.conninfo("app")) as db,
            standby_of(primary, settings=SETTINGS, port=primary.port) as standby,
            connect(standby.conninfo("app")) as promoted,
            reading(standby.conninfo("app")) as times,
        ):
            until(lambda: len(fetch(db, STREAMING)) == 1, "the standby follows")
            if replication == "synchronous":
                make_synchronous(db)
            with Clients(primary.conninfo("app"), seed=seed) as before:
                before.go_on(dice.randint(100, 400))
                assert fetch(promoted, WORKER) == [], "nothing of ours runs on a standby"
                reached = before.acknowledged()
                until_received(db, promoted)
                if is_cut_off:
                    cut_off(promoted)
                if is_cut_off and replication == "synchronous":
                    until_all_wait(db, len(before.each))
                else:
                    before.go_on(dice.randint(10, 100))
                assert is_cut_off or fetch(db, STREAMING)
                primary.kill()
            if replication == "synchronous":
                reached = before.acknowledged()
            assert one(promoted, "select pg_promote()")
            until(lambda: len(fetch(promoted, WORKER)) == 1, "the job starts by itself")
            with Clients(standby.conninfo("app"), seed=seed, first=len(before.each)) as after:
                after.go_on(dice.randint(100, 400))
            until(lambda: is_quiet(promoted), "the job has done what was left, by itself")
            assert_right(promoted)
            assert_kept(promoted, before, after, at_least=reached | after.acknowledged())
            assert_nothing_done_twice(promoted)
            if is_cut_off:
                kept = one(promoted, "select count(*) from ledger where client < 'client 4'")
                assert (kept < before.committed) == (replication == "asynchronous")
            assert times[0] > 10
        attack.count("failovers")
        attack.count("failovers in the middle of sending", not is_cut_off)
        attack.count("transactions", before.committed + after.committed)
        attack.count("reads on the standby", times[0])
