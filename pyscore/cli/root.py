"""What all commands have in common: their list, --dsn, --version, and how errors end.

A command is loaded when it is run: --help, --version and completion load none.
"""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, cast

import click
from click.shell_completion import CompletionItem

from pyscore.cli.wording import printable
from pyscore.errors import PyscoreError, from_database

SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Install": {
        "migrate": ("migrate", "Install the schema builder_score, or bring it to this version."),
        "uninstall": ("migrate", "Take everything that migrate added out again."),
        "schedule": (
            "schedule",
            "Have pg_cron run the worker, each minute and when the server starts.",
        ),
        "unschedule": ("schedule", "Remove the pg_cron jobs."),
    },
    "Look": {
        "leaderboard": ("leaderboard", "List the people with the highest scores."),
        "explain": ("explain", "Show why a score is what it is."),
        "rank": ("rank", "Show where somebody stands among all."),
        "status": (
            "status",
            "Show how the queue and its worker are; exit 3 when something needs a person.",
        ),
        "report": ("report", "Write a page of HTML that shows how scores are made."),
        "metrics": ("metrics", "Print metrics for Prometheus, or serve them."),
        "verify": (
            "verify",
            "Compare stored scores with what they should be; exit 3 when one is wrong.",
        ),
        "doctor": (
            "doctor",
            "Look for all that is known to break, and say what mends it; exit 3 on a failure.",
        ),
    },
    "Act": {
        "recompute": ("recompute", "Compute scores now, past the debounce."),
        "dead-letter": (
            "dead_letter",
            "Look at users who were given up, and retry or discard them.",
        ),
        "pause": ("pausing", "Stop computing scores, until `pyscore resume`."),
        "resume": ("pausing", "Compute scores again after `pyscore pause`."),
        "settings": (
            "settings",
            "Show what can be turned, or turn it; without a command: show all.",
        ),
    },
    "Run": {
        "worker": (
            "worker",
            "Compute scores where pg_cron does not: runs until SIGTERM or SIGINT.",
        ),
        "demo": ("demo", "See pyscore work, on a private PostgreSQL server."),
        "completion": (
            "completion",
            "Print the script that completes commands, options and settings.",
        ),
    },
}
"""All commands by what they are for: the module of pyscore.cli, and the first line of the help."""

_MODULES = {name: module for names in SECTIONS.values() for name, (module, _) in names.items()}


@contextmanager
def _interruptible() -> Generator[None]:
    # click would write an empty line first
    try:
        yield
    except KeyboardInterrupt:
        raise click.exceptions.Abort from None


class _Sections(click.Group):
    """A group that lists its commands by section, and loads the one that is run."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # stand-ins, for what needs no more than names and helps
        self.commands = {
            name: click.Command(name, short_help=said)
            for names in SECTIONS.values()
            for name, (_, said) in names.items()
        }

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _MODULES:
            return None
        module = import_module(f"pyscore.cli.{_MODULES[cmd_name]}")
        return cast(click.Command, getattr(module, cmd_name.replace("-", "_")))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        return super().resolve_command(ctx, [printable(args[0]), *args[1:]])

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.commands))
        for title, names in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), said) for name, (_, said) in names.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [
            CompletionItem(name, help=command.short_help)
            for name, command in self.commands.items()
            if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        with _interruptible():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with _interruptible():
            return super().invoke(ctx)


def _print_version(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from pyscore.cli.version import print_version

        print_version(ctx.params["dsn"])
        ctx.exit()


@click.group(cls=_Sections, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--dsn",
    metavar="ADDRESS",
    is_eager=True,  # so that --version knows it, wherever it stands
    help="The database, for any command: postgresql://user@host:port/database.",
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    callback=_print_version,
    help="Print the versions of the package and of the database's schema.",
)
@click.pass_context
def cli(ctx: click.Context, dsn: str | None) -> None:
    """Reputation scores that live inside PostgreSQL.

    The database's address is --dsn, else the environment variable DATABASE_URL, else libpq's own
    (PGHOST, PGDATABASE, the service file). Exit codes: 0 done, 1 failed or not found, 2 usage,
    3 unhealthy.
    """
    name = ctx.invoked_subcommand or ""
    ctx.default_map = {name: _default(cli.get_command(ctx, name), "dsn", dsn)}


def _default(command: click.Command | None, option: str, value: Any) -> dict[str, Any]:
    """Give an option of a command, and of its own commands, a default: their own value wins."""
    found: dict[str, Any] = {option: value}
    if isinstance(command, click.Group):
        found |= {name: _default(one, option, value) for name, one in command.commands.items()}
    return found


def run() -> int:
    """Run the command line, and return its exit code; an error is written as one line.

    Raises:
        KeyboardInterrupt: It was interrupted.
    """
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(errors="replace")  # names that the terminal cannot show
    try:
        return cli.main(prog_name="pyscore", standalone_mode=False) or 0
    except click.exceptions.Abort:
        raise KeyboardInterrupt from None
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "pyscore"
        return _fail(f"{error.format_message()} (see {where} --help)", error.exit_code)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except PyscoreError as error:
        return _fail(str(error), error.exit_code)
    except OSError as error:
        return _fail(str(error), 1)
    except Exception as error:
        import psycopg  # after a database's error it is there already

        if not isinstance(error, psycopg.Error):
            raise
        return _fail(str(from_database(error)), 1)


def _fail(message: str, exit_code: int) -> int:
    click.echo(f"pyscore: {printable(' '.join(message.split()))}", err=True)
    return exit_code
