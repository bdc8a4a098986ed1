"""Races as specs: sessions of named steps, played in any order; in the spirit of isolationtester.

    RACE = Spec(
        given=people("ann") + project("p", "ann"),          # drained before the first step
        events=project("q", "ann", "shipped"),              # what the worker finds
        sessions={"w": Worker(), "a": {"begin": "begin", "ship": ship("p"), "commit": "commit"}},
        orders=("w.choose a w", "a.ship w a"),
        scores={"ann": 16},
    )

An order names sessions and steps: "w.choose a w" is w up to its step choose, all of a, and the rest
of w. A step that waits for a lock is left waiting, and goes on when whoever holds it lets go. Where
something is wrong, the order is told step by step; as one of `orders` it is played again.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import psycopg
from psycopg import Connection

from tests.community import one
from tests.interleave import Rows, Session, Sessions, assert_right, settle, until
from tests.statements import run

SEAMS = ("expand", "choose", "lock", "read", "compute", "write", "delete")
"""The steps of a batch. After each of them a worker can be stopped; holding nothing for it."""


@dataclass(frozen=True)
class Worker:
    """A session of these steps: each is what a batch does up to a seam, and commit is the rest."""

    call: str = "call builder_score.drain()"
    steps = (*SEAMS, "commit")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A race. What holds after every order is checked by `Stage.play`."""

    sessions: Mapping[str, Mapping[str, str] | Worker]
    orders: Sequence[str]
    """Those that matter."""
    given: str = ""
    """What is there, and drained."""
    events: str = ""
    """What is queued when the first step is taken."""
    settings: str = ""
    """What is not as in `RESET`: assignments of an UPDATE of settings."""
    finish: str = ""
    """What is run after the last step, for what is left to become due."""
    restore: str = ""
    """What takes back, in the end, changes that `RESET` does not."""
    scores: Mapping[str, int] = field(default_factory=dict[str, int])
    """What some have in the end, by username."""
    may_fail: Mapping[str, Collection[str]] = field(default_factory=dict[str, Collection[str]])
    """SQLSTATEs that end a session without us, too."""
    may_hold_up_workers: Collection[str] = ()
    """Sessions that lock whole tables, or our own."""
    never_wait: Collection[str] = ()
    """Sessions that wait for nobody."""
    deadlock_timeout: str = "1 s"
    failures: bool = False
    """Whether batches may fail, and attempts be counted."""
    check: Callable[["Played"], None] = lambda played: None
    """What else holds, after the last step and before what is left is drained."""

    def lengths(self) -> dict[str, int]:
        return {name: len(_names(steps)) for name, steps in self.sessions.items()}

    def turns(self, order: str) -> tuple[str, ...]:
        """Spell an order out: whose turn it is, step by step."""
        left = {name: list(_names(steps)) for name, steps in self.sessions.items()}
        turns: list[str] = []
        for token in (*order.split(), *left):
            name, _, step = token.partition(".")
            count = left[name].index(step) + 1 if step else len(left[name])
            del left[name][:count]
            turns += [name] * count
        return tuple(turns)

    def size(self) -> int:
        """Count the orders that there are."""
        lengths = self.lengths().values()
        return math.factorial(sum(lengths)) // math.prod(map(math.factorial, lengths))

    def any_order(self, dice: Random) -> tuple[str, ...]:
        turns = [name for name, length in self.lengths().items() for _ in range(length)]
        dice.shuffle(turns)
        return tuple(turns)

    def spell(self, turns: Sequence[str]) -> str:
        steps = {name: iter(_names(steps)) for name, steps in self.sessions.items()}
        return " ".join(f"{turn}.{next(steps[turn])}" for turn in turns)


@dataclass(frozen=True)
class Played:
    """What came of it."""

    db: Connection[Any]
    rows: Mapping[str, Rows]
    """What the statements of steps returned, by session and step: "r.recalculate"."""
    failed: Mapping[str, tuple[str, str]]
    """The step and the SQLSTATE that ended a session."""
    waited: set[str]
    """Sessions that were seen waiting for a lock."""

    @property
    def recalculated(self) -> int:
        return one(self.db, "select recalculated from builder_score.health")


class Actor:
    """A session that is given turns, one a statement. What waits for a lock is left waiting.

    After a failure its statements are passed over, but for the one that ends the transaction.
    """

    def __init__(self, session: Session, statements: Sequence[str]) -> None:
        self.session = session
        self.failed_with: str | None = None
        self.failed_in = 0
        self.returned: list[Rows] = []
        self.waited = False
        self._left = list(statements)
        self._turns = 0

    def take_turn(self) -> None:
        """Run the next statement, once those before it have ended."""
        self._turns += 1

    def catch_up(self, others: Collection[Session]) -> bool:
        """Run what the turns so far allow; tell whether something is left that waits for a lock."""
        while self.session.busy or self._turns:
            if not self.session.busy:
                self._turns -= 1
                statement = self._left.pop(0)
                if self.failed_with is not None and not statement.startswith("commit"):
                    self.returned.append([])
                    continue
                self.session.start(statement)
            if self.session.rests(others):
                self.waited = True
                return True
            self._finish()
        return False

    def _finish(self) -> None:
        try:
            self.returned.append(self.session.finish())
        except psycopg.Error as error:
            if self.failed_with is None:
                self.failed_with = error.sqlstate or str(error)
                self.failed_in = len(self.returned)
            self.returned.append([])


