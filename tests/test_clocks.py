"""The server's clock goes back and forward, the clocks change, sessions are in any TimeZone."""

import itertools
import os
import re
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection

from pyscore import migrator
from tests.attacks import Attack
from tests.commands import ROOT
from tests.community import (
    add_collaborator,
    add_project,
    add_user,
    configure,
    drain,
    one,
    queue,
    score,
)
from tests.faketime import Clock, server_with_a_clock
from tests.interleave import (
    GATES,
    Session,
    Sessions,
    assert_right,
    batch_stopped,
    install_gates,
    is_quiet,
    settle,
    until,
)
from tests.poison import poison
from tests.recalculations import note_recalculations
from tests.statements import run

MINUTE, HOUR, DAY, YEAR = 60, 3600, 86_400, 31_557_600
BACK = (-30 * YEAR, -HOUR, -4 * MINUTE, -2)
JUMPS = (*BACK, 4 * MINUTE, DAY, 30 * YEAR)

RELIABILITY = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def clock_server() -> Iterator[Clock]:
    with server_with_a_clock() as clock:
        clock.server.psql("-c", "create database template_of_clocks")
        migrator.upgrade(clock.server.conninfo("template_of_clocks"))
        yield clock


@pytest.fixture
def clock(clock_server: Clock) -> Clock:
    clock_server.set_right()
    return clock_server


@pytest.fixture
def database(clock: Clock) -> str:
    name = f"clocks_{next(_numbers)}"
    clock.server.psql("-c", f"create database {name} template template_of_clocks")
    return clock.server.conninfo(name)


@pytest.fixture
def db(database: str) -> Iterator[Connection[Any]]:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("set statement_timeout = '20s'")  # a drain that spins comes to no end
        yield connection


@pytest.fixture
def sessions(database: str) -> Iterator[Sessions]:
    with Sessions(database) as opened:
        yield opened


def batches(db: Connection[Any]) -> int:
    return one(db, "select sum(batches)::integer from builder_score.worker_status")


def recalculations(db: Connection[Any]) -> int:
    return one(db, "select recalculated from builder_score.health")


def drain_without_spinning(db: Connection[Any], at_most: int = 10) -> None:
    before = batches(db)
    drain(db)
    assert batches(db) - before <= at_most


def a_community(db: Connection[Any]) -> list[UUID]:
    """Make three people who are scored, and whose windows are open."""
    people = [add_user(db, name) for name in ("ann", "bob", "eve")]
    add_collaborator(db, add_project(db, people[0], status="shipped"), people[1])
    drain(db)
    assert_right(db)
    return people


# Jumps --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", BACK)
def test_what_was_appended_before_the_clock_went_back_waits_no_longer_than_a_window(
    clock: Clock, db: Connection[Any], jump: int
) -> None:
    clock.move(-jump)
    for event in (
        "select builder_score.enqueue_everyone()",
        "insert into users (username, email) values ('ada', 'ada@example.org')",
    ):
        db.execute(event.encode())
    person, other = add_user(db, "ann"), add_user(db, "bob")
    project = add_project(db, person, status="shipped")
    add_collaborator(db, project, other)
    assert {(row[0] is None, row[1] is None) for row in queue(db)} == {
        (False, True),  # people,
        (True, False),  # projects,
        (True, True),  # and everyone
    }
    clock.move(jump)
    drain_without_spinning(db)
    clock.move(5 * MINUTE)
    drain_without_spinning(db)
    assert_right(db)
    assert (score(db, person), score(db, other)) == (18, 8)


@pytest.mark.parametrize("jump", JUMPS)
def test_a_jump_in_an_open_window_costs_no_event_and_no_spinning(
    clock: Clock, db: Connection[Any], jump: int
) -> None:
    people = a_community(db)
    for person in people:
        add_project(db, person, status="shipped")
    drain(db)
    assert {row[0] for row in queue(db)} == set(people), "put off until their windows close"
    before = recalculations(db)
    clock.move(jump)
    drain_without_spinning(db)
    drain_without_spinning(db)
    if 0 < jump < 5 * MINUTE:
        assert recalculations(db) == before
    clock.move(5 * MINUTE)
    drain_without_spinning(db)
    assert_right(db)
    assert recalculations(db) - before <= 2 * len(people)


