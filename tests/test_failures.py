"""A user who cannot be scored harms only themselves, and a crash takes nothing along."""

import os
import signal
from collections.abc import Iterator
from math import log2
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection

from pyscore import migrator
from pyscore.cluster import PrivateCluster
from tests.community import add_project, add_user, configure, drain, queue, score
from tests.interleave import (
    Session,
    Sessions,
    assert_right,
    batch_stopped,
    install_gates,
    make_due,
    settle,
    until,
)

# A trigger of the host's, as an audit or a check would be: it objects to some people's rows.
POISON: LiteralString = """
    create function poison() returns trigger language plpgsql as $$
    begin
        if new.username like 'poison%' then
            raise exception 'will not have %', new.username using errcode = tg_argv[0];
        end if;
        return new;
    end $$;
"""
CURE = "drop trigger poison on users"


@pytest.fixture(autouse=True)
def no_window(db: Connection[Any]) -> None:
    configure(db, debounce_window="0")


def poison(db: Connection[Any], errcode: LiteralString = "P0001") -> None:
    db.execute(POISON)
    db.execute(
        "create trigger poison before update of builder_score on users"
        f" for each row execute function poison('{errcode}')"
    )


def add_people(db: Connection[Any], count: int, poisoned: int) -> None:
    db.execute(
        """
        insert into users (email, username, bio)
        select format('%%s@example.org', n),
               format(case when n <= %s then 'poison%%s' else 'user%%s' end, n), 'bio'
        from generate_series(1, %s) as n
        """,
        [poisoned, count],
    )


def state(db: Connection[Any], user: UUID) -> tuple[Any, ...]:
    """Give the attempts, and the seconds until the next one."""
    row = db.execute(
        """
        select attempts, extract(epoch from retry_at - clock_timestamp())::float8
        from builder_score.score_state where user_id = %s
        """,
        [user],
    ).fetchone()
    assert row is not None
    return row


def run(db: Connection[Any]) -> dict[str, Any]:
    """What the worker counted so far."""
    row = db.execute(
        "select batches, passes, failed, last_error from builder_score.worker_status"
        " where worker = 'drain'"
    ).fetchone()
    assert row is not None
    return dict(zip(("batches", "passes", "failed", "last_error"), row, strict=True))


def dead_letters(db: Connection[Any]) -> list[tuple[Any, ...]]:
    return db.execute(
        "select user_id, attempts, sqlstate, message from builder_score.score_dead_letter"
    ).fetchall()


def try_again(db: Connection[Any]) -> None:
    """Let every backoff be over, as if its time had passed."""
    db.execute("update builder_score.score_state set retry_at = clock_timestamp()")
    make_due(db)
    drain(db)


def one_batch(db: Connection[Any]) -> None:
    """Run a batch of all, however long it takes: a worker begins with a small one."""
    db.execute("select builder_score.run_batch('drain')")


def give_up(db: Connection[Any]) -> None:
    configure(db, max_attempts=2)
    drain(db)
    try_again(db)


@pytest.mark.parametrize("poisoned", [1, 2, 5])
@pytest.mark.parametrize("people", [64, 500])
def test_a_poison_user_is_found_by_halving_and_the_rest_commit(
    db: Connection[Any], people: int, poisoned: int
) -> None:
    configure(db, batch_size=1000)  # so that all are in one batch
    poison(db)
    add_people(db, people, poisoned)
    one_batch(db)
    counted = run(db)
    assert counted["batches"] == 1
    assert counted["failed"] == poisoned
    assert counted["passes"] <= 2 * poisoned * (log2(people) + 1)
    right = db.execute("select count(*) from users where builder_score = 3").fetchone()
    assert right == (people - poisoned,)
    left = db.execute(
        "select count(*) from builder_score.score_recalc_queue as q"
        " join users as u on u.id = q.user_id where u.username like 'poison%'"
    ).fetchone()
    assert left == (poisoned,)


def test_whoever_it_is_halving_keeps_to_its_bound(db: Connection[Any]) -> None:
    # of a number that is not halved evenly
    poison(db)
    add_people(db, 10, 0)
    drain(db)
    for place in range(10):
        (name,) = db.execute(
            "update users set username = 'poison' where id ="
            " (select id from users order by id offset %s limit 1) returning email",
            [place],
        ).fetchall()[0]
        before = run(db)["passes"]
        db.execute("update users set headline = case when headline is null then 'x' end")
        drain(db)
        assert 3 < run(db)["passes"] - before <= 2 * (log2(10) + 1)
        db.execute("update users set username = %s where username = 'poison'", [name])
        try_again(db)


