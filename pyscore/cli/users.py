"""Users as people name them: by id or by username."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import click
from psycopg import Connection
from psycopg.rows import DictRow

from pyscore.cli.wording import printable, some
from pyscore.errors import BadArgumentError, UnknownUserError

# find_user() takes the lowest id
_NAMESAKES = """
select n.name, n.user_id, count(*) as people
from unnest(%s::text[], %s::text[]) as n(name, user_id)
join builder_score.host_users as u on u.username = n.name
group by n.name, n.user_id
having count(*) > 1 and bool_or(u.id::text = n.user_id)
order by n.name
"""


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

    Where a username is that of several people, which one is meant is said on stderr.

    Args:
        connection: To the database.
        names: Ids and usernames.
        otherwise: What did not happen, said when some do not exist.

    Returns:
        Each user once, in the order of the names.

    Raises:
        UnknownUserError: Some do not exist.
        BadArgumentError: A name is blank, or holds bytes that are no text.
    """
    names = list(names)
    if not all(name.strip() for name in names):
        raise BadArgumentError("an empty name is nobody's: expected an id or a username")
    try:
        rows = connection.execute(
            "select n.name, builder_score.find_user(n.name)::text as user_id"
            " from unnest(%s::text[]) with ordinality as n(name, place) order by n.place",
            [names],
        ).fetchall()
    except UnicodeEncodeError as error:
        raise BadArgumentError(
            f"{printable(str(error.object))} cannot name a user: it holds bytes that are not text "
            f"in this shell's locale ({sys.getfilesystemencoding()})"
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
    users = list(found.values())
    _say_namesakes(connection, users)
    return users


def _say_namesakes(connection: Connection[DictRow], users: Sequence[NamedUser]) -> None:
    asked = [[user.name for user in users], [user.user_id for user in users]]
    for row in connection.execute(_NAMESAKES, asked):
        click.echo(
            f"{row['people']:,} people have the username {printable(row['name'])}: this is about "
            f"the one with id {row['user_id']}; name another by their id",
            err=True,
        )
