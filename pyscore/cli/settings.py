"""``pyscore settings``: what a DBA may turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, LiteralString, cast

import click
import psycopg
from click.shell_completion import CompletionItem
from psycopg import Connection, sql
from psycopg.rows import DictRow
from rich.table import Table
from rich.text import Text

from pyscore.cli.console import console
from pyscore.cli.options import dsn_option, installed, json_option, print_json
from pyscore.cli.wording import printable
from pyscore.errors import BadArgumentError, PyscoreError

NAMES = (
    "debounce_window",
    "batch_size",
    "batch_target",
    "workers",
    "poll_interval",
    "max_attempts",
    "retry_base",
    "retry_cap",
    "refresh_after",
    "backfill_per_second",
    "notify_max_ids",
    "lock_timeout",
    "paused",
    "paused_reason",
)
"""The columns of builder_score.settings that are settings, for completion without a database."""

PAUSING = ("paused", "paused_reason")
"""Those that have commands of their own."""

_EXPECTED = {
    "integer": "a whole number",
    "interval": "a duration such as '5 minutes', '0.5 seconds' or 0",
}

_COLUMNS = """
    select a.attname::text as name, format_type(a.atttypid, null) as type,
           pg_get_expr(d.adbin, d.adrelid) as default_expression,
           col_description(a.attrelid, a.attnum) as meaning
    from pg_attribute as a
    left join pg_attrdef as d on d.adrelid = a.attrelid and d.adnum = a.attnum
    where a.attrelid = 'builder_score.settings'::regclass
      and a.attnum > 0 and not a.attisdropped and a.attname <> 'one_row'
    order by a.attnum
