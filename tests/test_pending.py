"""pending(): what is queued that will have a user recalculated, and when."""

from datetime import datetime, timedelta
from typing import Any, LiteralString
from uuid import UUID

import pytest
from psycopg import Connection

from tests.community import add_collaborator, add_project, add_user, configure, drain, one


def pending(db: Connection[Any], user: UUID) -> list[tuple[str, int, str]]:
    return db.execute(
        "select stands_for, priority, reason from builder_score.pending(%s)", [user]
    ).fetchall()


def due_at(db: Connection[Any], user: UUID) -> datetime:
    """When the first of the user's rows is due."""
    return one(db, "select min(due_at) from builder_score.pending(%s)", user)


def empty_queue(db: Connection[Any]) -> None:
    db.execute("delete from builder_score.score_recalc_queue")


def computed(db: Connection[Any], user: UUID, ago: str = "1 minute") -> datetime:
    """Remember a recalculation that long ago."""
    return one(
        db,
        "insert into builder_score.score_state (user_id, computed_at)"
        " values (%s, clock_timestamp() - %s::interval) returning computed_at",
        user,
        ago,
    )


def test_a_users_own_event_is_theirs_alone(scratch: Connection[Any]) -> None:
    ann = add_user(scratch, "ann")
    empty_queue(scratch)
    bob = add_user(scratch, "bob")
    assert pending(scratch, bob) == [("user", 20, "user inserted")]
    assert pending(scratch, ann) == []
    assert one(scratch, "select builder_score.is_pending(%s)", bob)
    assert not one(scratch, "select builder_score.is_pending(%s)", ann)
    assert due_at(scratch, bob) <= one(scratch, "select clock_timestamp()")


def test_an_event_in_an_open_window_is_due_when_it_closes(scratch: Connection[Any]) -> None:
    ann = add_user(scratch, "ann")
    at = computed(scratch, ann)
    assert due_at(scratch, ann) == at + timedelta(minutes=5)
    configure(scratch, debounce_window="2 hours")
    assert due_at(scratch, ann) == at + timedelta(hours=2)
    configure(scratch, debounce_window="10 seconds")
    assert due_at(scratch, ann) <= one(scratch, "select clock_timestamp()")


def test_a_forced_row_takes_the_others_past_the_window(scratch: Connection[Any]) -> None:
    ann = add_user(scratch, "ann")
    computed(scratch, ann)
    scratch.execute("select builder_score.enqueue(%s, 0, 'asked for')", [ann])
    assert pending(scratch, ann) == [("user", 0, "asked for"), ("user", 20, "user inserted")]
    last = one(scratch, "select max(due_at) from builder_score.pending(%s)", ann)
    assert last <= one(scratch, "select clock_timestamp()")


def test_a_window_in_the_future_means_that_the_clock_was_set_back(
    scratch: Connection[Any],
) -> None:
    ann = add_user(scratch, "ann")
    computed(scratch, ann, ago="-1 hour")
    assert due_at(scratch, ann) <= one(scratch, "select clock_timestamp()")


def test_a_backoff_holds_for_forced_rows_too(scratch: Connection[Any]) -> None:
    ann = add_user(scratch, "ann")
    scratch.execute("select builder_score.enqueue(%s, 0)", [ann])
    retry_at = one(
        scratch,
        "insert into builder_score.score_state (user_id, attempts, retry_at)"
        " values (%s, 3, now() + interval '1 hour') returning retry_at",
        ann,
    )
    assert due_at(scratch, ann) == retry_at


def test_a_project_row_concerns_its_owner_and_its_collaborators(scratch: Connection[Any]) -> None:
    ann, bob, eve, invited = (add_user(scratch, name) for name in ("ann", "bob", "eve", "invited"))
    project = add_project(scratch, ann)
    add_collaborator(scratch, project, bob)
    add_collaborator(scratch, project, invited, "pending")
    scratch.execute("delete from builder_score.score_recalc_queue where project_id is null")
    (row,) = pending(scratch, ann)
    assert (row[0], row[1]) == ("project", 10)
    assert pending(scratch, bob) == [row]
    assert pending(scratch, eve) == pending(scratch, invited) == []
    assert one(scratch, "select builder_score.is_pending(%s)", bob)
    assert not one(scratch, "select builder_score.is_pending(%s)", invited)
    concerned = {ann, bob}
    scratch.execute("select builder_score.expand_projects(10)")
    rows = scratch.execute("select user_id from builder_score.score_recalc_queue").fetchall()
    assert {user for (user,) in rows} == concerned


def test_a_row_for_everyone_concerns_everyone(scratch: Connection[Any]) -> None:
    ann = add_user(scratch, "ann")
    empty_queue(scratch)
    scratch.execute("select builder_score.enqueue_everyone('new formula')")
    assert pending(scratch, ann) == [("everyone", 20, "new formula")]


