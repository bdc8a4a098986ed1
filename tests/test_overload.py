"""A queue of many thousands of rows, a burst of events for one person, a full NOTIFY queue."""

import itertools
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from threading import Event, Semaphore, Thread
from typing import Any

import psycopg
from psycopg import Connection

from tests.attacks import Attack
from tests.community import add_project, add_user, configure, drain, one, queue, score
from tests.interleave import PATIENCE, Sessions, assert_right, close_windows, settle
from tests.recalculations import note_recalculations
from tests.statements import connect, run

BATCH = 500
COPIES = 4
TRANSACTIONS_A_BATCH = 6
MB = 1024 * 1024

# A twentieth of the people waits at high priority, a fifth at medium, the rest, and the longest, at
# low. Each is queued four times, with others' rows between them. As many rows name people who are
# gone; projects of those at medium have rows of their own.
FILL = f"""
    set session_replication_role = replica;
    insert into users (id, email, username, bio)
        select md5(i::text)::uuid, i || '@example.org', 'user' || i, 'bio'
        from generate_series(1, $people) as i;
    insert into projects (id, owner_id, title, status)
        select md5('p' || i)::uuid, md5(i::text)::uuid, 'p', 'shipped'
        from generate_series(1, $people) as i;
    set session_replication_role = origin;
    create table place as
        select md5(i::text)::uuid as user_id,
               case when i % 20 = 0 then 0 when i % 5 = 1 then 10 else 20 end as priority
        from generate_series(1, $people) as i;
    insert into builder_score.score_recalc_queue (user_id, priority, reason, not_before)
        select p.user_id, p.priority, 'overload', now() - make_interval(days => p.priority)
        from generate_series(1, {COPIES}) as copy cross join place as p
        order by copy, p.user_id;
    insert into builder_score.score_recalc_queue (user_id, priority, reason)
        select md5('gone' || i)::uuid, 20, 'overload' from generate_series(1, $people) as i;
    insert into builder_score.score_recalc_queue (project_id, priority, reason)
        select r.id, 10, 'overload'
        from projects as r join place as p on p.user_id = r.owner_id and p.priority = 10
        limit $people / 50;
    analyze;
"""

# What this transaction has read so far: rows of tables, and blocks of tables and indexes.
ROWS_READ = """
    select coalesce(sum(seq_tup_read + idx_tup_fetch), 0)::bigint from pg_stat_xact_user_tables
    where schemaname in ('public', 'builder_score')
"""
BLOCKS_READ = """
    select coalesce(sum(pg_stat_get_xact_blocks_fetched(c.oid)), 0)::bigint
    from pg_class as c
    where c.relnamespace in ('public'::regnamespace, 'builder_score'::regnamespace)
      and c.relkind in ('r', 'i')
"""

LEFT = "select count(*) from builder_score.score_recalc_queue where reason = 'overload'"

HEALTH = """
    select h.due_now, h.queue_depth, h.dead_letters, h.retrying,
           coalesce(h.oldest_due_age > '19 days', false), h.batches, h.recalculated
    from builder_score.health as h
"""
COUNTED = """
    select count(*) filter (where not_before <= clock_timestamp()), count(*),
           (select count(*) from builder_score.score_dead_letter), 0,
           coalesce(min(not_before) < clock_timestamp() - interval '19 days', false),
           (select sum(batches)::bigint from builder_score.worker_status),
           (select count(*) from recalculations)
    from builder_score.score_recalc_queue
"""


