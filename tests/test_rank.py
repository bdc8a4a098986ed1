"""Ranks, percentiles and the distribution: what they say, and that they are exact whatever runs."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import Connection

from pyscore.cluster import PrivateCluster
from tests.community import add_project, add_user, configure, drain, one
from tests.conftest import dsn
from tests.host_databases import HostDatabase
from tests.interleave import Session, Sessions, assert_right, settle, until
from tests.ranks import (
    DISTRIBUTION,
    MISCOUNTS,
    PEOPLE_BY_SCORE,
    RANKS,
    add_four_people,
    assert_ranks_right,
)

Db = Connection[Any]

COMPACT = "select builder_score.compact_score_counts(2)"
RECALCULATE = "select builder_score.recalculate(id) from users where username = %s"
SHIP = "insert into projects (owner_id, title, status) select id, 'it', 'shipped' from users"


@pytest.fixture(autouse=True)
def no_window(db: Db) -> None:
    configure(db, debounce_window="0")


def standing(db: Db, user: UUID) -> tuple[Any, ...]:
    """Score, rank, people, percentile."""
    row = db.execute("select * from builder_score.standing(%s)", [user]).fetchone()
    assert row is not None
    return row


def rows(db: Db) -> int:
    return one(db, "select count(*) from builder_score.score_counts")


def without_triggers(db: Db, statement: str) -> None:
    """Write as a replication does: no trigger sees it."""
    db.execute("set session_replication_role = replica")
    db.execute(statement.encode())
    db.execute("reset session_replication_role")


def right_here(session: Session) -> None:
    """What the session sees agrees, what it has not committed included."""
    assert session.run(MISCOUNTS) == []
    assert session.run(DISTRIBUTION) == session.run(PEOPLE_BY_SCORE)


@pytest.fixture
def people(db: Db) -> dict[str, UUID]:
    return add_four_people(db)


# What they say ------------------------------------------------------------------------------------


def test_equal_scores_share_a_rank(db: Db, people: dict[str, UUID]) -> None:
    assert standing(db, people["ada"]) == (13, 1, 4, 100)
    assert standing(db, people["bob"]) == standing(db, people["cyd"])
    assert standing(db, people["bob"]) == (3, 2, 4, pytest.approx(100 / 3))
    assert standing(db, people["dan"]) == (0, 4, 4, 0)
    assert db.execute(DISTRIBUTION).fetchall() == [(13, 1), (3, 2), (0, 1)]
    assert_ranks_right(db)


def test_who_has_no_score_yet_has_no_rank_and_is_not_counted(
    db: Db, people: dict[str, UUID]
) -> None:
    eve = add_user(db, "eve", bio="ships")
    assert standing(db, eve) == (None, None, 4, None)
    assert standing(db, people["ada"]) == (13, 1, 4, 100)


def test_whoever_is_alone_is_first_and_above_nobody(db: Db) -> None:
    ada = add_user(db, "ada")
    assert standing(db, ada) == (None, None, 0, None)
    assert db.execute(DISTRIBUTION).fetchall() == []
    drain(db)
    assert standing(db, ada) == (0, 1, 1, 0)


def test_somebody_unknown_is_the_error_that_explain_raises(db: Db) -> None:
    said: list[str] = []
    for function in ("standing", "explain"):
        with pytest.raises(psycopg.errors.NoDataFound) as refused:
            db.execute(f"select * from builder_score.{function}('{UUID(int=7)}')".encode())
        said.append(str(refused.value.diag.message_primary) + str(refused.value.diag.message_hint))
    assert said[0] == said[1]


def test_detached_says_so(db: Db, people: dict[str, UUID]) -> None:
    db.execute("select builder_score.detach()")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="detached"):
        standing(db, people["ada"])
    assert len(db.execute(DISTRIBUTION).fetchall()) == 3


def test_they_follow_every_way_in_which_scores_change(db: Db, people: dict[str, UUID]) -> None:
    add_project(db, people["bob"], status="shipped")
    drain(db)
    assert standing(db, people["bob"]) == (13, 1, 4, pytest.approx(200 / 3))
    db.execute("update users set bio = null where username = 'bob'")
    db.execute("select builder_score.recalculate(%s)", [people["bob"]])
    assert standing(db, people["bob"])[:2] == (10, 2)
    assert_ranks_right(db)

    db.execute("delete from users where username in ('ada', 'cyd')")
    drain(db)  # the worker forgets them
    assert standing(db, people["bob"]) == (10, 1, 2, 100)
    assert_ranks_right(db)

    again = "insert into users (id, email, username, bio) values (%s, 'a', 'ada', 'is back')"
    db.execute(again, [people["ada"]])
    drain(db)
    assert standing(db, people["ada"]) == (3, 2, 3, 50)
    assert_ranks_right(db)

    db.execute("truncate users cascade")
    drain(db)
    assert db.execute(DISTRIBUTION).fetchall() == []


def test_on_every_host(host: HostDatabase) -> None:
    app, db = host.app, host.db
    users = [app.sign_up(name) for name in ("ann", "bob", "cyd", "dan")]
    stars = {"github_stars": 120} if app.has("projects", "github_stars") else {}
    app.start(users[0], "shipped", **stars)
    app.start(users[1], "shipped")
    app.start(users[2], "shipped")
    settle(db)
    assert_right(db)
    assert_ranks_right(db)
    assert len(db.execute(RANKS).fetchall()) >= len(users)
    db.execute(COMPACT)
    app.run("delete from projects where owner_id = %s", users[1])
    settle(db)
    assert_ranks_right(db)
    stored = app.run("select builder_score::numeric from users order by 1 desc")
    counted = db.execute(DISTRIBUTION).fetchall()
    assert [score for score, people in counted for _ in range(people)] == [row[0] for row in stored]


def test_of_no_change_there_is_no_trace(db: Db, people: dict[str, UUID]) -> None:
    before = rows(db)
    db.execute(RECALCULATE, ["ada"])
    db.execute("update builder_score.score_state set attempts = 1, score = score")
    # two who change places are no change either
    db.execute("""
        update builder_score.score_state set score = 16 - score where score in (3, 13)
          and user_id in (select id from users where username in ('ada', 'bob'))
    """)
    db.execute("insert into builder_score.score_state (user_id) values (gen_random_uuid())")
    assert rows(db) == before
    assert db.execute(MISCOUNTS).fetchall() == []


def test_truncated_states_are_nobodys(db: Db, people: dict[str, UUID]) -> None:
    db.execute("begin")
    db.execute("truncate builder_score.score_state")
    assert db.execute(DISTRIBUTION).fetchall() == []
    db.execute("rollback")
    assert len(db.execute(DISTRIBUTION).fetchall()) == 3
    db.execute("truncate builder_score.score_state")
    assert_ranks_right(db)


# Roles --------------------------------------------------------------------------------------------


@pytest.fixture
def role(server: PrivateCluster, db: Db) -> Iterator[str]:
    name = f"ranked_{uuid4().hex[:8]}"
    db.execute(f"create role {name} login".encode())
    yield name
    db.execute(f"drop owned by {name}; drop role {name}".encode())


def test_a_role_needs_two_grants_and_gets_no_more_by_them(
    server: PrivateCluster, db: Db, people: dict[str, UUID], role: str
) -> None:
    calls = [f"builder_score.standing('{people['ada']}')", "builder_score.distribution()"]
    with psycopg.connect(dsn(server, db.info.dbname, role), autocommit=True) as app:
        for call in calls:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                app.execute(f"select * from {call}".encode())
        db.execute(
            f"grant usage on schema builder_score to {role};"
            f"grant execute on function builder_score.standing(builder_score.user_id),"
            f" builder_score.distribution() to {role}".encode()
        )
        # whatever the caller has in front of pg_catalog
        app.execute("create temp table score_state (user_id uuid, score numeric)")
        app.execute("set search_path = pg_temp, pg_catalog")
        assert [len(app.execute(f"select * from {c}".encode()).fetchall()) for c in calls] == [1, 3]
        for refused in (
            "select from builder_score.score_counts",
            "select from builder_score.live_score_counts",
            "select builder_score.verify_score_counts()",
            "select builder_score.repair_score_counts()",
            "select builder_score.compact_score_counts()",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                app.execute(refused.encode())


def test_the_operator_may_look_and_repair(
    server: PrivateCluster, db: Db, people: dict[str, UUID], role: str
) -> None:
    db.execute(f"grant builder_score_operator to {role}".encode())
    without_triggers(db, "update builder_score.score_state set score = 50 where score = 13")
    with psycopg.connect(dsn(server, db.info.dbname, role), autocommit=True) as operator:
        assert operator.execute(MISCOUNTS).fetchall() == [(50, 0, 1), (13, 1, 0)]
        assert one(operator, "select builder_score.repair_score_counts()") == 2
    assert_ranks_right(db)


# Side by side -------------------------------------------------------------------------------------


def test_two_who_change_the_same_scores_do_not_wait(
    db: Db, people: dict[str, UUID], sessions: Sessions
) -> None:
    db.execute(SHIP)
    one_, two = sessions("one"), sessions("two")
    for session, name in ((one_, "bob"), (two, "cyd")):
        session.run("begin")
        session.start(RECALCULATE, [name])
        session.finish_without_waiting()
    right_here(one_)
    right_here(two)
    assert db.execute(DISTRIBUTION).fetchall() == [(13, 1), (3, 2), (0, 1)]
    two.run("commit")
    assert db.execute(DISTRIBUTION).fetchall() == [(13, 2), (3, 1), (0, 1)]
    right_here(one_)
    one_.run("commit")
    assert db.execute(DISTRIBUTION).fetchall() == [(13, 3), (0, 1)]
    assert_ranks_right(db)


@pytest.mark.parametrize("end", ["commit", "rollback", "rollback to here; commit"])
def test_a_sum_leaves_out_what_is_under_way_and_finds_it_later(
    db: Db, people: dict[str, UUID], sessions: Sessions, end: str
) -> None:
    db.execute(SHIP)
    worker, reader, compactor = (sessions(name) for name in ("worker", "reader", "compactor"))
    reader.run("begin isolation level repeatable read")
    before = reader.run(DISTRIBUTION)
    worker.run("begin; savepoint here")
    worker.run(RECALCULATE, ["bob"])
    db.execute(
        RECALCULATE, ["cyd"]
    )  # so that the worker's transaction is older than what has ended
    for _ in range(3):  # each of them has to find what the one before has left out
        compactor.run("begin")
        compactor.start("select builder_score.compact_score_counts(1)")
        assert compactor.finish_without_waiting() == [(True,)]
        right_here(compactor)
        right_here(worker)
        compactor.run("commit")
        right_here(compactor)
        right_here(worker)
        assert reader.run(DISTRIBUTION) == before
    worker.run(RECALCULATE, ["dan"])
    right_here(worker)
    worker.run(end)
    assert reader.run(DISTRIBUTION) == before
    right_here(reader)
    expected = {
        "commit": [(13, 3), (10, 1)],
        "rollback": [(13, 2), (3, 1), (0, 1)],
        "rollback to here; commit": [(13, 2), (3, 1), (0, 1)],
    }
    assert db.execute(DISTRIBUTION).fetchall() == expected[end]
    assert_ranks_right(db)
    db.execute(COMPACT)
    assert_ranks_right(db)


def test_what_is_appended_beside_a_sum_under_way_waits_for_nobody(
    db: Db, people: dict[str, UUID], sessions: Sessions
) -> None:
    db.execute(SHIP)
    db.execute(RECALCULATE, ["ada"])
    compactor, other, worker = (sessions(name) for name in ("compactor", "other", "worker"))
    compactor.run("begin")
    assert compactor.run(COMPACT) == [(True,)]
    worker.start("call builder_score.drain()")
    worker.finish_without_waiting()
    assert_ranks_right(db)
    other.start(COMPACT)
    assert other.finish_without_waiting() == [(False,)]
    compactor.run("commit")
    assert_ranks_right(db)
    assert other.run(COMPACT) == [(True,)]
    assert_ranks_right(db)
    assert rows(db) == 1


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_transaction_may_sum_up_and_go_on(
    db: Db, people: dict[str, UUID], sessions: Sessions, end: str
) -> None:
    db.execute(SHIP)
    session = sessions("own")
    session.run("begin")
    session.run(RECALCULATE, ["bob"])
    # a younger transaction has ended: the sum's snapshot takes this one for an old one
    db.execute(RECALCULATE, ["cyd"])
    assert session.run(COMPACT) == [(True,)]
    right_here(session)
    session.run(RECALCULATE, ["dan"])
    right_here(session)
    assert session.run(COMPACT) == [(True,)]
    session.run(RECALCULATE, ["ada"])
    right_here(session)
    session.run(end)
    assert_ranks_right(db)
    db.execute(COMPACT)
    assert_ranks_right(db)


def test_an_older_snapshot_sums_nothing_up(
    db: Db, people: dict[str, UUID], sessions: Sessions
) -> None:
    db.execute(SHIP)
    old = sessions("old")
    old.run("begin isolation level repeatable read")
    before = old.run(DISTRIBUTION)
    drain(db)
    db.execute("select builder_score.compact_score_counts(1)")
    assert old.run("select builder_score.compact_score_counts(1)") == [(False,)]
    without_triggers(db, "update builder_score.score_state set score = 1 where score = 10")
    old.run("commit; begin isolation level repeatable read")
    with pytest.raises(psycopg.errors.ActiveSqlTransaction):
        old.run("select builder_score.repair_score_counts()")
    assert before == [(13, 1), (3, 2), (0, 1)]


def test_whoever_is_killed_leaves_the_counts_as_they_were(
    db: Db, people: dict[str, UUID], sessions: Sessions
) -> None:
    db.execute(SHIP)
    before = db.execute(DISTRIBUTION).fetchall()
    killed = sessions("killed")
    killed.run("begin")
    killed.run(RECALCULATE, ["bob"])
    killed.run("select builder_score.compact_score_counts(1)")
    db.execute("select pg_terminate_backend(%s)", [killed.pid])
    until(
        lambda: one(db, f"select count(*) from pg_stat_activity where pid = {killed.pid}") == 0,
        "it is gone",
    )
    assert db.execute(DISTRIBUTION).fetchall() == before
    assert_ranks_right(db)
    db.execute("select builder_score.compact_score_counts(1)")
    settle(db)
    assert_right(db)
    assert_ranks_right(db)


def test_a_prepared_transaction_is_counted_when_it_is_committed(
    db: Db, people: dict[str, UUID]
) -> None:
    db.execute(SHIP)
    db.execute("begin")
    # recalculate() cannot be prepared: it notifies
    db.execute("update builder_score.score_state set score = 99 where score = 3")
    name = f"ranks_{uuid4().hex}"
    db.execute(f"prepare transaction '{name}'".encode())
    db.execute(RECALCULATE, ["dan"])
    for _ in range(2):
        db.execute("select builder_score.compact_score_counts(1)")
        assert_ranks_right(db)
    db.execute(f"commit prepared '{name}'".encode())
    assert_ranks_right(db)
    assert db.execute(DISTRIBUTION).fetchall()[0] == (99, 2)


# While vacuum is held back ------------------------------------------------------------------------


def test_deleted_rows_are_not_waded_through(
    db: Db, people: dict[str, UUID], sessions: Sessions
) -> None:
    holder = sessions("holder")
    holder.run("begin isolation level repeatable read")
    before = holder.run(DISTRIBUTION)
    db.execute("select pg_current_xact_id()")

    def blocks() -> tuple[int, int]:
        """Those that a look takes, and those that the table has."""
        with db.transaction():
            db.execute("set local enable_seqscan = off")
            plan = one(
                db,
                "explain (analyze, buffers, format json)"
                " select * from builder_score.live_score_counts",
            )[0]["Plan"]
        size = one(db, "select pg_relation_size('builder_score.score_counts') / 8192")
        return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"], size

    db.execute("select builder_score.compact_score_counts(1)")
    few, _ = blocks()
    db.execute("""
        do $$ begin
            for n in 1..400 loop
                insert into builder_score.score_counts (scores, people)
                select array_agg(s::numeric), array_agg((n % 2 * 2 - 1)::bigint)
                from generate_series(200, 299) as s;
                if n % 8 = 0 then
                    perform builder_score.compact_score_counts();
                end if;
                commit;
            end loop;
        end $$
    """)
    many, size = blocks()
    assert size > 50, "too few rows to show anything"
    assert many <= few + 5
    assert holder.run(DISTRIBUTION) == before
    assert_ranks_right(db)


def test_the_worker_sums_up_beside_its_batches_and_when_idle(
    db: Db, people: dict[str, UUID]
) -> None:
    configure(db, batch_size=1)
    for n in range(40):
        add_user(db, f"user{n}", created_at="2020-01-01" if n % 2 else "2021-01-01")
        drain(db)
    assert rows(db) < 20
    assert_ranks_right(db)
    for n in range(8):
        db.execute("update builder_score.score_state set score = %s where score = 13", [13 + n % 2])
        db.execute("update builder_score.score_state set score = 13 where score = 14")
    db.execute("select builder_score.housekeeping()")
    assert rows(db) == 1
    assert_ranks_right(db)


# When they have parted ----------------------------------------------------------------------------


def drift(db: Db) -> None:
    without_triggers(
        db, "update builder_score.score_state set score = score + 1 where score in (3, 13)"
    )


DRIFT = [(14, 0, 1), (13, 1, 0), (4, 0, 2), (3, 2, 0)]


@pytest.mark.parametrize(
    "how",
    [
        "disable trigger user",
        "disable trigger count_updated",
    ],
)
def test_what_no_trigger_saw_is_found_and_mended(db: Db, people: dict[str, UUID], how: str) -> None:
    db.execute(f"alter table builder_score.score_state {how}".encode())
    db.execute("update builder_score.score_state set score = score + 1 where score in (3, 13)")
    db.execute("alter table builder_score.score_state enable trigger user")
    assert db.execute(MISCOUNTS).fetchall() == DRIFT
    assert one(db, "select builder_score.repair_score_counts()") == 4
    assert_ranks_right(db)
    assert one(db, "select builder_score.repair_score_counts()") == 0


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_repair_beside_a_batch_waits_for_nobody_and_is_right(
    db: Db, people: dict[str, UUID], sessions: Sessions, end: str
) -> None:
    db.execute(SHIP)
    drift(db)
    worker, operator = sessions("worker"), sessions("operator")
    worker.run("begin")
    worker.run(RECALCULATE, ["bob"])
    operator.run("begin")
    operator.start("select builder_score.repair_score_counts()")
    assert operator.finish_without_waiting() == [(4,)]
    right_here(operator)
    worker.run(RECALCULATE, ["dan"])
    operator.run("commit")
    right_here(worker)
    assert_ranks_right(db)
    worker.run(end)
    assert_ranks_right(db)


def test_two_repairs_do_not_mend_it_twice(
    db: Db, people: dict[str, UUID], sessions: Sessions
) -> None:
    drift(db)
    first, second = sessions("first"), sessions("second")
    first.run("begin")
    assert first.run("select builder_score.repair_score_counts()") == [(4,)]
    second.start("select builder_score.repair_score_counts()")
    second.waits_for(first)
    first.run("commit")
    assert second.finish() == [(0,)]
    assert_ranks_right(db)


def test_a_sum_under_way_does_not_undo_a_repair(
    db: Db, people: dict[str, UUID], sessions: Sessions
) -> None:
    drift(db)
    db.execute(SHIP)
    db.execute(RECALCULATE, ["ada"])
    compactor, operator = sessions("compactor"), sessions("operator")
    compactor.run("begin")
    assert compactor.run("select builder_score.compact_score_counts(1)") == [(True,)]
    operator.start("select builder_score.repair_score_counts()")
    operator.waits_for(compactor)
    compactor.run("commit")
    assert operator.finish()[0][0] > 0
    assert_ranks_right(db)


def test_rows_of_another_server_are_read_all_of_them(db: Db, people: dict[str, UUID]) -> None:
    db.execute("select builder_score.compact_score_counts(1)")
    db.execute(SHIP)
    db.execute(RECALCULATE, ["bob"])
    # as a restore, or a replication, brings them: with ids of transactions that are none of ours
    without_triggers(
        db,
        """
        create temp table there as select * from builder_score.score_counts;
        truncate builder_score.score_counts;
        insert into builder_score.score_counts
        select ((t.appended_by::text)::numeric + 1000000)::text::xid8, t.id, t.scores, t.people,
               t.people_up_to,
               case when t.stands_for is not null then '5000000:5000000:'::pg_snapshot end,
               t.written_by
        from there as t
        """,
    )
    assert_ranks_right(db)
    # what is appended here has a younger id than those, and an older one than that sum's snapshot
    db.execute(RECALCULATE, ["cyd"])
    assert_ranks_right(db)
    db.execute("select builder_score.compact_score_counts(1)")
    assert rows(db) == 1
    assert_ranks_right(db)
    db.execute(RECALCULATE, ["dan"])
    assert_ranks_right(db)


def test_rows_that_only_one_way_leads_to_are_found_and_mended(
    db: Db, people: dict[str, UUID]
) -> None:
    db.execute("select builder_score.compact_score_counts(1)")
    without_triggers(
        db,
        "insert into builder_score.score_counts (appended_by, scores, people)"
        " values ('3', '{77}', '{5}')",
    )
    assert db.execute(MISCOUNTS).fetchall() == [(77, 5, 0)]
    assert one(db, "select builder_score.repair_score_counts()") == 1
    assert_ranks_right(db)


def test_a_rewritten_table_is_read_as_before(db: Db, people: dict[str, UUID]) -> None:
    db.execute("select builder_score.compact_score_counts(1)")
    db.execute(SHIP)
    db.execute(RECALCULATE, ["bob"])
    for rewrite in ("vacuum (full, freeze)", "cluster"):
        using = " using score_counts_pkey" if rewrite == "cluster" else ""
        db.execute(f"{rewrite} builder_score.score_counts{using}".encode())
        assert_ranks_right(db)
    db.execute("select builder_score.compact_score_counts(1)")
    assert_ranks_right(db)


def test_the_worker_compares_once_a_day_and_after_attach(db: Db, people: dict[str, UUID]) -> None:
    db.execute("select builder_score.housekeeping()")
    drift(db)
    db.execute("select builder_score.housekeeping()")
    assert db.execute(MISCOUNTS).fetchall() == DRIFT, "it has looked today"
    db.execute("update builder_score.host set counted_at = counted_at - interval '1 day'")
    db.execute("select builder_score.housekeeping()")
    assert_ranks_right(db)
    without_triggers(db, "update builder_score.score_state set score = 50 where score = 14")
    assert len(db.execute(MISCOUNTS).fetchall()) == 2
    db.execute("select builder_score.attach()")
    db.execute("select builder_score.housekeeping()")
    assert db.execute(MISCOUNTS).fetchall() == []


def test_a_comparison_that_could_not_be_made_is_made_soon(
    db: Db, people: dict[str, UUID], sessions: Sessions
) -> None:
    """As when somebody makes an index on score_counts while the worker would write there."""
    drift(db)
    db.execute("update builder_score.host set counted_at = null")
    said: list[str] = []
    db.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
    dba = sessions("dba")
    dba.run("begin")
    dba.run("lock table builder_score.score_counts in share mode")
    for _ in range(3):  # in each round of an idle worker
        db.execute("select builder_score.housekeeping()")
    dba.run("commit")
    assert ["could not be repaired" in line for line in said] == [True]
    db.execute("select builder_score.housekeeping()")
    assert db.execute(MISCOUNTS).fetchall() == DRIFT, "it has tried a moment ago"
    db.execute("update builder_score.host set count_tried_at = count_tried_at - interval '10 s'")
    db.execute("select builder_score.housekeeping()")
    assert_ranks_right(db)
    assert one(db, "select counted_at > now() - interval '1 minute' from builder_score.host")


def test_counts_that_cannot_be_kept_tidy_keep_nobody_waiting(
    db: Db, people: dict[str, UUID], sessions: Sessions
) -> None:
    """A repair that somebody leaves open, and a table in the hands of a DBA."""
    db.execute(SHIP)
    db.execute("update builder_score.host set counted_at = null")
    dba, worker = sessions("dba"), sessions("worker")
    dba.run("begin")
    dba.run("select builder_score.repair_score_counts()")
    said: list[str] = []
    db.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
    worker.start("call builder_score.drain()")
    worker.finish_without_waiting()
    db.execute("select builder_score.housekeeping()")
    assert [line.split(":")[1].strip()[:33] for line in said] == [
        "score_counts could not be repaired"[:33]
    ]
    dba.run("commit")
    assert_right(db)
    assert_ranks_right(db)