def test_a_batch_without_failures_is_one_pass(db: Connection[Any]) -> None:
    add_people(db, 64, 0)
    one_batch(db)
    assert (run(db)["batches"], run(db)["passes"]) == (1, 1)
    assert run(db)["last_error"] is None


@pytest.mark.parametrize(
    "objection",
    [
        "raise exception 'no' using errcode = 'P0001'",
        "raise exception 'no' using errcode = 'PSBAD'",
        "perform 1 / 0",
        "assert false, 'no'",
        "insert into users (email, username) values ('poison@example.org', 'poison')",
        "new.builder_score := null; perform no_such_function()",
        "return null",
    ],
)
def test_whatever_the_hosts_trigger_objects_with_is_one_users_failure(
    db: Connection[Any], objection: LiteralString
) -> None:
    user, other = add_user(db, "poison", bio="bio"), add_user(db, "ann", bio="bio")
    db.execute(
        "create function object() returns trigger language plpgsql as $$ begin"
        f" if new.username = 'poison' then {objection}; end if; return new; end $$;"
        " create trigger object before update of builder_score on users"
        " for each row execute function object()"
    )
    drain(db)
    assert (score(db, user), score(db, other)) == (0, 3)
    assert state(db, user)[0] == 1
    assert state(db, other) == (0, None)


def test_a_check_that_waits_for_the_commit_is_one_users_failure(db: Connection[Any]) -> None:
    user, other = add_user(db, "poison", bio="bio"), add_user(db, "ann", bio="bio")
    db.execute(POISON)
    db.execute(
        "create constraint trigger poison after update on users deferrable initially deferred"
        " for each row execute function poison('23514')"
    )
    drain(db)
    assert (score(db, user), score(db, other)) == (0, 3)
    assert state(db, user)[0] == 1


def test_backoff_doubles_with_jitter_up_to_the_cap(db: Connection[Any]) -> None:
    configure(db, retry_base="10 seconds", retry_cap="2 minutes")
    for attempts, base in [(1, 10), (2, 20), (3, 40), (4, 80)]:
        row = db.execute(
            """
            select min(s), max(s), count(distinct s) from (
                select extract(epoch from builder_score.retry_delay(%s))::float8 as s
                from generate_series(1, 300)
            ) as d
            """,
            [attempts],
        ).fetchone()
        assert row is not None
        low, high, different = row
        assert 0.8 * base <= low < 0.9 * base
        assert 1.1 * base < high <= 1.2 * base
        assert different > 100
    for attempts in (6, 40, 100):
        row = db.execute("select builder_score.retry_delay(%s)::text", [attempts]).fetchone()
        assert row == ("00:02:00",)


def test_each_failure_waits_longer_and_leaves_one_row(db: Connection[Any]) -> None:
    poison(db)
    user = add_user(db, "poison", bio="bio")
    drain(db)
    waits = [state(db, user)[1]]
    for attempt in (2, 3, 4):
        try_again(db)
        attempts, wait = state(db, user)
        assert attempts == attempt
        waits.append(wait)
    assert waits == sorted(waits)
    assert 7 < waits[0] <= 12
    assert 60 < waits[3] <= 96
    assert len(queue(db)) == 1


def test_a_new_event_does_not_shorten_the_backoff(db: Connection[Any]) -> None:
    poison(db)
    user = add_user(db, "poison", bio="bio")
    drain(db)
    backoff = "select user_id, attempts, retry_at from builder_score.score_state"
    before = db.execute(backoff).fetchall()
    add_project(db, user)
    db.execute("select builder_score.enqueue(%s, 0)", [user])
    drain(db)
    assert db.execute(backoff).fetchall() == before
    assert run(db)["failed"] == 1
    (due,) = db.execute("""
        select q.not_before = s.retry_at, q.priority from builder_score.score_recalc_queue as q
        join builder_score.score_state as s using (user_id)
    """).fetchall()
    assert due == (True, 0), "one row, of the best priority, due when the backoff is over"


