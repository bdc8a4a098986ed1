"""Transactions of an application, interleaved in a fixed order: which of them the server refuses.

    confirm = Program("update project_collaborators set status = 'confirmed' where id = 1")
    players.play([confirm, transfer], [0, 1, 1, 0], "serializable")    # [None, "40001"]

The numbers say whose turn it is: each turn is the program's next statement, the last of which is
its COMMIT. A statement that waits for a lock is left waiting while the others have their turns.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, Self

import psycopg
from psycopg import Connection

from tests.interleave import Sessions
from tests.permutations import Actor, play_turns

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
        actors = {
            place: Actor(player, _statements(program, offset, isolation))
            for place, (player, program) in enumerate(zip(self._players, programs, strict=False))
        }

        def before(turn: int) -> None:
            if meanwhile is not None:
                meanwhile(self._db, turn)

        play_turns(actors, turns, before)
        return [actor.failed_with for actor in actors.values()]


def _statements(program: Program, offset: int, isolation: str) -> list[str]:
    """Make it a transaction, about the rows from this number on."""
    first, *others = (
        re.sub(r"\$(\d)", lambda found: str(offset + int(found[1])), statement)
        for statement in program
    )
    return [f"begin isolation level {isolation}; {first}", *others, "commit"]
