"""Random transactions side by side: in each of them counts agree with scores at every moment."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import Connection

from pyscore.cluster import PrivateCluster
from tests.conftest import janitor
from tests.ranks import MISCOUNTS, assert_ranks_right

Db = Connection[Any]

HISTORIES = 40
SESSIONS = 3
USERS = 4
"""Of each session: nobody waits for another's rows."""

ISOLATION = ("read committed", "repeatable read")
WHO = "('00000000-0000-4000-8000-' || lpad(({session} * 100 + {user})::text, 12, '0'))::uuid"
STATEMENTS = {
    "write": (
        "insert into builder_score.score_state (user_id, score) values ({who}, {score})"
        " on conflict (user_id) do update set score = excluded.score"
    ),
    "write all": (
        "update builder_score.score_state set score = score + {score} where user_id = any({own})"
    ),
    "delete": "delete from builder_score.score_state where user_id = {who}",
    "sum up": "select builder_score.compact_score_counts(1)",
    "sum up if many": "select builder_score.compact_score_counts(4)",
    "repair": "select builder_score.repair_score_counts()",
    "forget": "select builder_score.forget_users(array[{who}]::builder_score.user_id[], now())",
    "savepoint": "savepoint here",
    "rollback to": "rollback to here",
}
STEPS = st.lists(
    st.tuples(
        st.integers(0, SESSIONS - 1),
        st.one_of(
            st.just("write"),
            st.sampled_from([*STATEMENTS, "begin", "begin", "commit", "commit", "rollback"]),
        ),
        st.integers(0, USERS - 1),
        st.sampled_from(["null", "0", "0", "1", "1", "2", "7.5", "100"]),
        st.sampled_from(ISOLATION),
    ),
    min_size=5,
    max_size=20,
)


@pytest.fixture(scope="module")
def opened(server: PrivateCluster, template: str) -> Iterator[list[Db]]:
    with janitor(server, "random_ranks", template=template) as address:
        connections = [psycopg.connect(address, autocommit=True) for _ in range(SESSIONS)]
        for connection in connections:
            connection.execute("set lock_timeout = '1ms'")
        connections[0].execute("set session_replication_role = replica")
        for session in range(SESSIONS):
            for user in range(USERS):
                who = WHO.format(session=session, user=user)
                connections[0].execute(
                    "insert into users (id, email, username)"
                    f" select n.id, n.id, n.id from (select {who} as id) as n".encode()
                )
        connections[0].execute("reset session_replication_role")
        yield connections
        for connection in connections:
            connection.close()


def take(db: Db, session: int, step: str, user: int, score: str, isolation: str) -> None:
    in_transaction = db.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
    match step:
        case "begin":
            if not in_transaction:
                db.execute(f"begin isolation level {isolation}".encode())
                db.execute("select")  # the older its snapshot the better
        case "commit" | "rollback":
            if in_transaction:
                db.execute(step.encode())
        case "savepoint" | "rollback to":
            if in_transaction:
                db.execute(STATEMENTS["savepoint"].encode())
                if step == "rollback to":
                    take(db, session, "write", user, score, isolation)
                    db.execute(STATEMENTS[step].encode())
        case _:
            own = ", ".join(WHO.format(session=session, user=n) for n in range(USERS))
            statement = STATEMENTS[step].format(
                who=WHO.format(session=session, user=user), score=score, own=f"array[{own}]"
            )
            try:
                db.execute(statement.encode())
            except (
                psycopg.errors.LockNotAvailable,  # a sum or a repair of another session's
                psycopg.errors.SerializationFailure,
            ):
                if in_transaction:
                    db.execute("rollback")


@settings(
    max_examples=HISTORIES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=STEPS)
def test_in_every_transaction_counts_agree_with_scores_at_every_moment(
    opened: list[Db], steps: list[tuple[int, str, int, str, str]]
) -> None:
    try:
        for session, step, user, score, isolation in steps:
            take(opened[session], session, step, user, score, isolation)
            for db in opened:
                assert db.execute(MISCOUNTS).fetchall() == []
        for db in opened:
            assert_ranks_right(db)
    finally:
        for db in opened:
            db.rollback()
    db = opened[0]
    db.execute("select builder_score.compact_score_counts(1)")
    assert_ranks_right(db)
    db.execute("delete from builder_score.score_state")
    assert_ranks_right(db)
