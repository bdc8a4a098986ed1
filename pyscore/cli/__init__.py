"""The command ``pyscore``."""

import sys
from typing import Any

import click
import psycopg

from pyscore.cli.completion import completion
from pyscore.cli.dead_letter import dead_letter
from pyscore.cli.demo import demo
from pyscore.cli.explain import explain
from pyscore.cli.leaderboard import leaderboard
from pyscore.cli.migrate import migrate, uninstall
from pyscore.cli.pausing import pause, resume
from pyscore.cli.recompute import recompute
from pyscore.cli.settings import settings
from pyscore.cli.status import status
from pyscore.cli.verify import verify
from pyscore.cli.version import print_version
from pyscore.cli.worker import worker
from pyscore.errors import PyscoreError, from_database

SECTIONS: dict[str, tuple[click.Command, ...]] = {
    "Install": (migrate, uninstall),
    "Look": (leaderboard, explain, status, verify),
    "Act": (recompute, dead_letter, pause, resume, settings),
    "Run": (worker, demo, completion),
}
"""All commands, by what they are for, in the order of --help."""


class _Sections(click.Group):
    """A group whose help lists the commands by section."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.commands))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(
                    [
                        ((command.name or "").ljust(width), command.get_short_help_str(80))
                        for command in commands
                    ]
                )


def _print_version(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
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
    ctx.default_map = _default_everywhere(cli, "dsn", dsn)


def _default_everywhere(group: click.Group, option: str, value: Any) -> dict[str, Any]:
    """Give an option of all commands, and their commands, a default: their own value wins."""
    return {
        name: {option: value}
        | (_default_everywhere(command, option, value) if isinstance(command, click.Group) else {})
        for name, command in group.commands.items()
    }


for _commands in SECTIONS.values():
    for _command in _commands:
        cli.add_command(_command)


def main() -> None:
    """Run the command line; every error is one line on stderr and an exit code."""
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(errors="replace")  # names that the terminal cannot show
    try:
        sys.exit(cli.main(prog_name="pyscore", standalone_mode=False) or 0)
    except click.exceptions.Abort:
        _fail("stopped", 1)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "pyscore"
        _fail(f"{error.format_message()} (see {where} --help)", error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except PyscoreError as error:
        _fail(str(error), error.exit_code)
    except psycopg.Error as error:
        _fail(str(from_database(error)), 1)
    except OSError as error:
        _fail(str(error), 1)


def _fail(message: str, exit_code: int) -> None:
    click.echo(f"pyscore: {' '.join(message.split())}", err=True)
    sys.exit(exit_code)