def test_success_ends_the_backoff(db: Connection[Any]) -> None:
    poison(db)
    user = add_user(db, "poison", bio="bio")
    drain(db)
    db.execute(CURE)
    try_again(db)
    assert score(db, user) == 3
    assert state(db, user) == (0, None)
    assert_right(db)


def test_after_max_attempts_the_user_is_a_dead_letter(db: Connection[Any]) -> None:
    configure(db, max_attempts=3)
    poison(db, "P0002")
    user, other = add_user(db, "poison", bio="bio"), add_user(db, "ann", bio="bio")
    for attempt in (1, 2, 3):
        assert dead_letters(db) == []
        make_due(db)
        try_again(db) if attempt > 1 else drain(db)
    assert dead_letters(db) == [(user, 3, "P0002", "will not have poison")]
    (times,) = db.execute("""
        select first_failed_at < last_failed_at, last_failed_at <= clock_timestamp()
        from builder_score.score_dead_letter
    """).fetchall()
    assert times == (True, True)
    assert queue(db) == []
    assert state(db, user) == (0, None)
    assert score(db, other) == 3
    # nobody tries again by themselves
    make_due(db)
    drain(db)
    assert run(db)["failed"] == 3
    assert db.execute("select user_id, standing from builder_score.verify()").fetchall() == [
        (user, "dead letter")
    ]


def test_a_new_event_gives_a_dead_letter_a_fresh_start(db: Connection[Any]) -> None:
    poison(db)
    user = add_user(db, "poison", bio="bio")
    give_up(db)
    assert len(dead_letters(db)) == 1

    add_project(db, user)
    drain(db)
    assert state(db, user)[0] == 1, "tried at once, and counted from one"
    try_again(db)
    assert dead_letters(db) == [(user, 2, "P0001", "will not have poison")]


def test_success_removes_the_dead_letter(db: Connection[Any]) -> None:
    poison(db)
    user = add_user(db, "poison", bio="bio")
    give_up(db)
    db.execute(CURE)
    add_project(db, user, status="shipped")
    drain(db)
    assert (score(db, user), dead_letters(db)) == (13, [])
    assert_right(db)


def test_recalculate_removes_the_dead_letter(db: Connection[Any]) -> None:
    poison(db)
    user = add_user(db, "poison", bio="bio")
    give_up(db)
    db.execute(CURE)
    db.execute("select builder_score.recalculate(%s)", [user])
    assert (score(db, user), dead_letters(db)) == (3, [])
    assert_right(db)


@pytest.mark.parametrize("errcode", ["40001", "40P01", "53100", "53200", "55P03", "55006", "57000"])
def test_an_error_that_is_not_the_users_splits_the_batch_and_counts_no_attempt(
    db: Connection[Any], errcode: LiteralString
) -> None:
    configure(db, max_attempts=1)
    poison(db, errcode)
    add_people(db, 64, 1)
    user = add_user(db, "poison", bio="bio")
    drain(db)
    assert db.execute("select count(*) from users where builder_score = 3").fetchone() == (63,)
    assert (run(db)["failed"], dead_letters(db)) == (0, [])
    assert run(db)["last_error"] == f"{errcode}: will not have poison" or (
        run(db)["last_error"] == f"{errcode}: will not have poison1"
    )
    (rows,) = db.execute("""
        select count(*), min(not_before) > clock_timestamp() + interval '0.5 seconds'
        from builder_score.score_recalc_queue
    """).fetchall()
    assert rows == (2, True), "put off, not lost, and nobody spins on them"
    (attempts,) = db.execute(
        "select coalesce(sum(attempts), 0), count(retry_at) from builder_score.score_state"
    ).fetchall()
    assert attempts == (0, 0)
    db.execute(CURE)
    settle(db)
    assert score(db, user) == 3
    assert_right(db)


@pytest.mark.parametrize(
    ("end", "raised"),
    [
        ("pg_terminate_backend", psycopg.errors.AdminShutdown),
        ("pg_cancel_backend", psycopg.errors.QueryCanceled),
    ],
)
def test_a_batch_that_is_ended_in_the_middle_loses_nothing_and_counts_no_attempt(
    db: Connection[Any], sessions: Sessions, end: str, raised: type[psycopg.Error]
) -> None:
    user = add_user(db, "ann", bio="bio")
    install_gates(db)
    worker, keeper = sessions("worker"), sessions("keeper")
    before = queue(db)
    with pytest.raises(raised), batch_stopped(worker, keeper, "after computing"):
        db.execute(f"select {end}(%s)".encode(), [worker.pid])
    assert (queue(db), score(db, user), run(db)["failed"]) == (before, 0, 0)
    settle(db)
    assert score(db, user) == 3
    assert_right(db)


