"""A history under way: what it has done so far, and what is promised of it, checked as it goes on.

After each drain everybody is in one of four places: right; queued, because a window or a backoff is
open or somebody has the row locked; given up; or gone without a trace.
"""

import time
from collections import Counter
from collections.abc import Collection, Generator
from contextlib import contextmanager
from typing import Any

import psycopg
from hypothesis.stateful import RuleBasedStateMachine
from psycopg import Connection

from tests.model import DAY, Application, Ask, Transaction
from tests.stage import (
    IDS,
    NAMES,
    RESIDENTS,
    SOMETHING_DUE,
    STANDING,
    UNFINISHED,
    USERS,
    Stage,
    Standing,
)
from tests.statements import run

CONFLICTS = {"55P03", "40001", "40P01", "23503", "23505"}
"""What a statement beside other transactions may fail with; then its transaction is rolled back."""

MINUTE, HOUR = 60.0, 3600.0
WINDOWS = (0.0, 5 * MINUTE, 20 * MINUTE, HOUR)
RETRY = 5 * MINUTE  # no backoff is longer, none much shorter
TRANSIENT = "55P03"  # an error that is not the user's
TICK = 2.1
"""Before each drain: so what was put off because somebody held it may be looked at again."""
PASSED_AT_MOST = 6 * HOUR
"""No whole day has ended for anybody by then: people sign up at noon, so to speak."""


