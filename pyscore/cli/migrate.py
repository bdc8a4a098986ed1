"""``pyscore migrate`` and ``pyscore uninstall``."""

import logging
import sys
from dataclasses import asdict

import click

from pyscore import address, cron, migrator, plan
from pyscore.cli.kinds import PlainText, Seconds
from pyscore.cli.options import cron_dsn_option, dsn_option, json_option, print_json
from pyscore.cli.planned import draw

sql_option = click.option(
    "--sql",
    "as_script",
    is_flag=True,
    help="Print a script for psql, to be read and run by somebody else; touch no database.",
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
@click.option(
    "--dry-run", is_flag=True, help="Say what would be done to this database; change nothing."
)
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
@json_option
def migrate(
    dsn: str | None,
    as_script: bool,
    dry_run: bool,
    lock_wait: float,
    host_schema: str | None,
    subscribers_ready: bool,
    as_json: bool,
) -> None:
    """Install the schema builder_score, or bring it to this version.

    The application goes on meanwhile: its tables are locked for an instant, and where somebody's
    transaction is in the way, the lock is asked for again and again, never for longer than half a
    second. What was interrupted is completed by running it again.

    --dry-run runs what touches no table of the application's in a transaction that is rolled back,
    and asks it what the rest would do. Its exit code is 1 where migrate would refuse.
    """
    settings = migrator.install_settings(host_schema, subscribers_ready)
    if as_script and dry_run:
        raise click.UsageError(
            "--sql touches no database, --dry-run looks at one: give one of them"
        )
    if as_json and not dry_run:
        raise click.UsageError("--json goes with --dry-run")
    if as_script:
        migrator.upgrade_script(sys.stdout, settings, lock_wait=lock_wait)
        return
    if dry_run:
        found = plan.look(dsn, settings)
        if as_json:
            print_json(asdict(found))
        else:
            draw(found)
        return
    _say_steps()
    migrator.upgrade(dsn, lock_wait=lock_wait, settings=settings)
    click.echo(f"at revision {migrator.head()}")


@click.command()
@dsn_option
@sql_option
@lock_wait_option
@cron_dsn_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def uninstall(
    dsn: str | None, as_script: bool, lock_wait: float, cron_dsn: str | None, yes: bool
) -> None:
    """Take everything that migrate added out again.

    A builder_score column that was there before us stays, with its last scores. Tables are locked
    as `pyscore migrate` locks them. Where pg_cron works in another database, --cron-dsn lets it
    take out the jobs there; without, it says how to.
    """
    if as_script:
        migrator.downgrade_script(sys.stdout, lock_wait=lock_wait)
        return
    where = address.describe(address.resolve(dsn))
    if not yes:
        click.confirm(
            f"Remove the schema builder_score, its triggers and its job from {where}?",
            abort=True,
            err=True,
        )
    _say_steps()
    if cron_dsn is not None:
        _unschedule(dsn, cron_dsn)
    migrator.downgrade(dsn, lock_wait=lock_wait)
    click.echo("uninstalled")


def _unschedule(dsn: str | None, cron_dsn: str) -> None:
    """Remove our jobs from the database in which pg_cron works."""
    with address.connect(address.resolve(dsn), pinned=True) as connection:
        noted = connection.execute("select to_regclass('builder_score.scheduled_jobs') is not null")
        if noted.fetchall() == [(True,)]:  # nothing is known after an uninstall that stopped midway
            for line in cron.unschedule(connection, cron_dsn):
                click.echo(line)
