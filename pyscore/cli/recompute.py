"""``pyscore recompute``."""

import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import click
import psycopg
from psycopg import Connection
from psycopg.rows import DictRow
from rich.console import Console
from rich.progress import Progress

from pyscore import drawing
from pyscore.cli.console import console
from pyscore.cli.everyone import recompute_everyone
from pyscore.cli.options import dsn_option, installed, json_option, print_json
from pyscore.cli.users import NamedUser, find_users
from pyscore.cli.wording import number, printable, some
from pyscore.errors import PyscoreError, from_database


class _Lines(click.File):
    """A file of text; standard input may be closed."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "-" and sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]
            self.fail("standard input is closed: expected one id or username a line", param, ctx)
        return super().convert(value, param, ctx)


@click.command()
@click.argument("users", nargs=-1, metavar="[USER]...")
@click.option(
    "--file",
    type=_Lines(encoding="utf-8-sig", lazy=False),
    metavar="PATH",
    help="Read users from a file, one id or username a line; - is standard input.",
)
@click.option("--all", "everyone", is_flag=True, help="Everyone, by the worker.")
@click.option("--wait", is_flag=True, help="With --all: until it is done.")
@dsn_option
@json_option
def recompute(
    users: tuple[str, ...],
    file: TextIO | None,
    everyone: bool,
    wait: bool,
    dsn: str | None,
    as_json: bool,
) -> None:
    """Compute scores now, past the debounce.

    USER is an id or a username; what is an id of somebody's is never taken for a username. Named
    users are computed here and now, each in a transaction of its own, and not at all when one of
    them does not exist. With --all one row is put into the queue, and the worker computes everyone
    at low priority. Ids of users are text in JSON, whatever their type.
    """
    if everyone:
        if users or file:
            raise click.UsageError("--all means everyone: leave USER and --file out")
        recompute_everyone(dsn, wait=wait, as_json=as_json)
        return
    if wait:
        raise click.UsageError("--wait goes with --all: named users are computed at once")
    names = [*users, *(_read(file) if file else [])]
    if not names:
        raise click.UsageError(
            f"{file.name} names nobody: expected one id or username a line"
            if file
            else "name users, or give --file or --all"
        )
    _recompute_named(names, dsn, as_json)


def _read(file: TextIO) -> list[str]:
    try:
        lines = [line.strip() for line in file]
    except UnicodeDecodeError:
        raise click.UsageError(
            f"{file.name} is not UTF-8 text: expected one id or username a line"
        ) from None
    for place, line in enumerate(lines, 1):
        if "\0" in line:
            raise click.UsageError(
                f"{file.name} holds a NUL in line {place}: expected one id or username a line"
            )
    return [line for line in lines if line]


def _recompute_named(names: Sequence[str], dsn: str | None, as_json: bool) -> None:
    results: list[dict[str, Any]] = []
    screen = console()
    with installed(dsn) as connection:
        found = find_users(connection, names, otherwise="nothing was recomputed")
        explained = as_json or len(found) == 1
        try:
            with _with_progress(found, screen) as users:
                for user in users:
                    result = _recompute_or_error(connection, user, explained=explained)
                    results.append(result)
                    if not as_json and "error" not in result:
                        _print(result, screen)
        except (KeyboardInterrupt, psycopg.Error) as error:
            reason = from_database(error) if isinstance(error, psycopg.Error) else "interrupted"
            raise PyscoreError(
                f"{reason}; {len(results)} of {len(found)} users were done and stay so"
            ) from None
        finally:
            if as_json:
                print_json(results)
    failed = [result for result in results if "error" in result]
    if failed:
        rest = _said_of_the_others(len(found) - len(failed)) if len(found) > 1 else ""
        reasons = [f"{printable(result['user'])} ({result['error']})" for result in failed]
        raise PyscoreError(f"could not recompute {some(reasons)}{rest}")


def _said_of_the_others(count: int) -> str:
    if count == 0:
        return "; nobody was recomputed"
    return (
        "; the other one was recomputed" if count == 1 else f"; the other {count} were recomputed"
    )


@contextmanager
def _with_progress(users: Sequence[NamedUser], screen: Console) -> Generator[Iterable[NamedUser]]:
    """Give users to go through, with a bar on a terminal when they are many.

    What is printed on ``screen`` meanwhile stays above the bar.
    """
    if len(users) < 2:
        yield users
        return
    beside = screen if screen.is_terminal else console(stderr=True)
    with Progress(
        console=beside,
        transient=True,
        disable=not beside.is_terminal,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as progress:
        yield progress.track(users, description="recomputing")


def _recompute_or_error(
    connection: Connection[DictRow], user: NamedUser, *, explained: bool
) -> dict[str, Any]:
    """Recompute one user; what is wrong with them does not stop the others."""
    try:
        return recompute_one(connection, user, explained=explained)
    except psycopg.Error as error:
        if connection.closed:
            raise
        return {"user": user.name, "user_id": user.user_id, "error": str(from_database(error))}


def recompute_one(
    connection: Connection[DictRow], user: NamedUser, *, explained: bool = True
) -> dict[str, Any]:
    """Recompute one user in one transaction.

    Args:
        connection: From `pyscore.cli.options.installed`.
        user: Whom.
        explained: Whether the result has ``signals``.

    Returns:
        user, user_id, old_score, new_score, and signals: what explain() says.
    """
    with connection.transaction():
        old = connection.execute(
            "select builder_score::numeric as score from builder_score.host_users"
            " where id = %s::text::builder_score.user_id",
            [user.user_id],
        ).fetchone()
        new = connection.execute(
            "select builder_score.recalculate(%s::text::builder_score.user_id) as score",
            [user.user_id],
        ).fetchone()
        result = {
            "user": user.name,
            "user_id": user.user_id,
            "old_score": old and old["score"],
            "new_score": new and new["score"],
        }
        if explained:
            result["signals"] = connection.execute(
                "select * from builder_score.explain(%s::text::builder_score.user_id)",
                [user.user_id],
            ).fetchall()
    return result


def _print(result: dict[str, Any], screen: Console) -> None:
    scores = f"{number(result['old_score'])} -> {number(result['new_score'])}"
    screen.print(f"{printable(result['user'])}: {scores}", markup=False, soft_wrap=True)
    if "signals" in result:
        signals = [
            (row["signal"], row["raw"], row["points"], row["max_points"])
            for row in result["signals"]
        ]
        screen.print(drawing.explanation(signals, ascii_only=screen.options.ascii_only))
