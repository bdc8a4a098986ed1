"""``pyscore leaderboard``: who has the highest scores."""

import shlex
from typing import Any

import click
import psycopg
from psycopg.conninfo import conninfo_to_dict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pyscore import ScoreReader, address, drawing
from pyscore.cli.options import dsn_option, json_option, print_json
from pyscore.cli.wording import number, printable
from pyscore.errors import BadArgumentError
from pyscore.scores import Page, UserScore

BAR = 20  # characters for a score of 100

_HOST_SCHEMA = """
select case
    when has_schema_privilege(n.oid, 'usage')
     and has_table_privilege(c.oid, 'select') then true
end
from pg_namespace as n
join pg_class as c on c.relnamespace = n.oid and c.relname = 'host'
where n.nspname = 'builder_score'
"""


@click.command()
@click.option(
    "-n",
    "limit",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    metavar="N",
    help="How many people, at most 1000.",
)
@click.option("--above", type=float, metavar="SCORE", help="Only scores higher than this.")
@click.option("--after", metavar="CURSOR", help="Go on where a page ended, as it said.")
@dsn_option
@json_option
def leaderboard(
    limit: int, above: float | None, after: str | None, dsn: str | None, as_json: bool
) -> None:
    """List the people with the highest scores.

    Reads the application's users alone, so the application's role may do this too. People without
    a score are left out.
    """
    with address.connect(address.resolve(dsn)) as connection:
        reader = ScoreReader(connection, schema=host_schema(connection))
        page = _read(reader, limit, above, after)
    following = page.next and _command(limit, above, page.next, dsn)
    if as_json:
        print_json({"entries": [_as_dict(one) for one in page], "next": page.next})
    else:
        _print(page, following, first=after is None)


def _read(reader: ScoreReader, limit: int, above: float | None, after: str | None) -> Page:
    try:
        if above is None:
            return reader.leaderboard(limit, after)
        return reader.above(above, limit, after)
    except BadArgumentError as error:
        reason = str(error).partition(";")[0]
        if not reason.startswith("not a cursor"):
            raise
        # its advice is for callers from Python
        raise click.BadParameter(
            f"{reason}; give the one that a page ended with, or leave it out to begin at the top",
            param_hint="--after",
        ) from None


def host_schema(connection: psycopg.Connection[Any]) -> str | None:
    """Find the schema of the application's tables; None: search_path is to find it.

    Args:
        connection: Of a role that may or may not see the schema builder_score.
    """
    visible = connection.execute(_HOST_SCHEMA).fetchone()
    if visible is None or not visible[0]:
        return None
    row = connection.execute("select host_schema::text from builder_score.host").fetchone()
    return row[0] if row else None


def _as_dict(one: UserScore) -> dict[str, Any]:
    tier = one.tier and {"number": one.tier.number, "low": one.tier.low, "high": one.tier.high}
    return {"user_id": one.user_id, "username": one.username, "score": one.score, "tier": tier}


def _command(limit: int, above: float | None, cursor: str, dsn: str | None) -> str:
    """Write the command that prints the next page."""
    words = ["pyscore", "leaderboard", "-n", str(limit)]
    if above is not None:
        words += ["--above", f"{above:.15g}"]
    words += ["--after", cursor]
    if dsn:
        words += [
            "--dsn",
            "ADDRESS" if conninfo_to_dict(address.resolve(dsn)).get("password") else dsn,
        ]
    return shlex.join(words)


def _print(page: Page, following: str | None, *, first: bool) -> None:
    console = Console(highlight=False)
    if not page.entries:
        console.print("nobody has a score here" if first else "nobody comes after that")
        return
    full = drawing.ASCII_FULL if console.options.ascii_only else drawing.FULL
    table = Table(box=None, pad_edge=False)
    if first:
        table.add_column("place", justify="right")
    table.add_column("user", overflow="fold")
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("tier", no_wrap=True)
    place, last = 0, None
    for count, one in enumerate(page, 1):
        if one.score != last:  # the same score, the same place
            place, last = count, one.score
        table.add_row(
            *([str(place)] if first else []),
            Text(printable(one.username or str(one.user_id))),
            number(one.score),
            drawing.bar(one.score or 0, 100, BAR, full=full),
            str(one.tier),
        )
    console.print(table)
    if following:
        console.print()
        console.print(f"next page: {following}", markup=False, soft_wrap=True)
