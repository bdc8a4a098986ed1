"""``pyscore leaderboard``: who has the highest scores."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click
import psycopg
from psycopg.conninfo import conninfo_to_dict
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from pyscore import address, drawing
from pyscore.cli.console import console
from pyscore.cli.options import dsn_option, json_option, operator_grant, print_json
from pyscore.cli.wording import number, printable
from pyscore.errors import BadArgumentError, PyscoreError, from_database
from pyscore.scores import Page, UserScore

if TYPE_CHECKING:  # it loads SQLAlchemy
    from pyscore import ScoreReader

BAR = 20  # characters for a score of 100
GAP = 2  # between two columns

_READABLE = """
select c.relname
from pg_namespace as n
join pg_class as c on c.relnamespace = n.oid and c.relname in ('host', 'host_users')
where n.nspname = 'builder_score'
  and has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select')
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
@click.option("--schema", metavar="SCHEMA", help="The schema of the application's users.")
@dsn_option
@json_option
def leaderboard(
    limit: int,
    above: float | None,
    after: str | None,
    schema: str | None,
    dsn: str | None,
    as_json: bool,
) -> None:
    """List the people with the highest scores.

    Reads the application's users alone, so the application's role may do this too. They are looked
    for where builder_score was installed for them, or else, when the role may not look that up, on
    its search_path. People without a score are left out. Ids are text in JSON, whatever their type.
    """
    with address.connect(address.resolve(dsn), pinned=True) as connection:
        try:
            page = _read(_reader(connection, schema), limit, above, after)
        except psycopg.errors.InsufficientPrivilege as error:
            raise from_database(error, operator_grant(connection)) from None
    following = page.next and _command(limit, above, schema, page.next, dsn)
    if as_json:
        print_json({"entries": [_as_dict(one) for one in page], "next": page.next})
    else:
        _print(page, following, above, first=after is None)


def _reader(connection: psycopg.Connection[Any], schema: str | None) -> ScoreReader:
    """Make the reader that a role's rights allow.

    Args:
        connection: Of a role that may or may not see the schema builder_score; search_path pinned.
        schema: Of the application's users, if it was said.
    """
    from sqlalchemy import table

    from pyscore import ScoreReader

    readable = {name for (name,) in connection.execute(_READABLE)}
    if schema is None and "host_users" in readable:
        # operators may read this view, and not the application's users
        return ScoreReader(connection, users=table("host_users", schema="builder_score"))
    # from here on as the application does: its views and policies may need its search_path
    connection.execute("reset search_path")
    if schema is None and "host" in readable:
        row = connection.execute("select host_schema::text from builder_score.host").fetchone()
        schema = row[0] if row else None
    return ScoreReader(connection, schema=schema)


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
    except PyscoreError as error:
        # likewise
        said = str(error).replace("schema=...", "--schema SCHEMA")
        raise PyscoreError(said, exit_code=error.exit_code) from None


def _as_dict(one: UserScore) -> dict[str, Any]:
    tier = one.tier and {"number": one.tier.number, "low": one.tier.low, "high": one.tier.high}
    return {"user_id": str(one.user_id), "username": one.username, "score": one.score, "tier": tier}


def _command(
    limit: int, above: float | None, schema: str | None, cursor: str, dsn: str | None
) -> str:
    """Write the command that prints the next page."""
    words = ["pyscore", "leaderboard", "-n", str(limit)]
    if above is not None:
        words += ["--above", f"{above:.15g}"]
    if schema is not None:
        words += ["--schema", schema]
    words += ["--after", cursor]
    if dsn:
        words += [
            "--dsn",
            "ADDRESS" if conninfo_to_dict(address.resolve(dsn)).get("password") else dsn,
        ]
    return shlex.join(words)


def _print(page: Page, following: str | None, above: float | None, *, first: bool) -> None:
    screen = console()
    if not page.entries:
        reached = "here" if above is None else f"above {above:.15g}"
        screen.print(f"nobody has a score {reached}" if first else "nobody comes after that")
        return
    # what little room there is goes to who and how much
    needed = Measurement.get(screen, screen.options, _table(page, screen, first=first)).maximum
    bar = min(BAR, screen.width - needed - GAP)
    screen.print(_table(page, screen, first=first, bar=bar))
    if following:
        screen.print()
        screen.print(f"next page: {following}", markup=False, soft_wrap=True)


def _table(page: Page, screen: Console, *, first: bool, bar: int = 0) -> Table:
    """Make the table; places are known on the first page alone.

    Args:
        page: Who is in it.
        screen: Where it is to be printed.
        first: Whether it is the first page.
        bar: Characters for a score of 100; 0 or less for no bars.
    """
    full = drawing.ASCII_FULL if screen.options.ascii_only else drawing.FULL
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    if first:
        table.add_column("place", justify="right", no_wrap=True)
    table.add_column("user", overflow="fold")
    table.add_column("score", justify="right", no_wrap=True)
    if bar > 0:
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
            *([drawing.bar(one.score or 0, 100, bar, full=full)] if bar > 0 else []),
            str(one.tier),
        )
    return table
