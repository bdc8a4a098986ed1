"""Random communities, written in random order: when nothing is queued, every score is right."""

import itertools
from collections.abc import Iterator
from random import Random
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import Connection, sql

from pyscore.cluster import PrivateCluster
from tests.community import add_user, configure, drain, insert
from tests.conftest import janitor
from tests.inputs import (
    AGES,
    COLLABORATION_STATUSES,
    LINKS,
    METRICS,
    PROJECT_STATUSES,
    STARS,
    TEXTS,
)
from tests.oracle import assert_all_right

Db = Connection[Any]

NAMES = itertools.count()

# Which of the rows there are: the n-th, counted round and round.
NTH = st.sampled_from(range(12))


def add_person(db: Db, bio: str | None, role: str | None, links: str, age_days: int) -> None:
    user = add_user(db, f"user{next(NAMES)}", bio=bio, primary_role=role)
    db.execute(
        "update users set contact_links = %s, created_at = now() - make_interval(days => %s) "
        "where id = %s",
        [links, age_days, user],
    )


def edit_person(db: Db, nth: int, bio: str | None, zone: str | None, links: str) -> None:
    if user := pick(db, "users", nth):
        query = "update users set bio = %s, timezone = %s, contact_links = %s where id = %s"
        db.execute(query, [bio, zone, links, user])


def move_birthday(db: Db, nth: int, age_days: int) -> None:
    query = "update users set created_at = now() - make_interval(days => %s) where id = %s"
    db.execute(query, [age_days, pick(db, "users", nth)])


def overwrite_score(db: Db, nth: int, stale: int | None) -> None:
    db.execute("update users set builder_score = %s where id = %s", [stale, pick(db, "users", nth)])


def remove_person(db: Db, nth: int) -> None:
    db.execute("delete from users where id = %s", [pick(db, "users", nth)])


def start_project(db: Db, nth: int, status: str, stars: int, metrics: str) -> None:
    if owner := pick(db, "users", nth):
        columns = {"owner_id": owner, "title": "it", "status": status, "github_stars": stars}
        insert(db, "projects", columns | {"impact_metrics": metrics})


def edit_project(db: Db, nth: int, status: str, stars: int, metrics: str) -> None:
    query = "update projects set status = %s, github_stars = %s, impact_metrics = %s where id = %s"
    db.execute(query, [status, stars, metrics, pick(db, "projects", nth)])


def transfer(db: Db, nth: int, to: int) -> None:
    query = "update projects set owner_id = coalesce(%s, owner_id) where id = %s"
    db.execute(query, [pick(db, "users", to), pick(db, "projects", nth)])


def remove_project(db: Db, nth: int) -> None:
    db.execute("delete from projects where id = %s", [pick(db, "projects", nth)])


def collaborate(db: Db, nth: int, user: int, status: str) -> None:
    db.execute(
        "insert into project_collaborators (project_id, user_id, status) "
        "select p, u, %s from (values (%s::uuid, %s::uuid)) as v (p, u) "
        "where p is not null and u is not null "
        "on conflict (project_id, user_id) do update set status = excluded.status",
        [status, pick(db, "projects", nth), pick(db, "users", user)],
    )


def answer(db: Db, nth: int, status: str) -> None:
    query = "update project_collaborators set status = %s where id = %s"
    db.execute(query, [status, pick(db, "project_collaborators", nth)])


def move_collaboration(db: Db, nth: int, project: int, user: int) -> None:
    collaboration = pick(db, "project_collaborators", nth)
    db.execute(
        "update project_collaborators as c set project_id = v.p, user_id = v.u "
        "from (values (%s::uuid, %s::uuid)) as v (p, u) "
        "where c.id = %s and v.p is not null and v.u is not null and not exists ("
        "  select from project_collaborators as k where k.project_id = v.p and k.user_id = v.u)",
        [pick(db, "projects", project), pick(db, "users", user), collaboration],
    )


def leave(db: Db, nth: int) -> None:
    query = "delete from project_collaborators where id = %s"
    db.execute(query, [pick(db, "project_collaborators", nth)])


def ship_everything(db: Db) -> None:
    db.execute("update projects set status = 'shipped'")


def forget_collaborations(db: Db) -> None:
    db.execute("truncate project_collaborators")


def pick(db: Db, table: LiteralString, nth: int) -> UUID | None:
    # By the row's place, not its random key: an example must fail the same way again.
    row = db.execute(
        f"select id from {table} order by ctid "
        f"offset %s %% greatest((select count(*) from {table}), 1) limit 1",
        [nth],
    ).fetchone()
    return row[0] if row else None