def play_turns(
    actors: Mapping[Any, Actor],
    turns: Sequence[Any],
    meanwhile: Callable[[int], None] | None = None,
) -> None:
    """Give the actors their turns, and return when all have come to their end.

    Args:
        actors: By whatever the turns call them.
        turns: Whose turn it is.
        meanwhile: Called before each turn, with its number.
    """
    sessions = [actor.session for actor in actors.values()]

    def waiting() -> list[bool]:
        return [actor.catch_up(sessions) for actor in actors.values()]

    for number, turn in enumerate(turns):
        if meanwhile is not None:
            meanwhile(number)
        actors[turn].take_turn()
        before = waiting()
        while any(before) and (now := waiting()) != before:
            before = now  # whoever waited for somebody who has let go goes on
    until(lambda: not any(waiting()), "every session comes to its end")


def interleavings(lengths: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All orders of turns of sessions, so many turns each."""
    if not any(lengths):
        yield ()
    for place, length in enumerate(lengths):
        if length:
            fewer = [n - (other == place) for other, n in enumerate(lengths)]
            for rest in interleavings(fewer):
                yield (place, *rest)


class _WorkerActor(Actor):
    """A worker that goes from seam to seam: the keeper has closed them, and opens one a turn."""

    def __init__(
        self,
        session: Session,
        worker: Worker,
        number: int,
        keeper: Session,
        strangers: Collection[Session],
    ) -> None:
        super().__init__(session, [worker.call, *(_unlock(number, seam) for seam in SEAMS)])
        self._keeper = keeper
        self._strangers = {stranger.pid for stranger in strangers}
        self._stopped = False
        keeper.run("; ".join(_lock(number, seam) for seam in SEAMS))

    def catch_up(self, others: Collection[Session]) -> bool:
        while True:
            if self.session.busy and not self._stopped:
                blockers = self.session.rests([*others, self._keeper])
                hindered = blockers - {self._keeper.pid}
                assert not hindered & self._strangers, f"{self.session.name} waits for a client"
                if hindered:
                    self.waited = True
                    return True
                self._stopped = bool(blockers)
                if not blockers:
                    self._finish()
            if not self._turns:
                return False
            self._turns -= 1
            if (statement := self._left.pop(0)).startswith("call"):
                self.session.start(statement)
            else:
                self._keeper.run(statement)
                self._stopped = False


RESET = """
    delete from project_collaborators;
    delete from projects;
    delete from users;
    delete from builder_score.score_recalc_queue;
    delete from builder_score.score_state;
    delete from builder_score.score_dead_letter;
    delete from builder_score.backfill;
    update builder_score.worker_status set last_error = null, recalculated = 0, failed = 0;
    update builder_score.host set walk_again_after = null where walk_again_after is not null;
    update builder_score.settings
    set debounce_window = '0', lock_timeout = '10 s', batch_target = '10 s',
        backfill_per_second = 1000000, paused = false
"""


class Stage:
    """A migrated database whose workers can be stopped, on which one spec after the other plays."""

    def __init__(self, db: Connection[Any], sessions: Sessions) -> None:
        self._db = db
        self._open = sessions
        self._sessions: dict[str, Session] = {}
        self._keeper = sessions("keeper")
        install_seams(db)

    def play(self, spec: Spec, turns: Sequence[str]) -> None:
        """Play a spec in one order, and check that nobody was hindered and nothing is lost."""
        try:
            self._judge(spec, self.perform(spec, turns))
            run(self._db, spec.restore)
        except (AssertionError, psycopg.Error) as error:
            error.add_note(f"in this order: {spec.spell(turns)}")
            raise

    def perform(self, spec: Spec, turns: Sequence[str]) -> Played:
        """Play a spec in one order, and check that nobody was hindered."""
        self._set(spec)
        played = self._play(spec, turns)
        for name, (step, sqlstate) in played.failed.items():
            assert sqlstate in spec.may_fail.get(name, ()), f"{name}.{step} failed with {sqlstate}"
        assert played.waited.isdisjoint(spec.never_wait), f"{played.waited} waited"
        return played

    def _set(self, spec: Spec) -> None:
        run(self._db, RESET)
        run(self._db, spec.given)
        settle(self._db)
        run(self._db, "update builder_score.worker_status set recalculated = 0")
        if spec.settings:
            run(self._db, f"update builder_score.settings set {spec.settings}")
        run(self._db, spec.events)

    def _play(self, spec: Spec, turns: Sequence[str]) -> Played:
        clients = [
            self._session(name)
            for name, steps in spec.sessions.items()
            if not isinstance(steps, Worker) and name not in spec.may_hold_up_workers
        ]
        actors: dict[str, Actor] = {}
        for number, (name, steps) in enumerate(spec.sessions.items()):
            session = self._session(name)
            session.run(f"set deadlock_timeout = '{spec.deadlock_timeout}'")
            if isinstance(steps, Worker):
                session.run(f"set seams.worker = {number}")
                actors[name] = _WorkerActor(session, steps, number, self._keeper, clients)
            else:
                session.run("reset seams.worker")
                actors[name] = Actor(session, list(steps.values()))
        play_turns(actors, turns)
        return Played(
            db=self._db,
            rows={
                f"{name}.{step}": rows
                for name, steps in spec.sessions.items()
                for step, rows in zip(_names(steps), actors[name].returned, strict=False)
            },
            failed={
                name: (_names(spec.sessions[name])[actor.failed_in], actor.failed_with)
                for name, actor in actors.items()
                if actor.failed_with is not None
            },
            waited={name for name, actor in actors.items() if actor.waited},
        )

    def _judge(self, spec: Spec, played: Played) -> None:
        if one(self._db, "select attached_at is not null from builder_score.host"):
            wrong = "select * from builder_score.verify() where standing = 'wrong'"
            assert run(self._db, wrong) == [], "wrong, and nothing is queued that would mend it"
        if not spec.failures:
            troubles = run(self._db, "select last_error from builder_score.worker_status")
            assert troubles == [(None,), (None,)]
            assert (
                run(self._db, "select user_id from builder_score.score_state where attempts > 0")
                == []
            )
        spec.check(played)
        run(self._db, spec.finish)
        settle(self._db)
        assert_right(self._db)
        for name, points in spec.scores.items():
            query = "select builder_score from users where username = %s"
            assert one(self._db, query, name) == points, name

    def _session(self, name: str) -> Session:
        if name not in self._sessions:
            self._sessions[name] = self._open(name)
        return self._sessions[name]


def install_seams(db: Connection[Any]) -> None:
    """Let workers be stopped between the steps of a batch, each by its number in seams.worker.

    They wait there for an advisory lock that the keeper holds. A step may lead through no seam (a
    batch that has nothing to compute), and another worker through none at all.
    """
    run(
        db,
        """
        create schema seams;
        grant usage on schema seams to public;
        create function seams.stop(seam integer) returns void language plpgsql stable
        set lock_timeout = 0 as $$
        begin
            perform pg_advisory_xact_lock_shared(
                nullif(current_setting('seams.worker', true), '')::integer, seam);
        end $$;
        create function seams.stop_after_write() returns trigger language plpgsql as $$
        begin
            perform seams.stop(5);
            return null;
        end $$;
        create trigger stop after insert or update on builder_score.score_state
            for each statement execute function seams.stop_after_write();
        """,
    )
    _wrap(db, "choose_due", before=0)
    _wrap(db, "lock_users", before=1, after=2)
    _wrap(db, "score_or_split", before=3)
    _wrap(db, "compute", after=4)
    _wrap(db, "run_batch", after=6)


def _wrap(
    db: Connection[Any], name: str, before: int | None = None, after: int | None = None
) -> None:
    """Put a function of the same name around one of ours, which stops before and after it."""
    query = """
        select oid::regprocedure::text, pg_get_function_arguments(oid),
               pg_get_function_result(oid), pronargs
        from pg_proc where oid = %s::regproc
    """
    (found,) = db.execute(query, [f"builder_score.{name}"]).fetchall()
    signature, arguments, result, count = found
    call = f"seams.{name}({', '.join(f'${n + 1}' for n in range(count))})"
    stop_before, stop_after = (
        "" if seam is None else f"perform seams.stop({seam});" for seam in (before, after)
    )
    if result in ("record", "SETOF record"):
        variables, work, end = "", f"return query select * from {call};", ""
        result = "setof record"
    else:
        variables, work, end = f"v_it {result};", f"v_it := {call};", "return v_it;"
    # what is stable sees what its caller saw, which was before a stop before it
    volatility = "stable" if before is None and name == "compute" else "volatile"
    run(
        db,
        f"""
        alter function {signature} set schema seams;  -- it refers to itself by its name
        create function builder_score.{name}({arguments}) returns {result}
        language plpgsql {volatility} as $wrapper$
        declare
            {variables}
        begin
            {stop_before}
            {work}
            {stop_after}
            {end}
        end $wrapper$;
        """,
    )


def _names(steps: Mapping[str, str] | Worker) -> tuple[str, ...]:
    return steps.steps if isinstance(steps, Worker) else tuple(steps)


def _lock(number: int, seam: str) -> str:
    return f"select pg_advisory_lock({number}, {SEAMS.index(seam)})"


def _unlock(number: int, seam: str) -> str:
    return f"select pg_advisory_unlock({number}, {SEAMS.index(seam)})"
