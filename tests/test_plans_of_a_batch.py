"""Every look of a batch goes by an index and reads what the batch is worth, however long the queue.

With statistics, without any, and with those of tables that were empty; by plans for the values that
are asked for, and by those for any.
"""

from collections.abc import Iterator
from typing import LiteralString, get_args

import pytest

from tests.community import one
from tests.host_databases import HostDatabase, HostDatabases
from tests.host_schemas import HOSTS
from tests.plans import PlanMode, Recording, fill, planning, recorded
from tests.statements import run

pytestmark = pytest.mark.contrib  # auto_explain

PEOPLE = 20_000
BATCH = 200

BIG = (
    *("users", "projects", "project_collaborators"),
    *("score_state", "score_dead_letter", "score_counts", "score_recalc_queue"),
)

BACKLOG = f"""
    insert into builder_score.score_counts (scores, people)
        select '{{1}}', '{{1}}' from generate_series(1, {PEOPLE});
    insert into builder_score.score_dead_letter
        select user_id, 5, 'P0001', 'test', now(), now() from builder_score.score_state limit 5000;
    update builder_score.settings set batch_size = {BATCH};
    insert into builder_score.score_recalc_queue (user_id, priority, reason, not_before)
        select user_id, 20, 'test', now() - interval '1 hour' from builder_score.score_state;
    insert into builder_score.score_recalc_queue (project_id, priority, reason, not_before)
        select id, 10, 'test', now() - interval '1 hour' from projects limit {PEOPLE};
"""


@pytest.fixture(
    scope="module",
    params=[
        ("reference", "none"),
        ("reference", "of empty tables"),
        ("reference", "analyzed"),
        ("bigint ids and checked statuses", "of empty tables"),
    ],
    ids=lambda param: ", ".join(param),
)
def backlog(
    host_databases: HostDatabases, request: pytest.FixtureRequest
) -> Iterator[HostDatabase]:
    """Everyone is due, and half of the projects; nothing that a test does is committed."""
    name, statistics = request.param
    with host_databases.installed(HOSTS[name]) as host:
        for table in ("score_recalc_queue", "score_state", "score_dead_letter", "score_counts"):
            run(host.db, f"alter table builder_score.{table} set (autovacuum_enabled = false)")
        if statistics == "of empty tables":
            run(host.db, "analyze")
        fill(host.db, HOSTS[name], PEOPLE)
        run(host.db, BACKLOG)
        run(host.db, "select builder_score.compact_score_counts()")
        if statistics == "analyzed":
            run(host.db, "analyze")
        yield host


@pytest.fixture(scope="module")
def batches(backlog: HostDatabase) -> dict[PlanMode, Recording]:
    """What one batch runs, by how it is planned."""
    found: dict[PlanMode, Recording] = {}
    for mode in get_args(PlanMode):
        with planning(backlog.address, mode) as db, recorded(db) as batch:
            done = one(db, "select recalculated from builder_score.run_batch('drain')")
        assert 0 < done <= BATCH
        found[mode] = batch
    return found


@pytest.fixture(params=get_args(PlanMode))
def batch(batches: dict[PlanMode, Recording], request: pytest.FixtureRequest) -> Recording:
    """What one batch runs."""
    return batches[request.param]


def test_no_look_reads_more_than_the_batch_is_worth(batch: Recording) -> None:
    assert None not in batch.indexes(*BIG)
    # expand_projects() takes twenty batches' worth, each with an owner and a collaborator
    assert max(scan.rows for scan in batch.scans(*BIG)) <= 2 * 20 * BATCH
    assert batch.sorted_rows <= 2 * 20 * BATCH
    assert batch.compiled == []


def test_choosing_reads_a_batch_in_order(batch: Recording) -> None:
    choosing = batch.of("choose_due")
    assert choosing.indexes("score_recalc_queue") == {"score_recalc_queue_due"}
    # of each of the three priorities
    assert choosing.rows <= 3 * BATCH
    assert choosing.blocks <= 3 * BATCH
    assert choosing.sorted_rows <= 3 * BATCH


def test_expanding_reads_as_many_projects_as_it_takes(batch: Recording) -> None:
    expanding = batch.of("expand_projects")
    # the oldest in order, and then each by its id
    assert expanding.indexes("score_recalc_queue") == {
        "score_recalc_queue_project_due",
        "score_recalc_queue_pkey",
    }
    assert expanding.rows <= 2 * 20 * BATCH
    assert None not in expanding.indexes("projects", "project_collaborators")


def test_locking_probes_each_user(batch: Recording) -> None:
    locking = batch.of("lock_users")
    assert locking.indexes("users") == {"users_pkey"}
    assert locking.rows <= 4 * BATCH


def test_reading_again_probes_each_user(batch: Recording) -> None:
    again = batch.of("read_again")
    assert again.indexes("score_recalc_queue") == {"score_recalc_queue_user"}
    assert again.indexes("score_state") == {"score_state_pkey"}
    # who is locked is there
    assert "users" not in {scan.table for statement in again for scan in statement.scans}
    assert again.rows <= 4 * BATCH


