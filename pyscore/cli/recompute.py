"""``pyscore recompute``."""

from typing import Any

import click
from psycopg import Connection
from psycopg.rows import DictRow
from rich.console import Console
from rich.table import Table

from pyscore.cli.options import dsn_option, installed, json_option, print_json
from pyscore.errors import PyscoreError


@click.command()
@click.argument("users", nargs=-1, required=True, metavar="USER...")
@dsn_option
@json_option
def recompute(users: tuple[str, ...], dsn: str | None, as_json: bool) -> None:
    """Compute the scores of users, by id or username, now and past the debounce."""
    with installed(dsn) as connection:
        results = [recompute_one(connection, *found) for found in find_users(connection, users)]
    if as_json:
        print_json(results)
        return
    for result in results:
        _print(result)


def find_users(connection: Connection[DictRow], users: tuple[str, ...]) -> list[tuple[str, str]]:
    """Find users by id or username, all of them or none.

    Returns:
        For each user, as it was asked for and as its id.

    Raises:
        PyscoreError: Some do not exist.
    """
    found: list[tuple[str, str]] = []
    unknown: list[str] = []
    for user in users:
        query = "select builder_score.find_user(%s)::text as id"
        row = connection.execute(query, [user]).fetchone()
        if row is None or row["id"] is None:
            unknown.append(user)
        else:
            found.append((user, row["id"]))
    if unknown:
        raise PyscoreError(
            f"no such user: {', '.join(unknown)}; expected an id or a username from the "
            "application's users table; nothing was recomputed"
        )
    return found


def recompute_one(connection: Connection[DictRow], user: str, user_id: str) -> dict[str, Any]:
    """Recompute one user in one transaction.

    Returns:
        user, user_id, old_score, new_score, and signals: what explain() says.
    """
    with connection.transaction():
        old = connection.execute(
            "select builder_score::numeric as score from builder_score.host_users"
            " where id = %s::text::builder_score.user_id",
            [user_id],
        ).fetchone()
        new = connection.execute(
            "select builder_score.recalculate(%s::text::builder_score.user_id) as score", [user_id]
        ).fetchone()
        signals = connection.execute(
            "select * from builder_score.explain(%s::text::builder_score.user_id)", [user_id]
        ).fetchall()
    return {
        "user": user,
        "user_id": user_id,
        "old_score": old and old["score"],
        "new_score": new and new["score"],
        "signals": signals,
    }


def _print(result: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("signal", "raw", "points", "of"):
        table.add_column(name, justify="left" if name == "signal" else "right")
    for row in result["signals"]:
        table.add_row(
            row["signal"],
            f"{row['raw']:,.6g}",
            f"{row['points']:.2f}",
            f"{row['max_points']:g}",
        )
    console = Console(highlight=False)
    old = "none" if result["old_score"] is None else result["old_score"]
    console.print(f"{result['user']}: {old} -> {result['new_score']}", markup=False)
    console.print(table)
