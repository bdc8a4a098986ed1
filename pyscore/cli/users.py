"""Users as people name them: by id or by username."""

from collections.abc import Iterable
from dataclasses import dataclass

from psycopg import Connection
from psycopg.rows import DictRow

from pyscore.cli.wording import printable, some
from pyscore.errors import BadArgumentError, UnknownUserError


@dataclass(frozen=True, slots=True)
class NamedUser:
    """A user who exists.

    Attributes:
        name: As it was asked for.
        user_id: users.id, as text.
    """

    name: str
    user_id: str


def find_users(
    connection: Connection[DictRow], names: Iterable[str], *, otherwise: str = ""
) -> list[NamedUser]:
    """Find users by id, else by username, in one query: all of them or none.

    Args:
        connection: To the database.
        names: Ids and usernames.
        otherwise: What did not happen, said when some do not exist.

    Returns:
        Each user once, in the order of the names.

    Raises:
        UnknownUserError: Some do not exist.
        BadArgumentError: A name holds characters that the database cannot.
    """
    try:
        rows = connection.execute(
            "select n.name, builder_score.find_user(n.name)::text as user_id"
            " from unnest(%s::text[]) with ordinality as n(name, place) order by n.place",
            [list(names)],
        ).fetchall()
    except UnicodeEncodeError as error:
        raise BadArgumentError(
            f"{printable(str(error.object))} cannot name a user: it holds characters that this "
            f"database's encoding ({error.encoding}) lacks"
        ) from None
    unknown = [printable(row["name"]) for row in rows if row["user_id"] is None]
    if unknown:
        raise UnknownUserError(
            f"no such user: {some(unknown)}; expected an id or a username from the "
            f"application's users table{otherwise and '; '}{otherwise}"
        )
    found: dict[str, NamedUser] = {}
    for row in rows:
        found.setdefault(row["user_id"], NamedUser(row["name"], row["user_id"]))
    return list(found.values())