@pytest.fixture(scope="module")
def server_to_kill() -> Iterator[PrivateCluster]:
    # kill -9 of one backend makes the server restart all of them: not for the shared server
    with PrivateCluster(settings={"fsync": False}) as server:
        server.psql("-c", "create database app")
        migrator.upgrade(server.conninfo("app"))
        yield server


def has_ended(session: Session) -> bool:
    try:
        session.run("select 1")
    except psycopg.OperationalError:
        return True
    return False


@pytest.mark.parametrize("gate", ["after locking users", "after computing"])
def test_kill_9_of_a_worker_in_mid_batch_loses_nothing(
    server_to_kill: PrivateCluster, gate: str
) -> None:
    conninfo = server_to_kill.conninfo("app")
    with psycopg.connect(conninfo, autocommit=True) as admin:
        configure(admin, debounce_window="0")
        admin.execute("drop function if exists gate cascade")
        name = f"ann {gate}"
        user = add_user(admin, name)
        settle(admin)
        install_gates(admin)
        add_project(admin, user, status="shipped")
        before = queue(admin)
    with Sessions(conninfo) as sessions:
        worker, keeper = sessions("worker"), sessions("keeper")
        with pytest.raises(psycopg.OperationalError), batch_stopped(worker, keeper, gate):
            os.kill(worker.pid, signal.SIGKILL)
        # until the server has noticed it still accepts connections, and ends them a moment later
        until(lambda: has_ended(keeper), "the server ends every session")

    def is_back() -> bool:
        try:
            psycopg.connect(conninfo).close()
        except psycopg.OperationalError:
            return False
        return True

    until(is_back, "the server recovers")
    with psycopg.connect(conninfo, autocommit=True) as admin:
        assert (queue(admin), score(admin, user)) == (before, 0)
        settle(admin)
        assert score(admin, user) == 10
        assert_right(admin)


# dead letters, retried ----------------------------------------------------------------------------


def given_up(db: Connection[Any]) -> list[str]:
    return [
        name
        for (name,) in db.execute(
            "select username from builder_score.score_dead_letter join users on id = user_id"
            " order by username"
        ).fetchall()
    ]


def test_a_retried_dead_letter_gets_a_fresh_start_past_the_debounce(db: Connection[Any]) -> None:
    poison(db)
    ann, bob, eve = (add_user(db, name, bio="b") for name in ("poison_ann", "poison_bob", "eve"))
    configure(db, max_attempts=1, debounce_window="1 hour")
    settle(db)
    assert given_up(db) == ["poison_ann", "poison_bob"]
    db.execute(CURE)

    retry = "select builder_score.retry_dead_letters(%s)"
    assert db.execute(retry, [[ann, eve, UUID(int=0)]]).fetchall() == [(1,)]
    assert given_up(db) == ["poison_ann", "poison_bob"], "it says what was wrong until then"
    assert queue(db) == [(ann, None, 0, "dead letter retried")]
    drain(db)
    assert given_up(db) == ["poison_bob"]
    assert (score(db, ann), score(db, bob)) == (3, 0)

    db.execute("update builder_score.score_state set computed_at = clock_timestamp()")
    assert db.execute("select builder_score.retry_dead_letters()").fetchall() == [(1,)]
    drain(db)
    assert given_up(db) == []
    assert score(db, bob) == 3
    assert db.execute("select builder_score.retry_dead_letters()").fetchall() == [(0,)]


def test_a_retried_dead_letter_that_fails_again_is_one_again(db: Connection[Any]) -> None:
    poison(db)
    add_user(db, "poison_ann", bio="b")
    give_up(db)
    (before,) = db.execute("select last_failed_at from builder_score.score_dead_letter").fetchall()
    db.execute("select builder_score.retry_dead_letters()")
    drain(db)
    try_again(db)
    assert given_up(db) == ["poison_ann"]
    (after,) = db.execute("select last_failed_at from builder_score.score_dead_letter").fetchall()
    assert after > before
