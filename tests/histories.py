"""Transactions of an application, interleaved in a fixed order: which of them the server refuses.

    confirm = Program("update project_collaborators set status = 'confirmed' where id = 1")
    players.play([confirm, transfer], [0, 1, 1, 0], "serializable")    # [None, "40001"]

The numbers say whose turn it is: each turn is the program's next statement, the last of which is
its COMMIT. A statement that waits for a lock is left waiting while the others have their turns.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import psycopg
from psycopg import Connection

from tests.interleave import Session, Sessions, until

Program = tuple[str, ...]
"""What one transaction does, without its BEGIN and COMMIT."""


class Players:
    """Sessions on one database, which play one history after the other.

    What a program says about rows numbered 1 to 9 is about fresh rows in each history: $1 stands
    for the first of them.
    """

    def __init__(self, conninfo: str, prepare: Callable[[Connection[Any], int], None]) -> None:
        self._sessions = Sessions(conninfo)
        self._prepare = prepare
        self._offsets = itertools.count(10, 10)
        self._db = psycopg.connect(conninfo, autocommit=True)

    def __enter__(self) -> Self:
        self._sessions.__enter__()
        self._players = [self._sessions(f"player {number}") for number in range(3)]
        for player in self._players:
            # tiny tables: without this the plans, and so what SSI takes for read, are accidents
            player.run("set enable_seqscan = off; set deadlock_timeout = '20ms'")
        return self

    def __exit__(self, *error: Any) -> None:
        self._sessions.__exit__(*error)
        self._db.close()

    def play(
        self,
        programs: Sequence[Program],
        turns: Sequence[int],
        isolation: str,
        meanwhile: Callable[[Connection[Any], int], None] | None = None,
    ) -> list[str | None]:
        """Play a history.

        Args:
            programs: At most three.
            turns: Whose turn it is, by the programs' places; each has one more than statements.
            isolation: All programs' isolation level.
            meanwhile: Called before each turn, with its number.

        Returns:
            The SQLSTATE that ended each program, None where it has committed.
        """
        offset = next(self._offsets)
        self._prepare(self._db, offset)
        actors = [
            _Actor(player, self._players, program, offset, isolation)
            for player, program in zip(self._players, programs, strict=False)
        ]
        for number, turn in enumerate(turns):
            if meanwhile is not None:
                meanwhile(self._db, number)
            actors[turn].take_turn()
            for actor in actors:  # whoever waited for this one goes on
                actor.catch_up()

        def ended() -> bool:
            waiting = [actor.catch_up() for actor in actors]  # each gets its chance
            return not any(waiting)

        until(ended, "every program comes to its end")
        return [actor.failed_with for actor in actors]


class _Actor:
    def __init__(
        self,
        session: Session,
        players: Sequence[Session],
        program: Program,
        offset: int,
        isolation: str,
    ) -> None:
        self._session = session
        self._players = players
        self._waiting = 0
        self._left = [_numbered(statement, offset) for statement in (*program, "commit")]
        self._begin: str | None = f"begin isolation level {isolation}"
        self.failed_with: str | None = None

    def take_turn(self) -> None:
        """Run the next statement, once those before it have ended."""
        self._waiting += 1
        self.catch_up()

    def catch_up(self) -> bool:
        """Run what the turns so far allow; tell whether something is left that waits for a lock."""
        if self._begin is not None and self._waiting:
            self._session.run(self._begin)
            self._begin = None
        while self._session.busy or self._waiting:
            if not self._session.busy:
                self._waiting -= 1
                statement = self._left.pop(0)
                if self.failed_with is not None and statement != "commit":
                    continue
                self._session.start(statement)
            if self._session.rests(self._players):
                return True
            try:
                self._session.finish()
            except psycopg.Error as error:
                self.failed_with = self.failed_with or error.sqlstate
                if not self._left:
                    return False  # the COMMIT itself
        return False


def interleavings(lengths: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All orders of turns of programs, so many turns each."""
    if not any(lengths):
        yield ()
    for place, length in enumerate(lengths):
        if length:
            fewer = [n - (other == place) for other, n in enumerate(lengths)]
            for rest in interleavings(fewer):
                yield (place, *rest)


def _numbered(statement: str, offset: int) -> str:
    return re.sub(r"\$(\d)", lambda found: str(offset + int(found[1])), statement)