COLLABORATE = st.tuples(st.just(collaborate), NTH, NTH, COLLABORATION_STATUSES)
TRANSFER = st.tuples(st.just(transfer), NTH, NTH)
MOVE = st.tuples(st.just(move_collaboration), NTH, NTH, NTH)
ADD_PERSON = st.tuples(st.just(add_person), TEXTS, TEXTS, LINKS, AGES)
START_PROJECT = st.tuples(st.just(start_project), NTH, PROJECT_STATUSES, STARS, METRICS)
OTHER_WRITES = (
    ADD_PERSON,
    START_PROJECT,
    st.tuples(st.just(edit_person), NTH, TEXTS, TEXTS, LINKS),
    st.tuples(st.just(move_birthday), NTH, AGES),
    st.tuples(st.just(overwrite_score), NTH, st.sampled_from([None, 0, 7, 100])),
    st.tuples(st.just(remove_person), NTH),
    st.tuples(st.just(edit_project), NTH, PROJECT_STATUSES, STARS, METRICS),
    st.tuples(st.just(remove_project), NTH),
    st.tuples(st.just(answer), NTH, COLLABORATION_STATUSES),
    st.tuples(st.just(leave), NTH),
    st.tuples(st.just(ship_everything)),
    st.tuples(st.just(forget_collaborations)),
)
# More than half of all writes concern people whom no column of the written row names.
WRITE = st.one_of(*[COLLABORATE, COLLABORATE, TRANSFER, TRANSFER, MOVE] * 4, *OTHER_WRITES)
# A transaction's writes, how it ends, and whether the worker runs after it. Few writes each: a
# forgotten user is soon enqueued for another reason.
TRANSACTION = st.tuples(
    st.lists(WRITE, min_size=1, max_size=3),
    st.sampled_from(["commit", "commit", "commit", "commit", "roll back"]),
    st.sampled_from([True, True, False]),
)


def a_close_community(db: Db, chance: Random) -> None:
    """Few people on few projects, not all of them together: here nearly every write matters."""
    for bio in ("x", "", None, "x", None):
        add_person(db, bio, None, "{}", chance.randrange(500))
    for nth in range(4):
        start_project(db, nth, chance.choice(["shipped", "in_progress"]), chance.randrange(9), "{}")
    for project in range(4):
        for user in range(5):
            if chance.random() < 0.3:
                collaborate(db, project, user, chance.choice(["confirmed", "confirmed", "pending"]))


def exchange(db: Db, chance: Random) -> None:
    """One write that is easily missed."""
    one, two, three = (chance.randrange(12) for _ in range(3))
    match chance.choice(["transfer", "transfer", "move", "answer", "stale save"]):
        case "transfer":
            transfer(db, one, two)
        case "move":
            move_collaboration(db, one, two, three)
        case "stale save":
            overwrite_score(db, one, chance.choice([None, two]))
        case _:
            answer(db, one, chance.choice(["confirmed", "declined"]))


@pytest.fixture(scope="module")
def shared(server: PrivateCluster, template: str) -> Iterator[Db]:
    with (
        janitor(server, "random_communities", template=template) as address,
        psycopg.connect(address, autocommit=True) as connection,
    ):
        configure(connection, debounce_window="0")
        yield connection


def empty(db: Db) -> None:
    # Not truncate, which takes its time with so many small tables.
    for table in ("users", "builder_score.score_recalc_queue", "builder_score.score_state"):
        db.execute(sql.SQL("delete from {}").format(sql.Identifier(*table.split("."))))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), history=st.lists(TRANSACTION, min_size=6, max_size=12))
def test_every_score_is_right_when_nothing_is_queued(
    shared: Db, seed: int, history: list[Any]
) -> None:
    empty(shared)
    chance = Random(seed)
    with shared.transaction():
        a_close_community(shared, chance)
    drain(shared)
    assert_all_right(shared)
    # One write at a time: with others beside it, a forgotten person is enqueued for their sake.
    for _ in range(6):
        exchange(shared, chance)
        drain(shared)
        assert_all_right(shared)
    for writes, end, then_drain in history:
        with shared.transaction(force_rollback=end == "roll back"):
            for write, *values in writes:
                write(shared, *values)
        if then_drain:
            drain(shared)
            assert_all_right(shared)
    drain(shared)
    assert_all_right(shared)
    assert shared.execute("select * from builder_score.verify()").fetchall() == []
