"""Users who fail, and errors that are nobody's fault, at random: against a model of each user.

Whoever can be scored is scored, whatever their batch meets. Everybody else backs off, for longer
each time, or becomes a dead letter; or, for an error that is not theirs, is put off uncounted.
"""

from dataclasses import dataclass, field
from math import ceil, log2
from random import Random
from typing import Any
from uuid import UUID

import psycopg
from psycopg import Connection

from tests.attacks import Attack
from tests.community import add_project, add_user, configure, one
from tests.interleave import assert_right, make_due, settle
from tests.poison import STAGES, ail, cure, install_ailments, light_fuse

USERS_FAULTS = ("P0001", "22012", "22P02", "23514", "42883", "XX000", "P0004")
NOBODYS_FAULTS = ("40001", "40P01", "53100", "53200", "53400", "55P03", "57000")
SHARES = (0.01, 0.02, 0.1, 0.5, 1)
"""Of the users, how many fall ill at once."""


@dataclass
class Patient:
    """What should be known of one user.

    Attributes:
        errcode: The SQLSTATE that their score fails with; None: it does not.
        attempts: Failures in a row that count.
        backs_off: Whether the next attempt waits for retry_at.
        given_up: The attempts of the dead letter; None without one.
        queued: Whether a row of theirs is left.
    """

    errcode: str | None = None
    attempts: int = 0
    backs_off: bool = False
    given_up: int | None = None
    queued: bool = True