def test_a_walk_concerns_those_whom_it_has_not_reached(scratch: Connection[Any]) -> None:
    first, second = sorted(add_user(scratch, name) for name in ("ann", "bob"))
    empty_queue(scratch)
    scratch.execute("select builder_score.start_backfill('new formula', false)")
    assert pending(scratch, first) == [("everyone", 20, "new formula")]
    scratch.execute("update builder_score.backfill set after_user_id = %s", [first])
    assert pending(scratch, first) == []
    assert pending(scratch, second) == [("everyone", 20, "new formula")]
    scratch.execute("update builder_score.backfill set only_ageing = true")
    assert pending(scratch, second) == [], "the daily walk passes most people by"


def test_a_second_walk_concerns_everyone_until_it_begins(scratch: Connection[Any]) -> None:
    ann = add_user(scratch, "ann")
    empty_queue(scratch)
    scratch.execute("update builder_score.host set walk_again_after = pg_current_xact_id()")
    (row,) = pending(scratch, ann)
    assert (row[0], row[1]) == ("everyone", 20)
    assert one(scratch, "select builder_score.is_pending(%s)", ann)


@pytest.mark.parametrize(
    "query",
    [
        "select builder_score.enqueue_everyone()",
        "select builder_score.start_backfill('x', false)",
        "select builder_score.start_backfill('x', true)",
        "select 1",
    ],
)
def test_is_pending_says_whether_pending_has_a_row(
    scratch: Connection[Any], query: LiteralString
) -> None:
    ann = add_user(scratch, "ann")
    assert one(scratch, "select builder_score.is_pending(%s)", ann)
    empty_queue(scratch)
    scratch.execute(query)
    told = one(scratch, "select builder_score.is_pending(%s)", ann)
    assert told == bool(pending(scratch, ann))


def test_pending_tells_when_the_score_comes(db: Connection[Any]) -> None:
    ann = add_user(db, "ann")
    drain(db)
    assert pending(db, ann) == []
    add_project(db, ann, status="shipped")
    told = due_at(db, ann)
    drain(db)
    assert due_at(db, ann) == told, "deferred exactly to the window's end"


# queue_by_priority, throughput ------------------------------------------------------------------


def test_the_queue_by_priority_always_has_three_rows(scratch: Connection[Any]) -> None:
    query = "select priority, queue_depth, due_now, oldest_due_age from %s"
    view = query % "builder_score.queue_by_priority"
    assert scratch.execute(view.encode()).fetchall() == [(n, 0, 0, None) for n in (0, 10, 20)]
    add_project(scratch, add_user(scratch, "ann"))
    scratch.execute(
        "update builder_score.score_recalc_queue set not_before = now() - '1 h'::interval"
    )
    scratch.execute("select builder_score.enqueue_everyone()")
    scratch.execute(
        "insert into builder_score.score_recalc_queue (user_id, priority, reason, not_before)"
        " select id, 0, 'later', now() + interval '1 hour' from users"
    )
    high, medium, low = scratch.execute(view.encode()).fetchall()
    assert high == (0, 1, 0, None)
    assert medium[:3] == (10, 1, 1)
    assert low[:3] == (20, 2, 2)
    assert medium[3] >= timedelta(hours=1) <= low[3]


RATE = """
    select builder_score.recent_rate(date_trunc('minute', t.now) - %s::interval, %s, %s),
           60 + extract(epoch from t.now - date_trunc('minute', t.now))::double precision
    from (select clock_timestamp() as now) as t
"""


def rate(db: Connection[Any], minute_age: str, this: int, before: int) -> float:
    """The rate times the seconds that it spans, which is the number of recalculations."""
    while True:
        value, seconds = db.execute(RATE, [minute_age, this, before]).fetchall()[0]
        if seconds < 119.5:  # else the minute may turn between the two clocks
            return round(value * seconds, 1)


def test_throughput_is_that_of_this_minute_and_the_one_before(scratch: Connection[Any]) -> None:
    assert abs(rate(scratch, "0 minutes", 600, 300) - 900) < 5
    assert abs(rate(scratch, "1 minute", 600, 300) - 600) < 5
    assert rate(scratch, "2 minutes", 600, 300) == 0


def test_batches_are_counted_by_the_minute(db: Connection[Any]) -> None:
    counted = (
        "select minute = date_trunc('minute', last_batch_at), minute_recalculated,"
        " minute_before_recalculated from builder_score.worker_status where worker = 'drain'"
    )
    configure(db, debounce_window="0")
    # the minute is not to turn meanwhile
    db.execute(
        "select pg_sleep(61 - s) from extract(second from clock_timestamp()) as t(s) where s > 50"
    )

    def score_two() -> None:
        for name in ("ann", "bob"):
            add_user(db, f"{name}{one(db, 'select count(*) from users')}")
        drain(db)

    def set_back(minutes: int) -> None:
        db.execute(
            "update builder_score.worker_status set minute = minute - make_interval(mins => %s)",
            [minutes],
        )

    def count() -> tuple[Any, ...]:
        return db.execute(counted).fetchall()[0]

    score_two()
    score_two()
    assert count() == (True, 4, 0)
    assert one(db, "select recalculated_per_second > 0 from builder_score.health")
    set_back(1)
    score_two()
    score_two()
    assert count() == (True, 4, 4)
    set_back(2)
    score_two()
    assert count() == (True, 2, 0)
