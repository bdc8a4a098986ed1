"""``pyscore dead-letter``: users who were given up after too many failures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from psycopg import Connection
from psycopg.errors import UndefinedTable
from psycopg.rows import DictRow
from rich.table import Table
from rich.text import Text

from pyscore.cli.console import console
from pyscore.cli.kinds import PlainText
from pyscore.cli.options import dsn_option, installed, json_option, print_json
from pyscore.cli.wording import counted, duration, number, printable, some
from pyscore.errors import PyscoreError, UnknownUserError

# "age" columns: by the server's clock, which wrote the moments
_LETTERS = """
    select d.user_id::text as user_id, u.username, d.attempts, d.sqlstate, d.message,
           d.first_failed_at, d.last_failed_at,
           clock_timestamp() - d.first_failed_at as first_age,
           clock_timestamp() - d.last_failed_at as last_age,
           u.id is not null as exists, u.builder_score::numeric as stored_score, s.computed_at
    from builder_score.score_dead_letter as d
    left join lateral (
        select h.id, h.username, h.builder_score from builder_score.host_users as h
        where h.id = d.user_id limit 1
    ) as u on true
    left join builder_score.score_state as s on s.user_id = d.user_id
    where %(ids)s::text[] is null or d.user_id = any(%(ids)s::text[]::builder_score.user_id[])
    order by d.last_failed_at desc, d.user_id
"""

_FIND = """
    select n.name, f.user_id::text as user_id,
           (select d.user_id::text from builder_score.score_dead_letter as d
            where d.user_id = f.user_id or d.user_id::text = n.name
            order by d.user_id = f.user_id desc nulls last limit 1) as letter_id
    from unnest(%s::text[]) with ordinality as n(name, place)
    cross join lateral (select builder_score.find_user(n.name) as user_id offset 0) as f
    order by n.place
"""

_PENDING = """
    select stands_for, priority, reason, enqueued_at, due_at, due_at - clock_timestamp() as due_in
    from builder_score.pending(%s::text::builder_score.user_id)
