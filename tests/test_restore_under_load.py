"""Dumps and backups that are taken while the application and the worker go on."""

import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection

from pyscore.cluster import PrivateCluster, Setting
from tests.attacks import Attack
from tests.community import add_project, add_user, configure, drain, one, queue, score
from tests.interleave import (
    Sessions,
    assert_right,
    batch_stopped,
    install_gates,
    is_quiet,
    settle,
    until,
)
from tests.journal import Clients, assert_kept, assert_nothing_done_twice, fetch, prepare
from tests.standby import base_backup
from tests.statements import connect
from tests.test_dump_restore import Way, custom, plain

SETTINGS: dict[str, Setting] = {"fsync": False, "max_connections": 50}
ARCHIVING: dict[str, Setting] = {"archive_mode": "on", "archive_command": "cp %p ../%f.archived"}

_numbers = count(1)


@pytest.fixture(scope="module")
def busy_server() -> Iterator[PrivateCluster]:
    with PrivateCluster(settings=SETTINGS | ARCHIVING, tcp=False) as server:
        yield server


@contextmanager
def databases(server: PrivateCluster, *kinds: str) -> Generator[list[str]]:
    """Create a database of each kind, give their names, drop them."""
    names = [f"{kind}_{next(_numbers)}" for kind in kinds]
    for name in names:
        server.psql("-c", f"create database {name}")
    yield names
    for name in names:
        server.psql("-c", f"drop database {name} with (force)")


@contextmanager
def at_work(address: str, seed: int) -> Generator[Clients]:
    """Clients and a worker, for as long as the context lasts."""
    with connect(address) as db, Sessions(address) as sessions:
        worker = sessions("worker")
        worker.start("call builder_score.run_worker('1 hour')")
        with Clients(address, seed=seed) as clients:
            yield clients
        configure(db, paused=True)
        worker.finish()


def assert_goes_on(db: Connection[Any], address: str, seed: int, before: Clients) -> Clients:
    """Drain what is left, use it again, and drain that; give the clients who did."""

    def drained() -> bool:
        drain(db)
        return is_quiet(db)

    until(drained, "what was pending is done")
    assert_right(db)
    with Clients(address, seed=seed, first=len(before.each)) as after:
        after.go_on(50)
    until(drained, "what came is done")
    assert_right(db)
    assert_nothing_done_twice(db)
    return after


@pytest.mark.parametrize("dump_and_restore", [custom, plain])
def test_a_dump_that_is_taken_under_load_is_restored_and_goes_on(
    busy_server: PrivateCluster, tmp_path: Path, dump_and_restore: Way, attack: Attack
) -> None:
    for number, dice in enumerate(attack.rounds(1)):
        folder = tmp_path / str(number)
        folder.mkdir()
        with databases(busy_server, "app", "restored") as names:
            source, target = map(busy_server.conninfo, names)
            prepare(source)
            seed = dice.randrange(2**32)
            with at_work(source, seed) as before:
                before.go_on(dice.randint(50, 300))
                certain = before.acknowledged()
                dump_and_restore(busy_server, source, target, folder)
                before.go_on(20)
            with connect(target) as restored:
                pending = one(restored, "select count(*) from builder_score.verify()")
                after = assert_goes_on(restored, target, seed, before)
                assert_kept(restored, before, after, at_least=certain | after.acknowledged())
        attack.count("restores")
        attack.count("transactions", before.committed + after.committed)
        attack.count("scores pending in a dump", pending)


def test_a_dump_that_is_taken_within_a_batch_holds_nothing_of_it(
    busy_server: PrivateCluster, tmp_path: Path
) -> None:
    with databases(busy_server, "app", "restored") as names:
        source, target = map(busy_server.conninfo, names)
        prepare(source)
        with connect(source) as db, connect(target) as restored, Sessions(source) as sessions:
            configure(db, debounce_window="0")
            install_gates(db)
            settle(db)
            ann = add_user(db, "ann")
            add_project(db, ann, status="shipped")
            queued = queue(db)
            with batch_stopped(sessions("worker"), sessions("keeper"), "after computing"):
                custom(busy_server, source, target, tmp_path)
            assert score(db, ann) == 10
            assert (score(restored, ann), queue(restored)) == (0, queued)
            settle(restored)
            assert score(restored, ann) == 10
            assert_right(restored)


def to_a_point_in_time(
    server: PrivateCluster, directory: Path, db: Connection[Any]
) -> dict[str, Setting]:
    """Recover from the archive up to this moment."""
    name = directory.name
    (directory / "data" / "recovery.signal").touch(mode=0o666)
    point = one(db, "select pg_walfile_name(pg_create_restore_point(%s))", name)
    db.execute("select pg_switch_wal()")
    archived = "select coalesce(last_archived_wal >= %s, false) from pg_stat_archiver"
    until(lambda: one(db, archived, point), "what leads to the point is archived")
    return {
        "restore_command": f'cp "{server.directory}/%f.archived" "%p"',
        "recovery_target_name": name,
        "recovery_target_action": "promote",
    }


def is_promoted(db: Connection[Any]) -> bool:
    return not one(db, "select pg_is_in_recovery()")


def test_a_backup_of_the_files_that_is_taken_under_load_is_recovered_and_goes_on(
    busy_server: PrivateCluster, attack: Attack
) -> None:
    for dice in attack.rounds(1):
        archived = dice.choice((True, False))  # the one round of the short form: True
        with databases(busy_server, "app") as (name,):
            source, seed = busy_server.conninfo(name), dice.randrange(2**32)
            prepare(source)
            with connect(source) as db, at_work(source, seed) as before:
                before.go_on(dice.randint(50, 300))
                certain = before.acknowledged()
                directory = base_backup(busy_server)
                settings: dict[str, Setting] = {}
                if archived:
                    before.go_on(dice.randint(50, 300))
                    certain = before.acknowledged()
                    settings = to_a_point_in_time(busy_server, directory, db)
                begun = before.begun()
                before.go_on(20)
        with PrivateCluster(directory, settings=SETTINGS | settings, tcp=False) as server:
            address = server.conninfo(name)
            with connect(address) as recovered:
                until(lambda: is_promoted(recovered), "it is recovered")
                there = set(fetch(recovered, "select client, number from ledger"))
                assert there <= begun
                after = assert_goes_on(recovered, address, seed, before)
                assert_kept(recovered, before, after, at_least=certain | after.acknowledged())
            server.stop("immediate")
        shutil.rmtree(directory)
        for file in busy_server.directory.glob("*.archived"):
            file.unlink()
        attack.count("restores")
        attack.count("transactions", before.committed + after.committed)