@pytest.mark.parametrize("jump", JUMPS)
def test_a_jump_in_a_backoff_delays_the_next_attempt_by_a_window_at_most(
    clock: Clock, db: Connection[Any], jump: int
) -> None:
    poison(db)
    people = a_community_with_a_poison_user(db)
    clock.move(jump)
    drain_without_spinning(db)
    db.execute("drop trigger poison on users")
    clock.move(5 * MINUTE)
    drain_without_spinning(db)
    assert_right(db)
    assert all((score(db, person) or 0) >= 10 for person in people)
    assert one(db, "select max(attempts) from builder_score.score_state") == 0


def test_a_backoff_from_an_hour_ahead_is_known_by_the_heartbeat_of_that_hour(
    clock: Clock, db: Connection[Any]
) -> None:
    # the row itself is from before the clock was put forward: nothing about it is from the future
    poison(db)
    user = add_user(db, "eve", bio="bio")
    clock.move(60 * MINUTE)
    drain(db)
    clock.move(-60 * MINUTE)
    db.execute("drop trigger poison on users")
    drain_without_spinning(db)
    clock.move(5 * MINUTE)
    drain_without_spinning(db)
    assert score(db, user) == 3
    assert_right(db)


def test_what_somebody_put_off_by_hand_stays_put_off_once_a_jump_is_over(
    clock: Clock, db: Connection[Any], sessions: Sessions
) -> None:
    user = add_user(db, "ann", bio="bio")
    clock.move(60 * MINUTE)
    sessions("resident").run("call builder_score.run_worker('0')")
    clock.move(-60 * MINUTE)
    drain(db)
    assert score(db, user) == 3
    db.execute("select builder_score.enqueue(%s)", [user])
    by_hand = "update builder_score.score_recalc_queue set not_before = now() + '1 year'::interval"
    db.execute(by_hand)
    drain(db)
    assert len(queue(db)) == 1
    assert one(db, "select not_before > now() + '1 day' from builder_score.score_recalc_queue")


def a_community_with_a_poison_user(db: Connection[Any]) -> list[UUID]:
    people = [add_user(db, name) for name in ("ann", "eve")]
    for person in people:
        add_project(db, person, status="shipped")
    drain(db)
    assert one(db, "select count(*) from builder_score.score_state where attempts = 1") == 1
    return people


@pytest.mark.parametrize("jump", JUMPS)
def test_a_walk_over_everyone_goes_on_after_a_jump(
    clock: Clock, db: Connection[Any], jump: int
) -> None:
    people = [add_user(db, f"user{number}", bio="bio") for number in range(30)]
    db.execute("truncate builder_score.score_recalc_queue")
    configure(db, backfill_per_second=10)
    db.execute("select builder_score.enqueue_everyone()")
    db.execute("select builder_score.advance_backfill()")
    assert one(db, "select seen from builder_score.backfill") == 10
    clock.move(jump)
    configure(db, backfill_per_second=5000)
    drain_without_spinning(db)
    clock.move(5 * MINUTE)
    drain_without_spinning(db)
    assert_right(db)
    assert all((score(db, person) or 0) >= 3 for person in people)


@pytest.mark.parametrize("jump", [-YEAR, YEAR])
@pytest.mark.parametrize("gate", GATES)
def test_a_jump_in_the_middle_of_a_batch_harms_nothing(
    clock: Clock, db: Connection[Any], sessions: Sessions, gate: str, jump: int
) -> None:
    install_gates(db)
    user = add_user(db, "ada", bio="bio")
    with batch_stopped(sessions("worker"), sessions("keeper"), gate):
        clock.move(jump)
    add_project(db, user, status="shipped")
    drain_without_spinning(db)
    clock.move(5 * MINUTE)
    drain_without_spinning(db)
    assert_right(db)
    assert (score(db, user) or 0) >= 13  # and years of age


