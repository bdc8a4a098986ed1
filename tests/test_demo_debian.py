"""Act two of the demo: its data, and how they are written."""

from __future__ import annotations

from typing import Any

from psycopg import Connection
from psycopg.rows import TupleRow

from pyscore.demo import debian
from tests.community import configure, drain, one
from tests.oracle import assert_all_right


def read_back(db: Connection[Any]) -> list[debian.Package]:
    """The packages as the application's tables hold them."""
    rows = db.execute("""
        select p.title, o.username, coalesce(c.names, '{}'), p.status,
               (p.impact_metrics ->> 'users')::integer
        from projects as p
        join users as o on o.id = p.owner_id
        left join lateral (
            select array_agg(u.username order by u.username) as names
            from project_collaborators as k join users as u on u.id = k.user_id
            where k.project_id = p.id and k.status = 'confirmed'
        ) as c on true
        order by p.title collate "C"
    """).fetchall()
    return [debian.Package(name, owner, tuple(c), status, n) for name, owner, c, status, n in rows]


def test_the_data_is_complete() -> None:
    packages = debian.read_packages()
    people = {name for p in packages for name in (p.owner, *p.collaborators)}
    assert (len(packages), len(people)) == (34289, 3566)
    assert sum(p.owner == "bc9b6b0b9ff" for p in packages) == 3904
    assert {p.status for p in packages} == {"shipped", "in_progress", "archived"}
    assert packages[7] == debian.Package("3270font", "bb8436a8334", ("bc28ef4c917",), "shipped", 1)


def test_a_loaded_slice_is_scored_right(db: Connection[TupleRow]) -> None:
    packages = debian.read_packages()[::60]
    rows = debian.load(db, packages)
    for table, count in rows.items():
        assert one(db, f"select count(*) from {table}") == count
    assert read_back(db) == sorted(packages, key=lambda package: package.name)
    configure(db, debounce_window="0")
    drain(db)
    assert_all_right(db)
    assert one(db, "select max(builder_score) from users") > 30


def test_every_write_of_the_load_is_an_event(db: Connection[TupleRow]) -> None:
    rows = debian.load(db, debian.read_packages()[:100])
    # a collaboration appends its user, and its project for the owner
    events = rows["users"] + rows["projects"] + 2 * rows["project_collaborators"]
    assert one(db, "select count(*) from builder_score.score_recalc_queue") == events


def test_the_load_commits_every_few_hundred_rows(db: Connection[TupleRow]) -> None:
    debian.load(db, debian.read_packages()[:700])
    for table in ("users", "projects"):
        largest = one(
            db, f"select max(n) from (select count(*) as n from {table} group by xmin::text) as t"
        )
        assert 100 < largest <= 300