"""

_AGES = ("first_age", "last_age")

users_argument = click.argument("users", nargs=-1, type=PlainText(), metavar="USER...")
all_option = click.option("--all", "everyone", is_flag=True, help="All dead letters.")


@click.group(name="dead-letter")
def dead_letter() -> None:
    """Look at users who were given up, and retry or discard them.

    A user whose score could not be computed settings.max_attempts times in a row becomes a dead
    letter: the score stays as it is, and nothing is tried again until something about the user
    changes. USER is an id or a username.
    """


@dead_letter.command(name="list")
@dsn_option
@json_option
def list_letters(dsn: str | None, as_json: bool) -> None:
    """List the dead letters, the last failure first."""
    with installed(dsn) as connection:
        letters = _letters(connection, None)
    if as_json:
        print_json([_as_data(letter) for letter in letters])
        return
    out = console()
    if not letters:
        out.print("no dead letters")
        return
    for letter in letters:
        name, user_id = printable(letter["username"] or ""), printable(letter["user_id"])
        ages = f"{duration(letter['first_age'])} to {duration(letter['last_age'])} ago"
        out.print(
            f"{name}{'  ' if name else ''}{user_id}  {letter['attempts']} attempts, {ages}",
            markup=False,
            soft_wrap=True,
        )
        message = Text(f"  {letter['sqlstate']} {_one_line(letter['message'])}")
        message.truncate(out.width, overflow="crop" if out.options.ascii_only else "ellipsis")
        out.print(message, soft_wrap=True)


@dead_letter.command()
@click.argument("user", type=PlainText())
@dsn_option
@json_option
def show(user: str, dsn: str | None, as_json: bool) -> None:
    """Show all there is to know about one dead letter, and what to do."""
    with installed(dsn) as connection:
        ids = _find(connection, [user], "")
        found = _letters(connection, ids)
        pending = connection.execute(_PENDING, ids).fetchall()
    if not found:
        raise _no_letters([user], "")  # it was mended this very moment
    (letter,) = found
    if as_json:
        print_json(_as_data(letter) | {"pending": pending})
        return
    _print_letter(letter, pending)


@dead_letter.command()
@users_argument
@all_option
@dsn_option
@json_option
def retry(users: tuple[str, ...], everyone: bool, dsn: str | None, as_json: bool) -> None:
    """Give dead letters a fresh start, past the debounce.

    The dead letter goes when the score has been computed; if that fails again, it stays.
    """
    _require_either(users, everyone)
    with installed(dsn) as connection:
        ids = None if everyone else _find(connection, users, "nothing was retried")
        row = connection.execute(
            "select builder_score.retry_dead_letters(%s::text[]::builder_score.user_id[]) as count,"
            " builder_score.scheduler() as scheduler,"
            " (select s.paused from builder_score.settings as s) as paused",
            [ids],
        ).fetchone()
    assert row is not None
    if as_json:
        print_json({"retried": row["count"]})
        return
    click.echo(
        f"{counted(row['count'], 'dead letter')} queued to be tried again, past the debounce"
    )
    if row["count"] and row["paused"]:
        click.echo("computing scores is paused: pyscore resume")
    elif row["count"] and row["scheduler"] == "none":
        click.echo("nothing runs the worker: pyscore status")


@dead_letter.command()
@users_argument
@all_option
@click.option("--yes", is_flag=True, help="With --all: do not ask.")
@dsn_option
@json_option
def discard(
    users: tuple[str, ...], everyone: bool, yes: bool, dsn: str | None, as_json: bool
) -> None:
    """Forget dead letters; --all asks first.

    The stored scores stay as they are until the users' next event; `pyscore verify` then calls
    those that are not right wrong.
    """
    _require_either(users, everyone)
    with installed(dsn) as connection:
        if everyone:
            # those of this moment: what fails while the question waits is not in the answer
            ids = _all_ids(connection)
            if ids and not yes:
                _confirm(len(ids))
        else:
            ids = _find(connection, users, "nothing was discarded")
        discarded = connection.execute(
            "delete from builder_score.score_dead_letter as d"
            " where d.user_id = any(%s::text[]::builder_score.user_id[])",
            [ids],
        ).rowcount
    if as_json:
        print_json({"discarded": discarded})
        return
    click.echo(f"{counted(discarded, 'dead letter')} discarded")
    if discarded:
        click.echo("the stored scores stay as they are until the users' next event")


def _all_ids(connection: Connection[DictRow]) -> list[str]:
    rows = connection.execute(
        "select d.user_id::text as user_id from builder_score.score_dead_letter as d"
    ).fetchall()
    return [row["user_id"] for row in rows]


def _confirm(count: int) -> None:
    click.confirm(
        f"Discard {counted(count, 'dead letter')}? The stored scores stay as they are until the "
        "users' next event.",
        abort=True,
        err=True,
    )


def _require_either(users: Sequence[str], everyone: bool) -> None:
    if everyone == bool(users):
        raise click.UsageError("expected users, or --all, and not both")


def _letters(connection: Connection[DictRow], ids: Sequence[str] | None) -> list[dict[str, Any]]:
    """Read some dead letters, or all of them."""
    try:
        return connection.execute(_LETTERS, {"ids": ids}).fetchall()
    except UndefinedTable:
        raise PyscoreError(
            "builder_score is detached from the host's tables: "
            "SELECT * FROM builder_score.attach();"
        ) from None


def _find(connection: Connection[DictRow], names: Sequence[str], otherwise: str) -> list[str]:
    """Find the dead letters of users by id or username, all of them or none.

    A user who was deleted still has a dead letter, for a while, and an id.

    Returns:
        The users' ids.

    Raises:
        PyscoreError: Some users do not exist, or are no dead letters.
    """
    rows = connection.execute(_FIND, [list(names)]).fetchall()
    missing = [row for row in rows if row["letter_id"] is None]
    unknown = [printable(row["name"]) for row in missing if row["user_id"] is None]
    if unknown:
        raise UnknownUserError(
            f"no such user: {some(unknown)}; expected an id or a username from the application's "
            f"users table{otherwise and '; '}{otherwise}"
        )
    if missing:
        raise _no_letters([row["name"] for row in missing], otherwise)
    return list(dict.fromkeys(row["letter_id"] for row in rows))


def _no_letters(names: Sequence[str], otherwise: str) -> PyscoreError:
    return PyscoreError(
        f"no dead letter: {some([printable(name) for name in names])}; expected one that "
        f"`pyscore dead-letter list` names{otherwise and '; '}{otherwise}"
    )


def _as_data(letter: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in letter.items() if name not in _AGES}


def _print_letter(letter: dict[str, Any], pending: list[dict[str, Any]]) -> None:
    name = letter["username"] or letter["user_id"]
    computed = letter["computed_at"]
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column()
    rows = {
        "user": printable(name) if letter["exists"] else f"{printable(name)}, who is gone",
        "user id": printable(letter["user_id"]),
        "attempts": str(letter["attempts"]),
        "SQLSTATE": letter["sqlstate"],
        "message": "\n".join(printable(line) for line in letter["message"].splitlines()),
        "first failed": f"{letter['first_failed_at']:%Y-%m-%d %H:%M:%S %Z}",
        "last failed": f"{letter['last_failed_at']:%Y-%m-%d %H:%M:%S %Z}, "
        f"{duration(letter['last_age'])} ago",
        "stored score": number(letter["stored_score"])
        + ("" if computed is None else f", computed {computed:%Y-%m-%d %H:%M:%S %Z}"),
        "pending": "\n".join(_pending(row) for row in pending) or "nothing",
    }
    for label, value in rows.items():
        facts.add_row(label, Text(value))
    out = console()
    out.print(facts)
    for line in _what_to_do(letter, pending):
        out.print(line, markup=False, soft_wrap=True)


def _pending(row: dict[str, Any]) -> str:
    due = row["due_in"]
    when = "due now" if due.total_seconds() <= 0 else f"due in {duration(due)}"
    return f"{printable(row['reason'])} (for {row['stands_for']}), {when}"


def _what_to_do(letter: dict[str, Any], pending: list[dict[str, Any]]) -> list[str]:
    if not letter["exists"]:
        return [f"forget it with: pyscore dead-letter discard {printable(letter['user_id'])}"]
    if pending:
        return ["it is queued already: if it fails no more, the dead letter goes"]
    return [
        "put right what the message names, often a trigger of the application's, and then:",
        f"  pyscore dead-letter retry {printable(letter['user_id'])}",
    ]


def _one_line(message: str) -> str:
    return printable(" ".join(message.split()))