# The resident worker ------------------------------------------------------------------------------


def test_a_run_ends_in_time_although_the_clock_went_back(
    clock: Clock, db: Connection[Any], sessions: Sessions
) -> None:
    install_gates(db)
    add_user(db, "ada", bio="bio")
    worker, keeper = sessions("worker"), sessions("keeper")
    keeper.run("begin")
    keeper.run(GATES["after re-reading"])
    worker.start("call builder_score.run_worker('1 second')")
    worker.waits_for(keeper)
    clock.move(-YEAR)
    keeper.run("commit")
    worker.finish()
    settle(db)  # ages that may have been taken in the future are taken again
    assert_right(db)


def while_it_naps(db: Connection[Any], session: Session, act: Callable[[], object]) -> None:
    """Act while a session is in pg_sleep(), which does not go on meanwhile."""
    asleep = "select wait_event = 'PgSleep' from pg_stat_activity where pid = %s"

    def stopped_in_its_nap() -> bool:
        os.kill(session.pid, signal.SIGSTOP)
        try:
            until(lambda: state(session.pid) == "T", "it is stopped")
            if naps := one(db, asleep, session.pid):
                act()
        finally:
            os.kill(session.pid, signal.SIGCONT)
        return naps

    until(stopped_in_its_nap, "the worker naps")


