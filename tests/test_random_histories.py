"""Random histories of an application and its workers, held to a model in plain Python.

What can happen is here; model.py is what should come of it, and promises.py compares the two. A
history that breaks a promise is shrunk to the few steps that matter, and printed.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import hypothesis
import psycopg
import pytest
from hypothesis import HealthCheck
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pyscore.cluster import PrivateCluster
from tests import oracle
from tests.attacks import Attack
from tests.conftest import janitor
from tests.inputs import AGES
from tests.model import (
    DAY,
    Application,
    Key,
    Transaction,
)
from tests.promises import HOUR, PASSED_AT_MOST, RETRY, TRANSIENT, WINDOWS
from tests.random_steps import LEVEL, SESSION, TRANSACTION, WHICH, WHO, Steps
from tests.stage import IDS, NAMES, PROJECTS, RESIDENTS, SESSIONS, USERS, Stage
from tests.statements import run

HISTORIES, STEPS = 50, 30
"""How many there are in a round, and how long they are at most."""


class Histories(Steps):
    @rule(seconds=st.sampled_from(WINDOWS[1:]))
    @precondition(lambda self: self.scores_are_committed and self.moved % DAY < PASSED_AT_MOST)
    def time_passes(self, seconds: float) -> None:
        self.pass_time(seconds)

    @rule()
    @precondition(lambda self: self.quiet)
    def eight_days_pass(self) -> None:
        """Accounts are older by then, and the worker looks at them once a day."""
        self.pass_time(8 * DAY)
        self.work("resident")

    @initialize(
        window=st.sampled_from(WINDOWS),
        at_once=st.sampled_from([None, 0.0, 0.0, WINDOWS[1]]),
        may_be_detached=st.sampled_from([False] * 9 + [True]),
        ages=st.lists(AGES, min_size=5, max_size=5),
        owners=st.lists(st.sampled_from(USERS[:4]), min_size=3, max_size=3),
        confirmed=st.sets(st.tuples(st.sampled_from(PROJECTS[:3]), st.sampled_from(USERS[:4]))),
    )
    def begins(
        self,
        window: float,
        at_once: float | None,
        may_be_detached: bool,
        ages: list[int],
        owners: list[str],
        confirmed: set[tuple[str, str]],
    ) -> None:
        for name, age in zip(USERS[:4], ages, strict=False):
            self.sign_up("direct", name, "x", None, "{}", age)
        for name, owner in zip(PROJECTS, owners, strict=False):
            self.start_project("direct", name, owner, "shipped", 3, "{}")
        for project, user in sorted(confirmed):
            self.invite("direct", project, user, "confirmed")
        self.drain("one")
        self.sets_the_window(window)
        self.at_once = at_once
        self.may_be_detached = may_be_detached

    # Us -------------------------------------------------------------------------------------------

    @rule(session=SESSION, who=WHO, priority=st.sampled_from([0, 0, 10, 20]))
    def enqueue(self, session: str, who: str, priority: int) -> None:
        with self.writing(session) as (transaction, connection):
            connection.execute("select builder_score.enqueue(%s, %s)", [IDS[who], priority])
            transaction.ask(who, forced=priority == 0)

    @rule(session=SESSION)
    def enqueue_everyone(self, session: str) -> None:
        with self.writing(session) as (transaction, connection):
            connection.execute("select builder_score.enqueue_everyone()")
            transaction.asked.everyone = True

    @rule(session=SESSION, who=WHO)
    def recalculate(self, session: str, who: str) -> None:
        seen = self._seen(session)
        there = seen.user(who) is not None
        refused = not (there and self.app.attached and seen.snapshot is None)
        connection = self.stage.sessions[session]
        try:
            run(connection, f"select builder_score.recalculate('{IDS[who]}')")
        except psycopg.Error as error:
            held = self.batch is not None or set(self.open) - {session}
            if not (refused or who in self.poisoned or held):
                raise AssertionError("refused for no reason") from error
            connection.rollback()
            self.open.pop(session, None)
            return
        assert not refused
        assert who not in self.poisoned
        if session in self.open:
            seen.recalculate(who)
            return
        self._note(self.app.sequence, forced=True)
        standing = self._standing()
        self._look_at_failures(standing, certain=False)
        assert standing[who].builder_score == standing[who].score == self.app.score(who)

    @rule(
        worker=st.sampled_from(["one", "two", *RESIDENTS]), after=st.sampled_from([0.0, *WINDOWS])
    )
    def drain(self, worker: str, after: float = 0.0) -> None:
        self.work(worker, after)

    @rule(after=st.sampled_from(WINDOWS), worker=st.sampled_from(sorted(RESIDENTS)))
    def resident_worker_runs(self, after: float, worker: str) -> None:
        self.work(worker, after)

    @rule()
    @precondition(lambda self: self.batch is None and self.app.attached and not self.paused)
    def batch_begins(self) -> None:
        """A worker's batch, which takes its time to commit; beside it the others have a share."""
        self.app.expand()  # as the batch does: until it ends, a project may come to be another's
        run(self.stage.sessions["batch"], "begin; select builder_score.run_batch('resident')")
        self.batch = self.app.sequence
        self.sure = False

    @rule(crashes=st.booleans())
    @precondition(lambda self: self.batch is not None)
    def batch_ends(self, crashes: bool) -> None:
        assert self.batch is not None
        run(self.stage.sessions["batch"], "rollback" if crashes else "commit")
        self._note(self.batch)
        self.batch = None
        if not self.excluded:
            self._look_at_failures(self._standing(), certain=False)

    @rule(window=st.sampled_from(WINDOWS))
    @precondition(lambda self: self.batch is None)
    def sets_the_window(self, window: float) -> None:
        self.us.execute(
            "update builder_score.settings set debounce_window = make_interval(secs => %s)",
            [window],
        )
        self.app.window = window

    @rule(window=st.sampled_from(WINDOWS), passes=st.sampled_from(WINDOWS))
    @precondition(lambda self: self.batch is None)
    def tries_a_window(self, window: float, passes: float) -> None:
        """Those who wait wait by the new window, shorter or longer, from here on."""
        self.work("one")
        self.sets_the_window(window)
        self.work("two", passes)

    @rule(batch_size=st.sampled_from([1, 2, 500]), max_attempts=st.integers(1, 4))
    def sets(self, batch_size: int, max_attempts: int) -> None:
        self.us.execute(
            "update builder_score.settings set batch_size = %s, max_attempts = %s",
            [batch_size, max_attempts],
        )
        self.max_attempts = max_attempts

    @rule(paused=st.sampled_from([True, False, False]))
    def pauses(self, paused: bool) -> None:
        self.us.execute("update builder_score.settings set paused = %s", [paused])
        self.paused = paused

    @rule(signal=st.sampled_from(sorted(Application().formula.maximum)), points=st.integers(0, 30))
    def weighs(self, signal: str, points: int) -> None:
        query = "update builder_score.signals set max_points = %s where signal = %s"
        self.us.execute(query, [points, signal])
        formula = self.app.formula
        if formula.maximum[signal] != points:
            self.app.formula = replace(formula, maximum=formula.maximum | {signal: points})
            self.app.ask_everyone()

    @rule(meaning=st.sampled_from(["shipped", "confirmed"]), counts=st.booleans())
    def changes_meaning(self, meaning: str, counts: bool) -> None:
        """Archived projects come to be shipped ones, or pending collaborations confirmed ones."""
        status = {"shipped": "archived", "confirmed": "pending"}[meaning]
        formula = self.app.formula
        if (status in formula.shipped | formula.confirmed) == counts:
            return
        query = (
            "insert into builder_score.statuses (meaning, status) values (%s, %s)"
            if counts
            else "delete from builder_score.statuses where meaning = %s and status = %s"
        )
        self.us.execute(query.encode(), [meaning, status])
        if meaning == "shipped":
            self.app.formula = replace(formula, shipped=formula.shipped ^ {status})
        else:
            self.app.formula = replace(formula, confirmed=formula.confirmed ^ {status})
        for transaction in self.open.values():
            transaction.outdated = True
        self.app.ask_everyone()
        self.sure = False  # of whether there is a second walk, for transactions that are open

    @rule(session=TRANSACTION, level=LEVEL, which=WHICH)
    def changes_meaning_beside_a_transaction(self, session: str, level: str, which: str) -> None:
        """Which goes by the old one, and commits when everyone has been seen to."""
        who = "eve"
        self.changes_meaning("confirmed", counts=False)
        self.leave("direct", who)
        self.sign_up("direct", who, None, None, "{}", 0)  # whom nobody vouches for
        self.begin(session, level)
        if level == "read committed":
            self.invite(session, which, who, "pending")
        self.changes_meaning("confirmed", counts=True)
        self.work("one", HOUR)
        if level != "read committed":
            self.invite(session, which, who, "pending")  # by its snapshot, it counts for nothing
        self.commit(session)
        self.work("two")

    @rule(counts=st.booleans())
    def counts_downloads(self, counts: bool) -> None:
        if ("downloads" in self.app.formula.impact_keys) == counts:
            return
        run(
            self.us,
            "insert into builder_score.impact_keys values ('downloads')"
            if counts
            else "delete from builder_score.impact_keys where key = 'downloads'",
        )
        keys = self.app.formula.impact_keys ^ {"downloads"}
        self.app.formula = replace(self.app.formula, impact_keys=keys)
        self.app.ask_everyone()

    @rule()
    @precondition(lambda self: self.quiet and self.app.attached and self.may_be_detached)
    def detach(self) -> None:
        run(self.us, "select builder_score.detach()")
        self.app.attached = False

    @rule()
    @precondition(lambda self: self.quiet and not self.app.attached)
    def attach(self) -> None:
        run(self.us, "select builder_score.attach()")
        self.app.attached = True
        self.app.ask_everyone()

    @rule(who=WHO, code=st.sampled_from(["P0001", "P0001", "22012", TRANSIENT]))
    @precondition(lambda self: self.batch is None)
    def poison(self, who: str, code: str) -> None:
        self.us.execute(
            "insert into history.poisoned values (%s, %s)"
            " on conflict (user_id) do update set errcode = excluded.errcode",
            [IDS[who], code],
        )
        self.poisoned[who] = code

    @rule(
        who=WHO,
        code=st.sampled_from(["P0001", "P0001", "P0001", TRANSIENT]),
        times=st.sampled_from([1, 4, 4, 4]),
        then=st.sampled_from(["leaves", "is retried", "goes on"]),
    )
    @precondition(lambda self: self.batch is None)
    def fails_again_and_again(self, who: str, code: str, times: int, then: str) -> None:
        if then == "is retried":
            self.sets_the_window(HOUR)  # which retrying goes past
            self.recalculate("direct", who)
        self.poison(who, code)
        for _ in range(times):
            self.enqueue("direct", who, 0)
            self.work("one", RETRY)
        if then == "leaves":
            self.leave("direct", who)
        elif then == "is retried":
            self.cure(who)
            self.retry_dead_letters()
        if then != "goes on":
            self.work("two")

    @rule(who=WHO)
    @precondition(lambda self: self.batch is None and self.poisoned)
    def cure(self, who: str) -> None:
        self.us.execute("delete from history.poisoned where user_id = %s", [IDS[who]])
        self.poisoned.pop(who, None)

    @rule()
    @precondition(lambda self: self.given_up)
    def retry_dead_letters(self) -> None:
        ((count,),) = run(self.us, "select builder_score.retry_dead_letters()")
        transaction = Transaction(self.app, None, None)
        for who in self.given_up:
            transaction.ask(who, forced=True)
        assert count == len(self.given_up)
        self.app.commit(transaction)

    def teardown(self) -> None:
        if sys.exc_info()[0] is None:  # else the history has failed, or was given up
            self._come_to_rest()

    def _come_to_rest(self) -> None:
        """Everything is ended, windows close: then nothing is left to do, and all is right."""
        self.at_once = None
        if self.batch is not None:
            self.batch_ends(crashes=False)
        for session in SESSIONS:
            self.commit(session)
        if not self.app.attached:
            self.attach()
        self.pauses(paused=False)
        for user in USERS:
            self.cure(user)
        self.retry_dead_letters()
        for _ in range(3):
            self.pass_time(HOUR)
            self.work("one")
        assert self.sure, "still queued"
        oracle.assert_all_right(self.us)
        assert run(self.us, "select * from builder_score.verify()") == []
        assert self._keys_there() == sorted(self.app.rows)

    def _keys_there(self) -> list[Key]:
        users = [("user", NAMES[id]) for (id,) in run(self.us, "select id from users")]
        projects = [("project", NAMES[id]) for (id,) in run(self.us, "select id from projects")]
        pairs = run(self.us, "select project_id, user_id from project_collaborators")
        return sorted(
            [*users, *projects, *(("collaboration", NAMES[p], NAMES[u]) for p, u in pairs)]
        )


@pytest.fixture(scope="module")
def stage_address(server: PrivateCluster, template: str) -> Iterator[str]:
    with janitor(server, "random_histories", template=template) as address:
        yield address


def test_every_history_keeps_what_is_promised(stage_address: str, attack: Attack) -> None:
    stage = Stage(stage_address, attack)
    settings = hypothesis.settings(
        max_examples=HISTORIES,
        stateful_step_count=STEPS,
        database=None,
        deadline=None,
        print_blob=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )

    def histories() -> Histories:
        return Histories(stage)

    try:
        for dice in attack.rounds(1):
            seeded = hypothesis.seed(dice.randrange(2**64))(histories)
            machine = cast(type[RuleBasedStateMachine], seeded)
            run_state_machine_as_test(machine, settings=settings)
    finally:
        stage.close()
