"""``pyscore migrate`` and ``pyscore uninstall``."""

import logging
import sys

import click

from pyscore import address, migrator
from pyscore.cli.kinds import PlainText, Seconds
from pyscore.cli.options import dsn_option

sql_option = click.option(
    "--sql", "as_script", is_flag=True, help="Print a script for psql; touch no database."
)
lock_wait_option = click.option(
    "--lock-wait",
    type=Seconds(min=0),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to keep trying while tables are busy.",
)


def _say_steps() -> None:
    """Print what the migrations log."""
    logger = logging.getLogger("pyscore.migrations")
    logger.handlers = [logging.StreamHandler(sys.stdout)]
    logger.setLevel(logging.INFO)
    logger.propagate = False


@click.command()
@dsn_option
@sql_option
@lock_wait_option
@click.option(
    "--host-schema",
    type=PlainText(),
    metavar="SCHEMA",
    help="Where users, projects and project_collaborators are; said once. [default: public]",
)
@click.option(
    "--subscribers-ready",
    is_flag=True,
    help="Subscribers of this database's publications have our tables and column.",
)
def migrate(
    dsn: str | None,
    as_script: bool,
    lock_wait: float,
    host_schema: str | None,
    subscribers_ready: bool,
) -> None:
    """Install the schema builder_score, or bring it to this version."""
    settings = migrator.install_settings(host_schema, subscribers_ready)
    if as_script:
        migrator.upgrade_script(sys.stdout, settings)
        return
    _say_steps()
    migrator.upgrade(dsn, lock_wait=lock_wait, settings=settings)
    click.echo(f"at revision {migrator.head()}")


@click.command()
@dsn_option
@sql_option
@lock_wait_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def uninstall(dsn: str | None, as_script: bool, lock_wait: float, yes: bool) -> None:
    """Take everything that migrate added out again.

    A builder_score column that was there before us stays, with its last scores.
    """
    if as_script:
        migrator.downgrade_script(sys.stdout)
        return
    where = address.describe(address.resolve(dsn))
    if not yes:
        click.confirm(
            f"Remove the schema builder_score, its triggers and its job from {where}?",
            abort=True,
            err=True,
        )
    _say_steps()
    migrator.downgrade(dsn, lock_wait=lock_wait)
    click.echo("uninstalled")