def memory(pid: int) -> int:
    """Give what a process of the server has in memory for itself alone, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("this system does not tell")


class Host:
    """An application that goes on writing, with a timeout, beside its own endless transaction.

    So much a batch, however fast either is: what it appends is done soon, and then is in the way of
    the batches that come, for nothing is vacuumed.
    """

    def __init__(self, address: str, dice: Random) -> None:
        self.transactions = 0
        self.errors: list[psycopg.Error] = []
        self._address, self._dice = address, dice
        self._stop = Event()
        self._turns = Semaphore(0)
        self._thread = Thread(target=self._write)
        with connect(address) as db:
            self.people = [add_user(db, f"bystander{number}", bio="bio") for number in range(20)]
            self.projects = [add_project(db, person) for person in self.people]

    def may_write(self) -> None:
        """Let it go on; before each batch."""
        self._turns.release(TRANSACTIONS_A_BATCH)

    @contextmanager
    def at_work(self) -> Generator[None]:
        with psycopg.connect(self._address) as endless:
            # holds back vacuum, and a person, for the whole run
            endless.execute("set transaction isolation level repeatable read")
            endless.execute("update users set bio = 'new' where id = %s", [self.people[0]])
            self._thread.start()
            try:
                yield
            finally:
                self._stop.set()
                self._thread.join()

    def _write(self) -> None:
        dice = self._dice
        with connect(self._address) as db:
            db.execute("set lock_timeout = '5s'; set statement_timeout = '10s'")
            while not self._stop.wait(0.005):
                if not self._turns.acquire(timeout=0.05):
                    continue
                try:
                    with db.transaction():
                        db.execute(
                            "update projects set github_stars = %s where id = %s",
                            [dice.randrange(1000), dice.choice(self.projects)],
                        )
                        db.execute(
                            "update users set bio = %s where id = %s",
                            [str(dice.random()), dice.choice(self.people[1:])],
                        )
                    self.transactions += 1
                except psycopg.Error as error:
                    self.errors.append(error)
                    return


def drain_by_batches(
    db: Connection[Any], worker: Connection[Any], host: Host, look_every: int
) -> int:
    """Run batches until nothing is due; look at each, and at health between them."""
    heaviest = lightest = 0
    for number in itertools.count():
        host.may_write()
        before = one(worker, ROWS_READ), one(worker, BLOCKS_READ)
        chosen, recalculated, trouble = run(
            worker, "select chosen, recalculated, trouble from builder_score.run_batch()"
        )[0]
        read = one(worker, ROWS_READ) - before[0], one(worker, BLOCKS_READ) - before[1]
        worker.commit()
        assert trouble is None
        # the host's own writes go on for ever, and so would this
        if chosen < BATCH and one(db, LEFT) == 0:
            return number + 1
        assert chosen > 0
        assert recalculated <= BATCH
        # what it takes for those chosen, never the queue; and the pages of the rows that batches so
        # far have done, which no vacuum removes beside the endless transaction
        assert read[0] < 30 * max(chosen, BATCH)
        assert read[1] < 150 * max(chosen, BATCH) + number * BATCH // 10
        used = memory(worker.info.backend_pid)
        if number == 3:
            lightest = used
        heaviest = max(heaviest, used)
        assert number <= 3 or heaviest < lightest + 4 * MB
        if number % look_every == 0:
            assert_health_is_true(db)
    raise AssertionError("unreachable")


def assert_health_is_true(db: Connection[Any]) -> None:
    with db.transaction():
        db.execute("set transaction isolation level repeatable read")
        before, said, after = (run(db, query)[0] for query in (COUNTED, HEALTH, COUNTED))
    assert before[0] <= said[0] <= after[0], "what is due grows with time"
    assert before[1:] == said[1:] == after[1:]


def test_a_long_queue_is_worked_off_in_batches_like_any_other(
    db: Connection[Any], database: str, attack: Attack
) -> None:
    note_recalculations(db)
    for dice in attack.rounds(1):
        people = 200_000 if attack.soaking else 10_000
        run(db, FILL.replace("$people", str(people)))
        rows = one(db, "select count(*) from builder_score.score_recalc_queue")
        host = Host(database, dice)
        with psycopg.connect(database) as worker, host.at_work():
            batches = drain_by_batches(db, worker, host, max(1, people // 10_000))
            assert (
                one(
                    db,
                    "select count(*) from place left join recalculations using (user_id)"
                    " where batch is null",
                )
                == 0
            )
        assert host.errors == []
        assert host.transactions > 0
        assert (
            one(
                db,
                "select max(n) from (select count(*) as n from recalculations"
                " join place using (user_id) group by user_id) as c",
            )
            == 1
        )

        composition = run(
            db,
            """
            select count(*) filter (where priority = 0),
                   count(*) filter (where priority = 10),
                   count(*) filter (where priority = 20)
            from recalculations left join place using (user_id) group by batch order by batch
            """,
        )
        # each with a tenth of low priority, which waits for longest
        high, medium = people // 20, people // 5
        for in_high, in_medium, in_low in composition:
            assert in_high == 0 or in_medium == 0 or high == in_high
            if high:
                assert in_high >= min(high, BATCH // 2)
            if high + medium:
                assert in_low == BATCH // 10
            assert in_medium == 0 or high == in_high
            high, medium = high - in_high, medium - in_medium
        assert (high, medium) == (0, 0)

        configure(db, debounce_window="0")
        settle(db)
        assert run(db, "select * from builder_score.verify()") == []
        # one shipped project and one of six fields
        query = "select distinct builder_score from users join place on user_id = id"
        assert run(db, query) == [(13,)]
        configure(db, debounce_window="5 minutes")
        attack.count("queue rows", rows)
        attack.count("batches", batches)
        attack.count("transactions", host.transactions)
        run(db, "truncate users, projects, project_collaborators; drop table place")
        run(
            db,
            "truncate recalculations, builder_score.score_recalc_queue, builder_score.score_state",
        )


def test_any_number_of_events_of_one_person_make_one_recalculation(
    db: Connection[Any], sessions: Sessions, attack: Attack
) -> None:
    for dice in attack.rounds(1):
        user = add_user(db, f"user{dice.random()}", bio="bio")
        other = add_user(db, f"other{dice.random()}", bio="bio")
        projects = 500 if attack.soaking else 100
        run(
            db,
            f"insert into projects (owner_id, title) select '{user}', 'p'"
            f" from generate_series(1, {projects})",
        )
        drain(db)
        before = one(db, "select recalculated from builder_score.health")
        for closed in (False, True):
            for number in range(200):
                db.execute("update projects set github_stars = %s", [number + 1])
            add_project(db, other)
            events = one(db, "select count(*) from builder_score.score_recalc_queue")
            assert events >= 200 * projects
            attack.count("events", events)
            if closed:
                close_windows(db)
            worker = sessions(f"worker{attack.seed}{closed}")
            worker.run("call builder_score.drain()")
            assert memory(worker.pid) < 48 * MB
            assert one(db, "select recalculated from builder_score.health") == before + 2 * closed
            if not closed:
                assert {row[0] for row in queue(db)} == {user, other}
                assert len(queue(db)) == 2, "one row a person, until the windows close"
        assert_right(db)
        run(db, "truncate users, projects, project_collaborators")
        close_windows(db)
        settle(db)


def test_a_full_notify_queue_stops_no_score(db: Connection[Any], database: str) -> None:
    # a listener in a transaction that never ends lets it fill, 8 GB of it: too long for a test
    run(
        db,
        """
        alter function pg_catalog.pg_notification_queue_usage() rename to real_usage;
        create function pg_catalog.pg_notification_queue_usage() returns double precision
            language sql as 'select 0.91::double precision';
        """,
    )
    with connect(database) as listener:
        listener.execute("listen builder_score_changed")
        user = add_user(db, "ada", bio="bio")
        drain(db)
        assert score(db, user) == 3
        assert_right(db)
        db.execute("notify builder_score_changed, 'the end'")
        (first,) = listener.notifies(timeout=PATIENCE, stop_after=1)
        assert first.payload == "the end", "nothing was sent that might not have fitted"
