"""What an entry is known by when it has to go: an id, or a name, however they are written.

Two spellings that PostgreSQL may hold for equal have one token. That two users' may be the same too
costs the other user a query and nothing else.
"""

import unicodedata
from typing import Any

EVERYBODY = "*"
"""The token that means all entries."""

_DOTLESS = "\N{LATIN SMALL LETTER DOTLESS I}"


def of_id(user_id: Any) -> str:
    """Return an id's token: that of a UUID is that of its text, with and without hyphens."""
    return "i" + str(user_id).strip().replace("-", "").casefold()


def of_name(username: str) -> str:
    """Return a name's token: blind to case and accents, as citext or a collation may be."""
    if username.isascii():
        return "n" + username.rstrip(" ").lower()
    # citext goes by the locale, which may make a dotless i of I
    letters = unicodedata.normalize("NFKD", username.casefold()).replace(_DOTLESS, "i")
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return "n" + plain.rstrip(" ").casefold()