def state(pid: int) -> str:
    """A process's state, by its letter: R, S, T."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]


def test_a_worker_whose_nap_the_clock_made_long_is_seen_and_another_one_takes_over(
    clock: Clock, db: Connection[Any], sessions: Sessions
) -> None:
    # pg_sleep() ends by the wall clock: set back by an hour it sleeps for an hour
    napping, other = sessions("napping"), sessions("other")
    napping.start("call builder_score.run_worker('1 minute')")
    while_it_naps(db, napping, lambda: clock.move(-HOUR))
    user = add_user(db, "ada", bio="bio")
    other.start("call builder_score.run_worker('1 minute')")
    until(lambda: score(db, user) == 3, "somebody has computed the score")
    assert one(db, "select heartbeat_age from builder_score.health") < timedelta(minutes=1)
    configure(db, paused=True)
    other.finish()
    (ends_it,) = re.findall(r"^SELECT pg_terminate_backend.*$", RELIABILITY, re.MULTILINE)
    run(db, ends_it)
    with pytest.raises(psycopg.OperationalError):
        napping.finish()
    assert_right(db)


def test_a_heartbeat_from_before_the_clock_went_back_is_none(
    clock: Clock, db: Connection[Any], sessions: Sessions
) -> None:
    worker = sessions("worker")
    run = "call builder_score.run_worker('0 seconds')"
    worker.run(run)
    assert one(db, "select builder_score.is_alive('resident')")
    clock.move(-HOUR)
    assert not one(db, "select builder_score.is_alive('resident')")
    age, scheduler = db.execute(
        "select heartbeat_age, scheduler from builder_score.health"
    ).fetchall()[0]
    assert age > timedelta(minutes=59)
    assert scheduler == "none"
    db.execute("select builder_score.beat('resident')")  # as an idle worker does
    assert one(db, "select builder_score.is_alive('resident')")
    assert one(db, "select heartbeat_age from builder_score.health") < timedelta(minutes=1)


def test_nothing_that_health_says_is_absurd_after_a_jump(clock: Clock, db: Connection[Any]) -> None:
    for jump in JUMPS:
        a_person = add_user(db, f"user{jump}")
        clock.move(jump)
        add_project(db, a_person, status="shipped")
        row = db.execute("""
            select oldest_due_age, heartbeat_age, recalculated_per_second, queue_depth, due_now
            from builder_score.health
        """).fetchall()[0]
        oldest, _, rate, depth, due = row
        assert oldest is None or oldest >= timedelta()
        assert rate >= 0
        assert depth >= due >= 1
        drain(db)
        assert one(db, "select recalculated_per_second > 0 from builder_score.health")


# Age ----------------------------------------------------------------------------------------------


def test_ages_taken_while_the_clock_was_ahead_are_taken_again(
    clock: Clock, db: Connection[Any]
) -> None:
    clock.move(YEAR)
    user = add_user(db, "ada")
    db.execute("update users set created_at = now() - interval '366 days'")
    drain(db)
    db.execute("update builder_score.host set refreshed_at = clock_timestamp()")
    assert score(db, user) == 10
    clock.move(-YEAR)
    db.execute("select builder_score.housekeeping()")
    drain_without_spinning(db)
    assert score(db, user) == 0
    assert_right(db)


def test_an_account_from_the_future_ages_from_the_day_it_was_created(
    clock: Clock, db: Connection[Any]
) -> None:
    user = add_user(db, "ada", created_at=datetime.now(UTC) + timedelta(days=100))
    drain(db)
    assert score(db, user) == 0
    for days, expected in ((99, 0), (40, 1), (365, 10)):
        clock.move(days * DAY)
        db.execute("select builder_score.housekeeping()")
        drain(db)
        assert score(db, user) == expected
        assert_right(db)


# Time zones ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "change"),
    [
        ("Europe/Berlin", datetime(2027, 3, 28, 1, tzinfo=UTC)),
        ("Europe/Berlin", datetime(2027, 10, 31, 1, tzinfo=UTC)),
        ("America/New_York", datetime(2027, 3, 14, 7, tzinfo=UTC)),
        ("Australia/Lord_Howe", datetime(2027, 4, 3, 15, tzinfo=UTC)),
    ],
)
def test_a_window_is_as_long_as_ever_when_the_clocks_change(
    clock: Clock, db: Connection[Any], zone: str, change: datetime
) -> None:
    db.execute("select set_config('TimeZone', %s, false)", [zone])
    offset = "select extract(timezone from clock_timestamp())"
    for number, (window, seconds) in enumerate((("5 minutes", 300), ("1 day", DAY))):
        configure(db, debounce_window=window)
        clock.set_to(change - timedelta(minutes=1))
        before = one(db, offset)
        user = add_user(db, f"user{number}")
        drain(db)
        add_project(db, user, status="shipped")
        drain(db)
        clock.move(2 * MINUTE)
        assert one(db, offset) != before, "the clocks have changed"
        add_project(db, user, status="shipped")
        drain_without_spinning(db)
        assert recalculations(db) == 2 * number + 1
        told = one(db, "select max(due_at) from builder_score.pending(%s)", user)
        computed_at, not_before = run(
            db,
            """
            select s.computed_at, q.not_before
            from builder_score.score_state as s
            join builder_score.score_recalc_queue as q using (user_id)
            """,
        )[0]
        assert told.astimezone(UTC) - computed_at.astimezone(UTC) == timedelta(seconds=seconds)
        assert not_before == told
        clock.move(seconds - 2 * MINUTE)
        drain_without_spinning(db)
        assert recalculations(db) == 2 * number + 2
        assert_right(db)


@pytest.mark.parametrize("kind", ["timestamptz", "timestamp"])
def test_a_score_is_the_same_in_sessions_of_every_time_zone(db: Connection[Any], kind: str) -> None:
    user = add_user(db, "ada")
    run(
        db,
        f"""
        select builder_score.detach();
        alter table users alter created_at type {kind};
        select builder_score.attach();
        -- an hour that Berlin does not have
        update users set created_at = '2024-03-31 02:30:00+00';
        create function in_all_zones(out zone text, out said text) returns setof record
        language plpgsql as $$
        begin
            for zone in select name from pg_timezone_names loop
                perform set_config('TimeZone', zone, true);
                said := (select c::text from builder_score.compute(
                    array(select id from builder_score.host_users),
                    array[timestamptz '2025-03-31 02:29:59+00']
                ) as c);
                return next;
            end loop;
        end $$;
        """,
    )
    found = run(db, "select said, count(*) from in_all_zones() group by said")
    assert len(found) == 1, "the same everywhere"
    assert found[0][1] > 300
    # a day less than a year: 364 days are whole
    age = "select raw from builder_score.explain(%s) where signal = 'age'"
    ages: set[Any] = set()
    for zone in ("UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"):
        db.execute("select set_config('TimeZone', %s, false)", [zone])
        ages.add(one(db, age, user))
    assert len(ages) == 1


# At random ----------------------------------------------------------------------------------------

# How often the clock had been moved when somebody was computed.
ERAS = """
    create table era (number integer);
    insert into era values (0);
    create function era() returns integer language sql as 'select number from public.era';
    alter table recalculations add column era integer not null default era();
