"""What ``users.id`` and ``users.builder_score`` may hold, and how values travel: always as text.

Text that is cast in SQL means the same to every driver. It is checked here, before it is sent, so
that a value of the wrong form never costs the caller their transaction.
"""

import codecs
import math
import operator
import re
import struct
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

from pyscore.errors import BadArgumentError, PyscoreError
from pyscore.scores import Number

# The lowest and the highest value of each whole type.
_WHOLE = {
    "smallint": (-(2**15), 2**15 - 1),
    "integer": (-(2**31), 2**31 - 1),
    "bigint": (-(2**63), 2**63 - 1),
}
_HIGHEST_REAL = struct.unpack(">f", bytes.fromhex("7f7fffff"))[0]
_HIGHEST_DOUBLE = math.ldexp(2 - 2**-52, 1023)

_UUID_FORM = re.compile(r"[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}")
_WHOLE_FORM = re.compile(r"-?[0-9]{1,30}")
# As PostgreSQL prints numeric: never with an exponent.
_NUMERIC_FORM = re.compile(r"-?[0-9]{1,400}(\.[0-9]{1,400})?|NaN|-?Infinity")


@dataclass(frozen=True, slots=True)
class IdType:
    """The type of ``users.id``, below any domain and without its length.

    Attributes:
        name: As SQL writes it.
        category: What pg_type calls its category; S for all kinds of text.
        encoding: The database's, as `codec` names it.
    """

    name: str
    category: str
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        if self.name != "uuid" and self.name not in _WHOLE and self.category != "S":
            raise PyscoreError(
                f"users.id has type {self.name}; a ScoreReader finds users by an id of type uuid, "
                "smallint, integer, bigint, text or varchar"
            )

    @property
    def family(self) -> str:
        """What an id looks like: uuid, integer or text."""
        return "uuid" if self.name == "uuid" else "integer" if self.name in _WHOLE else "text"

    def text(self, user_id: Any) -> str:
        """Return the id as text that the cast to this type takes.

        Args:
            user_id: A UUID, an integer, or either as text; any text where ids are text.

        Raises:
            BadArgumentError: It has not the form of an id.
        """
        match self.family:
            case "uuid":
                text = _uuid_text(user_id)
            case "integer":
                text = _whole_text(user_id, *_WHOLE[self.name])
            case _:
                text = _plain_text(user_id, self.encoding)
        if text is None:
            raise BadArgumentError(
                f"{shown(user_id)} is not the id of a user: users.id has type {self.name}; "
                f"expected {self._expected}"
            )
        return text

    @property
    def _expected(self) -> str:
        match self.family:
            case "uuid":
                return "a UUID, or its text"
            case "integer":
                lowest, highest = _WHOLE[self.name]
                return f"a whole number from {lowest} to {highest}, or its text"
            case _:
                return f"text without NUL characters that a database in {self.encoding} can hold"


@dataclass(frozen=True, slots=True)
class ScoreType:
    """The type of ``users.builder_score``, below any domain.

    Attributes:
        name: As SQL writes it.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in {*_WHOLE, "real", "double precision", "numeric"}:
            raise PyscoreError(
                f"users.builder_score has type {self.name}; expected smallint, integer, bigint, "
                "real, double precision or numeric"
            )

    @property
    def is_whole(self) -> bool:
        """Whether it holds whole numbers only."""
        return self.name in _WHOLE

    @property
    def is_binary(self) -> bool:
        """Whether its text may be rounded, as the setting extra_float_digits says."""
        return self.name in {"real", "double precision"}

    def number(self, text: str) -> Number:
        """Return a stored score.

        Args:
            text: What the database prints.
        """
        # the column may have got another type since its type was learned
        return int(text) if self.is_whole and _WHOLE_FORM.fullmatch(text) else float(text)

    def exact_text(self, value: Any) -> str:
        """Return text that stands for exactly one stored value.

        Args:
            value: The eight bytes of float8send() for binary types, else what the database prints.
        """
        return repr(struct.unpack(">d", bytes(value))[0]) if self.is_binary else str(value)

    def checked(self, text: str) -> str | None:
        """Return text that the cast to this type takes, None when `text` has another form.

        Args:
            text: What is said to come from `exact_text`.
        """
        if self.is_whole:
            return _whole_text(text, *_WHOLE[self.name])
        if self.name == "numeric":
            return text if _NUMERIC_FORM.fullmatch(text) else None
        try:
            number = float(text)
            if self.name == "real":
                # what is out of a type's range is an error of the server's
                number = struct.unpack(">f", struct.pack(">f", number))[0]
        except (ValueError, OverflowError):
            return None
        return repr(number)

    def threshold_text(self, threshold: Any) -> str:
        """Return text for ``builder_score > threshold``; casting it to this type changes no answer.

        Args:
            threshold: A score, as an int, float or Decimal.

        Raises:
            BadArgumentError: It is not a finite number.
        """
        if not _is_finite(threshold):
            raise BadArgumentError(
                f"{shown(threshold)} is not a threshold: expected a score, such as 75"
            )
        lowest, highest = self._range
        within = max(lowest, min(highest, threshold))
        if self.is_whole:
            return str(math.floor(within))  # above 55.5 are those above 55
        if self.name == "numeric":
            return format(Decimal(str(within)), "f")
        return repr(float(within))

    @property
    def _range(self) -> tuple[Number, Number]:
        if self.is_whole:
            return _WHOLE[self.name]
        highest = _HIGHEST_REAL if self.name == "real" else _HIGHEST_DOUBLE
        return -highest, highest


def shown(value: object) -> str:
    """Return a value as error messages quote it: on one line, and not at any length."""
    try:
        text = repr(value)
    except ValueError:
        text = "a number of more digits than Python prints"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_finite(value: Any) -> bool:
    if isinstance(value, Decimal):
        return value.is_finite()
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _uuid_text(value: Any) -> str | None:
    if isinstance(value, UUID):
        return str(value)
    # uuid.UUID() itself takes more, such as digits that are parted by underscores
    return str(UUID(value)) if isinstance(value, str) and _UUID_FORM.fullmatch(value) else None


def _whole_text(value: Any, lowest: int, highest: int) -> str | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        number = int(value) if _WHOLE_FORM.fullmatch(value) else None
    else:
        try:
            number = operator.index(value)
        except TypeError:
            number = None
    return str(number) if number is not None and lowest <= number <= highest else None


def _plain_text(value: Any, encoding: str) -> str | None:
    if isinstance(value, UUID) or (isinstance(value, int) and not isinstance(value, bool)):
        try:
            return str(value)
        except ValueError:  # of more digits than Python prints
            return None
    return sendable(value, encoding) if isinstance(value, str) else None


def codec(encoding: str) -> str:
    """Return Python's name for an encoding of PostgreSQL's.

    Args:
        encoding: As pg_database has it, such as LATIN1 or WIN1252.

    Returns:
        utf-8 too for the three that Python does not know: SQL_ASCII, which holds anything, EUC_TW
        and MULE_INTERNAL, where the server itself must refuse what it cannot hold.
    """
    name = encoding.replace("WIN", "cp").replace("KOI8", "koi8_")
    try:
        return codecs.lookup(name).name
    except LookupError:
        return "utf-8"


def sendable(text: str, encoding: str) -> str | None:
    """Return text that a database can hold, as a plain str; None for what no text column holds.

    Args:
        text: Of whatever origin.
        encoding: The database's, as `codec` names it.
    """
    plain = str.__str__(text)
    try:
        plain.encode(encoding)
    except UnicodeEncodeError:
        return None
    return None if "\0" in plain else plain