@dataclass
class Ward:
    """A few dozen users on one database, and the model of them."""

    address: str
    db: Connection[Any]
    dice: Random
    attack: Attack
    batch_size: int
    max_attempts: int
    base: float
    cap: float
    patients: dict[UUID, Patient] = field(default_factory=dict[UUID, Patient])

    def admit(self, count: int) -> None:
        for number in range(count):
            user = add_user(self.db, f"user{number}", id=self._id(), bio="bio")
            add_project(self.db, user, id=self._id())
            self.patients[user] = Patient()
        self.attack.count("users", count)

    def _id(self) -> UUID:
        """In the order of their ids people are scored: a replay has the same."""
        return UUID(int=self.dice.getrandbits(128), version=4)

    def some(self) -> list[UUID]:
        number = self.dice.choice([1, 2, 5, len(self.patients)])
        return self.dice.sample(list(self.patients), min(number, len(self.patients)))

    def fall_ill(self, share: float | None = None) -> None:
        share = share or self.dice.choice(SHARES)
        for user in self.dice.sample(list(self.patients), max(1, int(share * len(self.patients)))):
            errcode = self.dice.choice(USERS_FAULTS + NOBODYS_FAULTS)
            ail(self.db, user, self.dice.choice(STAGES), errcode)
            self.patients[user].errcode = errcode

    def heal(self, users: list[UUID]) -> None:
        cure(self.db, users)
        for user in users:
            self.patients[user].errcode = None

    def new_events(self) -> None:
        """An application overwrites scores, so that each of them has to be written again."""
        users = self.some()
        spoil = "update users set builder_score = -1 - abs(builder_score) %% 100 where id = any(%s)"
        self.db.execute(spoil, [users])
        for user in users:
            self.patients[user].queued = True

    def retry_dead_letters(self) -> None:
        users = self.some()
        self.db.execute("select builder_score.retry_dead_letters(%s)", [users])
        for user in users:
            self.patients[user].queued |= self.patients[user].given_up is not None

    def let_time_pass(self) -> None:
        self.db.execute(
            "update builder_score.score_state set retry_at = clock_timestamp()"
            " where retry_at is not null"
        )
        for patient in self.patients.values():
            patient.backs_off = False

    def drain(self) -> None:
        """Process what is due, with a kill in between or without; and compare with the model."""
        make_due(self.db)
        taken = [p for p in self.patients.values() if p.queued and not p.backs_off]
        theirs = [p for p in taken if p.errcode in USERS_FAULTS]
        nobodys = [p for p in taken if p.errcode in NOBODYS_FAULTS]
        before = self._counted()
        began = one(self.db, "select clock_timestamp()")
        if self.dice.random() < 0.4:
            light_fuse(self.db, self.dice.randint(1, 2 * len(taken) + 1))
        try:
            self._work()
        except psycopg.errors.AdminShutdown:
            self.attack.count("kills")
            self._work()
        self.db.execute("truncate fuse")
        batches, passes, failed = (
            now - then for now, then in zip(self._counted(), before, strict=True)
        )
        self.attack.count("failures", len(theirs))

        assert failed == len(theirs)
        # An error that is nobody's comes back after a second: on a slow machine within one drain.
        size = min(len(taken), self.batch_size) or 1
        failures = len(theirs) + len(nobodys) * max(1, batches - len(taken) // self.batch_size)
        # where one half is fine, only of an error of a user's is it known that the other half fails
        depth = ceil(log2(size)) if nobodys else log2(size)
        if failures == 0:
            assert passes <= batches  # one that only puts off has none
        elif len(taken) <= self.batch_size:
            assert passes <= 2 * failures * (depth + 1)
        else:
            assert passes <= 2 * failures * (depth + 1) + batches
        self._expect(taken)
        self._compare(began, [id(patient) for patient in theirs])

    def _work(self) -> None:
        with psycopg.connect(self.address, autocommit=True) as worker:
            # a batch may split for as long as it takes
            worker.execute("set deadlock_timeout = '10min'")
            worker.execute("call builder_score.drain()")

    def _counted(self) -> tuple[int, ...]:
        query = (
            "select batches, passes, failed from builder_score.worker_status where worker = 'drain'"
        )
        return self.db.execute(query).fetchall()[0]

    def _expect(self, taken: list[Patient]) -> None:
        for patient in taken:
            if patient.errcode is None:
                patient.attempts, patient.given_up, patient.queued = 0, None, False
            elif patient.errcode in USERS_FAULTS:
                patient.attempts += 1
                patient.backs_off = patient.attempts < self.max_attempts
                if not patient.backs_off:
                    patient.attempts, patient.given_up = 0, patient.attempts
                    patient.queued = False

    def _compare(self, began: Any, failed_now: list[int]) -> None:
        rows = self.db.execute(
            """
            select u.id, coalesce(s.attempts, 0),
                   coalesce(s.retry_at > clock_timestamp(), false), d.attempts, d.sqlstate,
                   (select count(*) from builder_score.score_recalc_queue as q
                    where q.user_id = u.id),
                   extract(epoch from s.retry_at - %s)::float8,
                   extract(epoch from s.retry_at - clock_timestamp())::float8
            from users as u
            left join builder_score.score_state as s on s.user_id = u.id
            left join builder_score.score_dead_letter as d on d.user_id = u.id
            """,
            [began],
        ).fetchall()
        for user, attempts, backs_off, given_up, sqlstate, queued, most, least in rows:
            patient = self.patients[user]
            found = Patient(patient.errcode, attempts, backs_off, given_up, queued > 0)
            assert found == patient, user
            assert queued <= 1, "what was looked at is one row"
            if given_up is not None and patient.attempts == 0 and not patient.queued:
                assert sqlstate in USERS_FAULTS
            if backs_off:
                delay = self.base * 2 ** (attempts - 1)
                assert id(patient) not in failed_now or most >= min(self.cap, 0.8 * delay)
                assert least <= min(self.cap, 1.2 * delay)
        well = [
            user
            for user, p in self.patients.items()
            if p.errcode is None and p.given_up is None and not p.queued
        ]
        wrong = "select * from builder_score.verify(%s)"
        assert self.db.execute(wrong, [well]).fetchall() == [], "who can be scored is"


def test_whoever_fails_backs_off_alone_and_everybody_else_is_scored(
    database: str, db: Connection[Any], attack: Attack
) -> None:
    install_ailments(db)
    for dice in attack.rounds(3):
        db.execute("truncate users, projects, project_collaborators, ailments, fuse")
        configure(db, debounce_window="0")
        settle(db)
        ward = Ward(
            address=database,
            db=db,
            dice=dice,
            attack=attack,
            batch_size=dice.choice([7, 10_000, 10_000]),
            max_attempts=attack.in_turn([1, 3, 9]),
            # so long that nobody is tried twice in one drain, however slow
            base=(base := dice.choice([120, 600])),
            cap=base * dice.choice([1, 1, 3, 1000]),
        )
        configure(
            db,
            batch_size=ward.batch_size,
            max_attempts=ward.max_attempts,
            retry_cap="7 days",
            retry_base=f"{ward.base} seconds",
            lock_timeout="10 seconds",
        )
        configure(db, retry_cap=f"{ward.cap} seconds")
        ward.admit(attack.in_turn([1, 10, 64, 100]))
        steps = [
            ward.fall_ill,
            ward.new_events,
            ward.let_time_pass,
            ward.retry_dead_letters,
            lambda ward=ward: ward.heal(ward.some()),
        ]
        ward.fall_ill(attack.in_turn(SHARES, place=1))
        for _ in range(7):
            ward.drain()
            if dice.random() < 0.6:
                ward.let_time_pass()
            for step in dice.choices(steps, k=dice.randint(0, 3)):
                step()

        ward.heal(list(ward.patients))
        ward.let_time_pass()
        ward.new_events()
        db.execute("select builder_score.retry_dead_letters()")
        settle(db)
        assert_right(db)
        assert one(db, "select coalesce(sum(attempts), 0) from builder_score.score_state") == 0
        attack.count("histories")