"""


class Play:
    """A community, and a clock that is moved at random moments."""

    def __init__(self, clock: Clock, db: Connection[Any], sessions: Sessions, dice: Random) -> None:
        self.clock, self.db, self.dice = clock, db, dice
        self._worker, self._keeper = sessions("worker"), sessions("keeper")
        self.people = [add_user(db, f"user{number}", bio="bio") for number in range(5)]
        self.projects = [add_project(db, person) for person in self.people]
        self.jumps = 0

    def step(self) -> None:
        what = (self.write, self.write, self.write, self.drain, self.wait, self.jump, self.in_batch)
        self.dice.choice(what)()

    def write(self) -> None:
        dice, db = self.dice, self.db
        project = dice.choice(self.projects)
        match dice.randrange(4):
            case 0:
                db.execute(
                    "update users set bio = %s where id = %s",
                    [str(dice.random()), dice.choice(self.people)],
                )
            case 1:
                db.execute(
                    "update projects set github_stars = %s where id = %s",
                    [dice.randrange(1000), project],
                )
            case 2:
                db.execute(
                    "update projects set owner_id = %s where id = %s",
                    [dice.choice(self.people), project],
                )
            case _:
                with db.transaction(force_rollback=dice.random() < 0.3):
                    db.execute(
                        "update projects set status = %s where id = %s",
                        [dice.choice(("shipped", "idea")), project],
                    )
                    if dice.random() < 0.2:
                        db.execute("select builder_score.enqueue_everyone()")

    def drain(self) -> None:
        drain_without_spinning(self.db, 12)

    def wait(self) -> None:
        self.clock.move(self.dice.choice((1, 20, 100, 4 * MINUTE)))

    def jump(self) -> None:
        seconds = self.dice.choice(JUMPS) * self.dice.random()
        self.clock.move(seconds)
        self.jumps += 1
        if seconds < 0:
            self.db.execute("update era set number = number + 1")

    def in_batch(self) -> None:
        # whose score is going to be written, so that the batch comes to every gate
        add_user(self.db, f"late{self.jumps}", bio="bio")
        with batch_stopped(self._worker, self._keeper, self.dice.choice(tuple(GATES))):
            self.jump()
        self.db.execute("update era set number = number + 1")  # what it wrote is of neither era


def test_wherever_the_clock_goes_everybody_is_scored_two_windows_later(
    clock: Clock, db: Connection[Any], database: str, attack: Attack
) -> None:
    install_gates(db)
    note_recalculations(db)
    run(db, ERAS)
    for dice in attack.rounds(3):
        clock.set_right()
        with Sessions(database) as sessions:
            play = Play(clock, db, sessions, dice)
            for _ in range(40):
                play.step()
        drain_without_spinning(db, 12)
        # a row, or a window, that was opened ahead by less than a window is left to time
        clock.move(10 * MINUTE + 1)
        drain_without_spinning(db, 12)
        assert is_quiet(db), queue(db)
        assert_right(db)
        close = run(
            db,
            """
            select gap from (
                select computed_at - lag(computed_at)
                    over (partition by user_id, era order by number) as gap
                from recalculations
            ) as g where gap >= interval '0' and gap < interval '5 minutes'  -- less: it went back
            """,
        )
        assert close == [], "unforced recalculations are a window apart while the clock goes on"
        attack.count("clock jumps", play.jumps)
        attack.count("recalculations", one(db, "select count(*) from recalculations"))
        run(db, "truncate recalculations, users, projects, project_collaborators")
        settle(db)
