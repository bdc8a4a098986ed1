"""Cursors: where a page of a ranking ends, as text that fits into a URL.

A cursor holds the score and the id of the last entry of a page; the next page begins with whoever
comes after that place, whether or not the entry itself is still there.
"""

import base64
import binascii
from dataclasses import dataclass

from pyscore.errors import BadArgumentError
from pyscore.reading.types import IdType, ScoreType

# Version, and the one order there is: the highest score first, among equals the highest id.
_ORDER = "1-score-id-desc"
# Far more than a key that an index can hold; beyond it nothing is even decoded.
_LONGEST = 10_000


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a ranking.

    Attributes:
        score: Text of the score, exact.
        user_id: Text of the id.
    """

    score: str
    user_id: str


def encode(position: Position, id_type: IdType) -> str:
    """Return the cursor of a place.

    Args:
        position: The last entry of a page.
        id_type: The type of ``users.id``.
    """
    text = f"{_ORDER} {id_type.family} {position.score} {position.user_id}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(cursor: str, id_type: IdType, score_type: ScoreType) -> Position:
    """Return the place that a cursor stands for.

    Args:
        cursor: What `encode` returned; it may have been in anybody's hands since.
        id_type: The type of ``users.id``.
        score_type: The type of ``users.builder_score``.

    Raises:
        BadArgumentError: It is not a cursor of this ranking.
    """
    # pyright trusts the annotation; callers pass on what stood in a URL
    if not isinstance(cursor, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise _refusal(f"expected text, not {type(cursor).__name__}")
    if len(cursor) > _LONGEST:
        raise _refusal(f"it is longer than {_LONGEST} characters")
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        text = base64.b64decode(padded, altchars=b"-_", validate=True).decode()
        order, family, score, user_id = text.split(" ", 3)
    except (ValueError, binascii.Error):
        raise _refusal("it was cut or changed") from None
    if order != _ORDER:
        raise _refusal("it belongs to another order")
    if family != id_type.family:
        raise _refusal(f"it is about ids of type {family}, and users.id has type {id_type.name}")
    checked = score_type.checked(score)
    if checked is None:
        raise _refusal(f"its score is not one that {score_type.name} holds")
    try:
        return Position(checked, id_type.text(user_id))
    except BadArgumentError:
        raise _refusal("its id is not the id of a user") from None


def _refusal(reason: str) -> BadArgumentError:
    return BadArgumentError(
        f"not a cursor of this ranking: {reason}; "
        "give after= the next of a page as it was, or leave it out to begin at the top"
    )
