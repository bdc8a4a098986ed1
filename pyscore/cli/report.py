"""``pyscore report``: a page that shows how scores are made."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import psycopg
from psycopg import Connection
from psycopg.rows import DictRow

from pyscore.cli.options import dsn_option, installed, operator_grant
from pyscore.errors import from_database
from pyscore.report import page
from pyscore.report.writing import write
from pyscore.scores import UserScore

LEADERS = 20


@click.command()
@click.option(
    "-o",
    "--output",
    "file",
    required=True,
    metavar="FILE",
    help="Where to write it; - for standard output.",
)
@click.option(
    "--public",
    is_flag=True,
    help="For everyone to read: leave out people, small counts and health.",
)
@click.option(
    "--title", default=page.TITLE, show_default=True, metavar="TEXT", help="The page's title."
)
@dsn_option
def report(file: str, public: bool, title: str, dsn: str | None) -> None:
    """Write a page of HTML that shows how scores are made.

    One file that needs no other: a card for each signal with its curve and its maximum, from the
    formula in force; worked examples; how scores are spread; the top of the leaderboard, and how
    the queue is. Everything is of one moment. Writes nothing to the database; a standby will do.

    With --public neither people nor the queue are on it, and ranges of scores are joined until
    each has five people or none.
    """
    if not title.strip():
        raise click.BadParameter("expected some text", param_hint="--title")
    with installed(dsn) as connection:
        leaders = None if public else _leaders(connection)
        try:
            text = page.make(connection, leaders, title=title)
        except psycopg.errors.InsufficientPrivilege as error:
            raise from_database(error, operator_grant(connection)) from None
    if file == "-":
        if reconfigure := getattr(sys.stdout, "reconfigure", None):
            reconfigure(encoding="utf-8")  # as the page says of itself
        click.echo(text, nl=False)
    else:
        write(Path(file), text)


def _leaders(connection: Connection[DictRow]) -> Callable[[], Sequence[UserScore]]:
    def read() -> Sequence[UserScore]:
        from sqlalchemy import table

        from pyscore import ScoreReader

        row = connection.execute(
            "select host_schema::text as schema, attached_at is not null as attached"
            " from builder_score.host"
        ).fetchone()
        assert row is not None  # a table of one row
        if row["attached"]:
            # operators may read this view, and not the application's users
            users = table("host_users", schema="builder_score")
            return ScoreReader(connection, users=users).leaderboard(LEADERS).entries
        return ScoreReader(connection, schema=row["schema"]).leaderboard(LEADERS).entries

    return read