"""

_TOO_LARGE = (
    psycopg.errors.NumericValueOutOfRange,
    psycopg.errors.DatetimeFieldOverflow,
    psycopg.errors.IntervalFieldOverflow,
)
"""What the server says of a value that its type, too, has no room for."""

_UNITS = (("day", 86_400_000_000), ("hour", 3_600_000_000), ("minute", 60_000_000))


@dataclass(frozen=True)
class Setting:
    """A setting as it is.

    Attributes:
        name: The column of builder_score.settings.
        type: PostgreSQL's name of its type.
        value: What it holds.
        default: What it held at first.
        meaning: The column's comment.
    """

    name: str
    type: str
    value: Any
    default: Any
    meaning: str

    def as_data(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        return {
            "value": self.value,
            "default": self.default,
            "changed": self.value != self.default,
            "meaning": self.meaning,
        }


def _complete(ctx: click.Context, parameter: click.Parameter, text: str) -> list[CompletionItem]:
    settable = parameter.name == "changes"
    return [
        CompletionItem(name)
        for name in NAMES
        if name.startswith(text) and not (settable and name in PAUSING)
    ]


@click.group(invoke_without_command=True)
@dsn_option
@json_option
@click.pass_context
def settings(ctx: click.Context, dsn: str | None, as_json: bool) -> None:
    """Show what can be turned, or turn it; without a command: show all.

    A change takes effect with the worker's next batch.
    """
    if ctx.invoked_subcommand is None:
        _get(None, dsn, as_json)
        return
    given = {"dsn": dsn, "as_json": as_json}
    ctx.default_map = {"get": given, "set": given}


@settings.command(name="get")
@click.argument("name", required=False, shell_complete=_complete)
@dsn_option
@json_option
def get_setting(name: str | None, dsn: str | None, as_json: bool) -> None:
    """Show all settings, or print the value of one."""
    _get(name, dsn, as_json)


@settings.command(name="set", context_settings={"ignore_unknown_options": True})
@click.argument(
    "changes", nargs=-1, required=True, metavar="NAME VALUE...", shell_complete=_complete
)
@dsn_option
@json_option
def set_settings(changes: tuple[str, ...], dsn: str | None, as_json: bool) -> None:
    """Change settings: all of those given, or none.

    NAME=VALUE does as well as NAME VALUE. Durations are written as in PostgreSQL: '5 minutes',
    '0.5 seconds'; a number alone is seconds.
    """
    wanted = _pairs(changes)
    with installed(dsn) as connection:
        before = _read(connection)
        for name, text in wanted.items():
            _check_type(connection, before[name], text)
        with connection.transaction():
            connection.execute("select from builder_score.settings for update")
            before = _read(connection)
            _write(connection, before, wanted)
            after = _read(connection)
    if as_json:
        print_json({name: after[name].as_data() for name in wanted})
        return
    for name in wanted:
        old, new = _text(before[name].value), _text(after[name].value)
        click.echo(f"{name}: {old} -> {new}" if old != new else f"{name}: {new}, as it was")
        if name == "workers" and old != new:
            click.echo("`pyscore schedule` makes pg_cron's jobs as many", err=True)


def _get(name: str | None, dsn: str | None, as_json: bool) -> None:
    if name is not None:
        _require_known([name])
    with installed(dsn) as connection:
        found = _read(connection)
    if as_json:
        data = {setting.name: setting.as_data() for setting in found.values()}
        print_json(data if name is None else data[name])
    elif name is not None:
        text = _text(found[name].value)
        # for a script as it is (click would strip it); to a terminal it could be an instruction
        click.echo(printable(text) if console().is_terminal else text, color=True)
    else:
        console().print(_table(list(found.values())))


def _pairs(changes: Sequence[str]) -> dict[str, str]:
    """Read NAME VALUE and NAME=VALUE, mixed as they may be.

    Raises:
        BadArgumentError: A name is unknown, without a value, twice there, or not set this way.
    """
    pairs: list[tuple[str, str]] = []
    words = iter(changes)
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            _require_known([name])
            value = next(words, None)
            if value is None:
                raise BadArgumentError(f"{name} has no value: expected NAME VALUE or NAME=VALUE")
            text = value
        pairs.append((name, text))
    names = [name for name, _ in pairs]
    _require_known(names)
    for name in names:
        if name in PAUSING:
            raise BadArgumentError(
                f"{name} is not set here: `pyscore pause --reason TEXT` and `pyscore resume` do it"
            )
        if names.count(name) > 1:
            raise BadArgumentError(f"{name} is given twice: expected one value")
    return dict(pairs)


def _require_known(names: Sequence[str]) -> None:
    for name in names:
        if name not in NAMES:
            raise BadArgumentError(
                f"no such setting: {printable(name)}; expected one of {', '.join(NAMES)}"
            )


def _read(connection: Connection[DictRow]) -> dict[str, Setting]:
    columns = connection.execute(_COLUMNS).fetchall()
    # the expressions are the catalogue's own
    defaults = sql.SQL(", ").join(
        sql.SQL("({}) as {}").format(
            sql.SQL(cast(LiteralString, column["default_expression"] or "null")),
            sql.Identifier(column["name"]),
        )
        for column in columns
    )
    default = connection.execute(sql.SQL("select {}").format(defaults)).fetchone()
    value = connection.execute("select * from builder_score.settings").fetchone()
    assert default is not None
    assert value is not None  # the row cannot be removed
    return {
        name: Setting(name, column["type"], value[name], default[name], column["meaning"])
        for column in columns
        for name in [column["name"]]
    }


def _check_type(connection: Connection[DictRow], setting: Setting, text: str) -> None:
    """Ask the server whether it can read a value.

    Raises:
        BadArgumentError: It cannot.
    """
    try:
        connection.execute(_cast(setting), [text])
    except _TOO_LARGE:
        raise _out_of_range(_expectation(connection, setting), f"{setting.name} {text}") from None
    except (psycopg.DataError, UnicodeEncodeError):
        raise BadArgumentError(
            f"{setting.name} must be {_EXPECTED.get(setting.type, setting.type)}, "
            f"not {printable(text)!r}; nothing was changed"
        ) from None


def _expectation(connection: Connection[DictRow], setting: Setting) -> str:
    """Give what the server expects of a setting, which is the name of the constraint on it."""
    row = connection.execute(
        "select conname from pg_constraint where conrelid = 'builder_score.settings'::regclass"
        " and contype = 'c' and starts_with(conname, %s)",
        [f"{setting.name} must be "],
    ).fetchone()
    return row["conname"] if row else f"{setting.name} is out of range"


def _out_of_range(expected: str, given: str) -> BadArgumentError:
    return BadArgumentError(f"{expected}; given: {printable(given)}; nothing was changed")


def _cast(setting: Setting) -> sql.Composed:
    return sql.SQL("select %s::text::{}").format(sql.SQL(cast(LiteralString, setting.type)))


def _write(
    connection: Connection[DictRow], settings: dict[str, Setting], wanted: dict[str, str]
) -> None:
    """Change settings in one statement.

    Raises:
        BadArgumentError: A value is out of range.
        PyscoreError: The role may not change settings.
    """
    columns = sql.SQL(", ").join(
        sql.SQL("{} = ({})").format(sql.Identifier(name), _cast(settings[name])) for name in wanted
    )
    statement = sql.SQL("update builder_score.settings set {}").format(columns)
    try:
        connection.execute(statement, list(wanted.values()))
    except psycopg.errors.CheckViolation as error:
        expected = error.diag.constraint_name or str(error)
        concerned = [name for name in wanted if name in expected]
        given = ", ".join(f"{name} {wanted[name]}" for name in concerned or wanted)
        raise _out_of_range(expected, given) from None
    except psycopg.errors.InsufficientPrivilege as error:
        raise PyscoreError(
            f"{error.diag.message_primary}: settings are changed by the role that ran "
            "`pyscore migrate`, or a superuser; builder_score_operator may pause and resume"
        ) from None


def _table(found: Sequence[Setting]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("setting", no_wrap=True)
    table.add_column("value")
    table.add_column("meaning")
    for setting in found:
        meaning = setting.meaning
        if setting.value != setting.default:
            meaning += f" Default: {_text(setting.default) or 'none'}."
        changed = "" if setting.value == setting.default else "bold"
        table.add_row(
            setting.name, Text(printable(_text(setting.value)), style=changed), Text(meaning)
        )
    return table


def _text(value: Any) -> str:
    """Write a value as `settings set` and PostgreSQL read it."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case timedelta():
            return _interval(value)
        case _:
            return str(value)


def _interval(duration: timedelta) -> str:
    """Say a duration exactly: ``5 minutes``, ``1 hour 30 minutes``, ``0.1 seconds``."""
    left = duration // timedelta(microseconds=1)
    parts: list[str] = []
    for name, size in _UNITS:
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {name}{'' if count == 1 else 's'}")
    if left or not parts:
        seconds = f"{left / 1_000_000:.6f}".rstrip("0").rstrip(".")
        parts.append(f"{seconds} second{'' if seconds == '1' else 's'}")
    return " ".join(parts)
