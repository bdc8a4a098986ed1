"""The top of the leaderboard."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pyscore.cli.wording import number
from pyscore.report.words import shown
from pyscore.scores import UserScore


@dataclass(frozen=True, slots=True)
class Place:
    """Somebody on the leaderboard.

    Attributes:
        place: 1 for the highest; the same score has the same.
        name: Fit to be shown.
        score: In words.
        width: From 0 to 100, for a bar.
    """

    place: int
    name: str
    score: str
    width: float


def places(people: Iterable[UserScore]) -> list[Place]:
    """Number people.

    Args:
        people: The highest score first.
    """
    done: list[Place] = []
    last, place = None, 0
    for count, one in enumerate(people, 1):
        score = one.score or 0
        if count == 1 or score != last:
            place, last = count, score
        done.append(
            Place(
                place,
                shown(one.username or str(one.user_id)),
                number(one.score),
                min(max(score, 0), 100) if score == score else 0,  # NaN is unequal to itself
            )
        )
    return done
