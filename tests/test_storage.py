"""How our own tables are stored: room for a next version, and vacuum that locks nobody out."""

from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection

from pyscore.cluster import PrivateCluster
from tests.community import add_user, configure, drain, one
from tests.statements import connect
from tests.test_dump_restore import custom, target

__all__ = ["target"]

SETTINGS = {
    "score_counts": {
        "vacuum_truncate=off",
        "autovacuum_vacuum_scale_factor=0",
        "autovacuum_vacuum_threshold=500",
    },
    "score_recalc_queue": {"vacuum_truncate=off", "autovacuum_vacuum_insert_threshold=-1"},
    "score_state": {"fillfactor=50"},
}
"""What benchmarks/README.md has the figures of."""

PEOPLE = 300  # several pages of score_state


def settings(db: Connection[Any]) -> dict[str, set[str]]:
    query = """
        select c.relname, c.reloptions from pg_class as c
        where c.relnamespace = 'builder_score'::regnamespace and c.relkind = 'r'
          and c.reloptions is not null"""
    return {name: set(options) for name, options in db.execute(query).fetchall()}


def updates_of_state(db: Connection[Any]) -> tuple[int, int]:
    """Updates so far, and those of them that wrote to no index."""
    db.execute("select pg_stat_force_next_flush()")
    query = """
        select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables
        where relid = 'builder_score.score_state'::regclass"""
    return db.execute(query).fetchall()[0]


def test_tables_are_stored_as_was_measured(db: Connection[Any]) -> None:
    assert settings(db) == SETTINGS


def test_tables_are_stored_so_after_a_restore(
    server: PrivateCluster, database: str, target: str, tmp_path: Path
) -> None:
    custom(server, database, target, tmp_path)
    with connect(target) as restored:
        assert settings(restored) == SETTINGS


def test_everyone_is_recalculated_without_a_write_to_an_index(db: Connection[Any]) -> None:
    configure(db, debounce_window="0", batch_target="10 seconds")
    for number in range(PEOPLE):
        add_user(db, f"person{number}")
    drain(db)
    # a batch for all: no version that it leaves behind makes room before it ends
    db.execute("select builder_score.enqueue(id) from users")
    before = updates_of_state(db)
    drain(db)
    after = updates_of_state(db)
    assert (after[0] - before[0], after[1] - before[1]) == (PEOPLE, PEOPLE)


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("score_recalc_queue", "(priority, reason) select 10, 'x'"),
        ("score_counts", "(scores, people) select '{1}', '{1}'"),
    ],
)
def test_vacuum_never_takes_the_lock_that_gives_back_the_end_of_a_table(
    db: Connection[Any], table: str, row: str
) -> None:
    size = f"select pg_relation_size('builder_score.{table}')"
    db.execute(f"insert into builder_score.{table} {row} from generate_series(1, 2000)".encode())
    filled = one(db, size)
    db.execute(f"delete from builder_score.{table}".encode())
    db.execute(f"vacuum builder_score.{table}".encode())
    assert one(db, size) == filled > 0