def test_computing_probes_each_user_and_project(batch: Recording) -> None:
    computing = batch.of("compute")
    assert None not in computing.indexes("users", "projects", "project_collaborators")
    assert computing.rows <= 4 * BATCH
    # nobody's but a user's own: since PostgreSQL 16 count(distinct) has a node that sorts for it
    assert computing.sorted_at_once <= 10
    assert computing.sorted_rows <= 4 * BATCH


def test_writing_probes_each_row(batch: Recording) -> None:
    assert batch.of("write_scores").indexes("users") == {"users_pkey"}
    assert batch.of("write_scores").rows <= 2 * BATCH
    scoring = batch.of("score_users")
    assert scoring.indexes("score_recalc_queue") == {"score_recalc_queue_pkey"}
    # each has a row or two
    assert max(scan.rows for scan in scoring.scans("score_recalc_queue")) <= 4 * BATCH
    # where reading again has seen them, by no index
    states = batch.of("write_states")
    assert states.indexes("score_state") == {"ctid"}
    assert states.rows <= 2 * BATCH
    assert not any("Conflict Arbiter Indexes" in node for found in states for node in found.nodes)
    assert batch.of("heavy_users").indexes("score_state") == {"score_state_heavy"}


@pytest.mark.parametrize("mode", get_args(PlanMode))
def test_states_that_were_not_seen_are_probed(backlog: HostDatabase, mode: PlanMode) -> None:
    with planning(backlog.address, mode) as db, recorded(db) as writing:
        db.execute("""
            select builder_score.write_states(
                array_agg(id::builder_score.user_id), array_agg(1::numeric),
                array_agg(null::bigint), now(), 'stamp')
            from (select id from users limit 10) as few
        """)
    (upsert,) = (
        node["Conflict Arbiter Indexes"]
        for statement in writing.of("write_states")
        for node in statement.nodes
        if "Conflict Arbiter Indexes" in node
    )
    assert upsert == ["score_state_pkey"]


OWNS_MANY: LiteralString = """
    update projects set owner_id = (select id from users limit 1)
    where id in (select id from projects limit 1100)
"""

HELPS_MANY: LiteralString = """
    insert into project_collaborators (project_id, user_id, status)
    select p.id, u.id, c.status
    from (select id from users limit 1) as u,
         (select status from project_collaborators where status ilike 'confirmed' limit 1) as c,
         (select id from projects limit 1100) as p
    on conflict do nothing
"""


@pytest.mark.parametrize("makes_many", [OWNS_MANY, HELPS_MANY], ids=["owner", "collaborator"])
def test_very_many_rows_of_one_user_are_not_probed_one_by_one(
    backlog: HostDatabase, makes_many: LiteralString
) -> None:
    with planning(backlog.address, "generic") as db:
        user = one(db, "select id from users limit 1")
        db.execute(makes_many)
        db.execute("analyze projects", prepare=False)
        db.execute("analyze project_collaborators", prepare=False)
        # as callers have it, whatever that is
        query: LiteralString = """
            select from builder_score.score_users(
                (select array_agg(id) from users where id = %s), '{}')
        """
        with recorded(db) as computing:
            db.execute(query, [user])
        with recorded(db) as again:
            db.execute(query, [user])
    assert computing.of("compute").rows <= 1_001, "it has gone on to the end"
    known = again.of("compute").scans("users", "projects", "project_collaborators")
    assert max(scan.rows for scan in known) <= 20, "it has not asked whether that is known"
    assert again.of("count_many")
    people = computing.of("count_many")[-1]
    tables = {"projects", "project_collaborators"}
    looks = [node for node in people.nodes if node.get("Relation Name") in tables]
    assert len(looks) >= 3
    assert max(n["Actual Loops"] for n in looks) <= 10
    assert not [n for n in people.nodes if n["Node Type"].startswith("Gather")]


@pytest.mark.parametrize("view", ["health", "queue_by_priority"])
def test_a_look_at_the_queue_goes_through_it_once(backlog: HostDatabase, view: str) -> None:
    with planning(backlog.address, "generic") as db, recorded(db) as look:
        db.execute(f"select * from builder_score.{view}".encode())
    assert sum(scan.rows for scan in look.scans("score_recalc_queue")) <= 2 * PEOPLE
    assert look.sorted_rows <= 10
    assert look.compiled == []


@pytest.mark.parametrize("mode", get_args(PlanMode))
def test_a_rank_is_read_from_the_sum_past_all_that_it_replaced(
    backlog: HostDatabase, mode: PlanMode
) -> None:
    with planning(backlog.address, mode) as db, recorded(db) as look:
        people = one(db, "select s.people from users, builder_score.standing(id) as s limit 1")
    assert people == PEOPLE
    standing = look.of("standing")
    looks = standing.indexes("score_counts")
    assert {"score_counts_sum"} <= looks <= {"score_counts_sum", "score_counts_pkey"}
    assert standing.indexes("users", "score_state") == {"users_pkey", "score_state_pkey"}
    assert standing.rows <= 10
    assert standing.sorted_rows == 0
    assert standing.blocks <= 20