class History(RuleBasedStateMachine):
    def __init__(self, stage: Stage) -> None:
        super().__init__()
        stage.clear()
        stage.attack.count("histories")
        self.stage = stage
        self.us: Connection[Any] = stage.us
        self.app = Application()
        self.open: dict[str, Transaction] = {}
        self.at_once: float | None = None
        """A worker follows each commit, so much later; None: none does."""
        self.may_be_detached = False  # in few histories: it takes its time
        self.paused = False
        self.batch: int | None = None
        """What was asked for when the open batch began."""
        self.sure = True
        """That the model knows who is queued: not beside an open batch, nor for a while after."""
        self.moved = 0.0
        self.refreshed = self.now()
        self.refreshed_late: set[str] = set()
        """Whom the last drain refreshed, where everyone's row had that wait for its own walk."""
        self.max_attempts = 3
        self.poisoned: dict[str, str] = {}
        self.attempts: Counter[str] = Counter()
        self.failed_at: dict[str, float] = {}
        self.given_up: set[str] = set()

    # The clock ------------------------------------------------------------------------------------

    def now(self) -> float:
        return time.time() + self.moved

    def pass_time(self, seconds: float) -> None:
        self.us.execute("select history.pass(make_interval(secs => %s))", [seconds])
        if seconds >= DAY:
            self.us.execute("select history.age(make_interval(secs => %s))", [seconds])
        self.moved += seconds

    @property
    def quiet(self) -> bool:
        return not self.open and self.batch is None

    @property
    def scores_are_committed(self) -> bool:
        """Whether nobody is about to commit some: those could not be made to be longer ago."""
        recalculating = any(transaction.recalculated for transaction in self.open.values())
        return self.batch is None and not recalculating

    # Transactions --------------------------------------------------------------------------------

    @contextmanager
    def writing(self, session: str) -> Generator[tuple[Transaction, Connection[Any]]]:
        """A statement in the session's transaction, or in one of its own; conflicts end it."""
        transaction = self.open.get(session) or Transaction(self.app, None, None)
        connection = self.stage.sessions[session]
        try:
            yield transaction, connection
        except psycopg.Error as error:
            self._conflict(error, session, transaction)
            return
        if session not in self.open:
            self._committed(transaction)

    def _conflict(self, error: psycopg.Error, session: str, transaction: Transaction) -> None:
        others = self.batch is not None or set(self.open) - {session}
        if error.sqlstate not in CONFLICTS or not (others or transaction.snapshot is not None):
            raise error
        self.stage.sessions[session].rollback()
        self.open.pop(session, None)

    def _committed(self, transaction: Transaction) -> None:
        self.app.commit(transaction)
        if transaction.outdated:
            self.app.ask_everyone()
            self.sure = False
        if transaction.recalculated:
            computed = self._note(dict(transaction.recalculated), forced=True)
            assert computed == Counter(user for user, _ in transaction.recalculated)
            self._look_at_failures(self._standing(), certain=False)
        if transaction.truncates:
            # older snapshots see empty tables, too
            for other in self.open.values():
                for key, row in transaction.written.items():
                    if row is None and other.snapshot is not None:
                        other.snapshot.pop(key, None)
        if self.at_once is not None:
            self.work("two", self.at_once)

    # Workers -------------------------------------------------------------------------------------

    def work(self, worker: str, after: float = 0.0) -> None:
        """Let a worker process what is due after some time has passed; then look."""
        if worker == "resident" and self.batch is not None:
            return  # whose row of worker_status it has: it would wait for it
        if self.scores_are_committed:
            passes = after if self.moved % DAY < PASSED_AT_MOST else 0.0
            self.pass_time(passes + TICK)
        connection = self.stage.sessions[worker]
        if worker not in RESIDENTS:
            run(connection, "call builder_score.drain()")
        else:
            for _ in range(60):
                run(connection, f"call builder_score.run_worker('0', {RESIDENTS[worker]})")
                if self.paused or not self._works or run(self.us, SOMETHING_DUE) == [(False,)]:
                    break
        self._drained(worker)

    @property
    def _works(self) -> bool:
        """Whether a worker comes to its end undisturbed, but for the users whom others have."""
        return self.app.attached and self.scores_are_committed and not self.excluded

    @property
    def excluded(self) -> bool:
        """Whether nobody can read a table that a transaction has truncated."""
        return any(transaction.truncates for transaction in self.open.values())

    # What is promised -----------------------------------------------------------------------------

    def _drained(self, worker: str) -> None:
        app, now = self.app, self.now()
        self.refreshed_late.clear()
        if worker in RESIDENTS and not self.paused and now - self.refreshed > DAY:
            self._ages_refreshed(now)
        if self.paused or not app.attached:
            assert run(self.us, "select * from history.log") == []
            return
        app.expand()
        if not self.scores_are_committed:
            self.sure = False  # of what is left to whoever has written them
        certain = self.sure and self._works
        wanted = {
            user
            for user in app.users()
            if app.asked[user] and self._may_be_taken(user, now, app.is_forced(user))
        }
        computed = self._note(app.sequence)
        if certain:
            scored = {user for user in wanted if user not in self.poisoned}
            assert computed == Counter(scored), f"recalculated {computed}, wanted {scored}"
            app.asked_projects.clear()
            app.asked_everyone.clear()
        if self.excluded:
            return
        standing = self._standing()
        self._look_at_failures(standing, certain, wanted)
        if self._works:
            self._look_at_queue(standing, now)

    def _ages_refreshed(self, now: float) -> None:
        self.refreshed = now
        if not self.app.attached:
            self.sure = False  # the walk has begun, and goes on when we are attached
        for user in self.app.users():
            if self.app.is_ageing(user, now):
                self.app.asked[user].append(Ask(self.app.sequence))
                if self.app.asked_everyone:
                    self.refreshed_late.add(user)

    def _may_be_taken(self, user: str, now: float, forced: bool) -> bool:
        """Whether nobody has the user locked, and no window or backoff is open."""
        backs_off = user in self.failed_at and now - self.failed_at[user] < RETRY
        early = not forced and self.app.window_is_open(user, now)
        return not (self._is_locked(user) or backs_off or early)

    def _is_locked(self, user: str) -> bool:
        return any(user in transaction.locked for transaction in self.open.values())

    def _note(self, seen: int | dict[str, int], forced: bool = False) -> Counter[str]:
        """Take the recalculations from the log, and hold each to the debounce.

        Args:
            seen: Up to where they answer what was asked for; where it differs, by user.
            forced: By recalculate().
        """
        rows = run(
            self.us,
            "with taken as (delete from history.log returning *)"
            " select user_id, at, score, previous_score from taken order by id",
        )
        computed: Counter[str] = Counter()
        for id, at, *scores in rows:
            if at is None:
                self.app.forget(NAMES[id])
            else:
                user = NAMES[id]
                until = seen if isinstance(seen, int) else seen[user]
                computed[user] += 1
                self.app.recalculated(user, at + self.moved, until, forced)
                self.app.scored(user, *scores)
                if not self.sure:
                    self.app.asked[user].append(Ask(until))  # one more may be under way
        self.stage.attack.count("recalculations", computed.total())
        return computed

    def _standing(self) -> dict[str, Standing]:
        rows = self.us.execute(STANDING, [[IDS[user] for user in USERS]]).fetchall()
        return {user: Standing(*row) for user, row in zip(USERS, rows, strict=True)}

    def _look_at_failures(
        self, standing: dict[str, Standing], certain: bool, wanted: Collection[str] = ()
    ) -> None:
        """Who has failed, backs off and is given up: as it should be, where that is known."""
        attempts = Counter({user: it.attempts for user, it in standing.items() if it.attempts})
        given_up = {user for user, it in standing.items() if it.given_up}
        if certain:
            there = set(self.app.users())
            expected = Counter({user: n for user, n in self.attempts.items() if user in there})
            expected_given_up = self.given_up & there
            for user in wanted:
                code = self.poisoned.get(user)
                if code is None:
                    expected.pop(user, None)
                    expected_given_up.discard(user)
                elif code != TRANSIENT:
                    expected[user] += 1
                    if expected[user] >= self.max_attempts:
                        expected.pop(user)
                        expected_given_up.add(user)
                        self.app.asked[user].clear()
                        if user in self.refreshed_late and attempts[user] == 1:
                            # given up in everyone's walk, and asked for anew by the one after it
                            expected[user] = 1
                            self.app.asked[user].append(Ask(self.app.sequence))
                            self.failed_at[user] = self.now()
            assert attempts == expected, f"attempts {attempts}, expected {expected}"
            assert given_up == expected_given_up, f"{given_up}, expected {expected_given_up}"
        for user in USERS:
            if attempts[user] == 0:
                self.failed_at.pop(user, None)
            elif attempts[user] != self.attempts[user]:
                self.failed_at[user] = self.now()
        self.attempts, self.given_up = attempts, given_up

    def _look_at_queue(self, standing: dict[str, Standing], now: float) -> None:
        """After a drain that nobody disturbed: who is still queued has to be, the rest is right."""
        app, there = self.app, set(self.app.users())
        ((unfinished, walks_again),) = run(self.us, UNFINISHED)
        assert not unfinished, "a project's or everyone's row is left"
        for user in set(USERS) - there:
            assert standing[user] == Standing.of_nobody(), f"{user} is gone"
            app.asked[user].clear()
        queued = {user for user in there if standing[user].priority is not None}
        for user in queued:
            free = self._may_be_taken(user, now, forced=standing[user].priority == 0)
            assert not free or self.poisoned.get(user) == TRANSIENT, f"{user} was due"
        if self.sure:
            asked = {user for user in there if app.asked[user]}
            assert queued == asked, f"queued {queued}, asked for {asked}"
            for user in queued:
                assert (standing[user].priority == 0) == app.is_forced(user), f"{user}'s priority"
                locked = self._is_locked(user)
                assert locked or standing[user].queued == 1, f"{user} has rows of no use"
        if walks_again:
            return
        if not queued and not self.sure:
            self.sure = True
            app.asked.clear()
            app.asked_projects.clear()
            app.asked_everyone.clear()
        expected = {user: app.score(user) for user in sorted(there - queued - self.given_up)}
        assert {user: standing[user].builder_score for user in expected} == expected
        assert {user: standing[user].score for user in expected} == expected
