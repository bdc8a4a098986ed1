"""``pyscore metrics``: for Prometheus, printed once or served."""

from __future__ import annotations

import signal
from collections.abc import Callable
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING, Any, Never, cast

import click

from pyscore.cli.kinds import Seconds
from pyscore.cli.options import dsn_option
from pyscore.errors import PyscoreError

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from pyscore.cli.scraping import Scraper


@click.command()
@dsn_option
@click.option(
    "--serve",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Answer HTTP on this port, until SIGTERM or SIGINT; 0: on any that is free.",
)
@click.option(
    "--address",
    metavar="HOST",
    help="Where --serve listens; 0.0.0.0 is everywhere.  [default: 127.0.0.1]",
)
@click.option(
    "--timeout",
    type=Seconds(min=0.1, max=600),
    default=5,
    show_default=True,
    metavar="SECONDS",
    help="How long a statement may take.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["openmetrics", "prometheus"]),
    help="What is printed; prometheus is for node_exporter's textfile collector.  "
    "[default: openmetrics]",
)
def metrics(
    dsn: str | None, serve: int | None, address: str | None, timeout: float, form: str | None
) -> None:
    """Print metrics for Prometheus, or serve them.

    A scrape reads in one snapshot, over a connection of its own; scrapes at the same moment share
    it. While the database cannot be read, --serve answers with pyscore_up 0. It needs no more than
    the role builder_score_operator, and works on a standby.
    """
    if serve is None and address is not None:
        raise click.UsageError("--address goes with --serve")
    if serve is not None and form is not None:
        raise click.UsageError("--serve and --format do not go together: a scraper says its own")
    try:
        from pyscore.cli.scraping import Scraper
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "prometheus_client":
            raise
        raise PyscoreError(
            "pyscore metrics needs prometheus_client; "
            "install it with: pip install 'pyscore[metrics]'"
        ) from None
    if serve is None:
        _print(dsn, timeout, form or "openmetrics")
    else:
        _serve(Scraper(dsn, timeout=timeout), dsn, serve, address or "127.0.0.1", timeout)


def _print(dsn: str | None, timeout: float, form: str) -> None:
    from prometheus_client import generate_latest
    from prometheus_client.openmetrics import exposition

    from pyscore.cli.scraping import Once

    read = Once(dsn, timeout=timeout)
    encode = generate_latest
    if form == "openmetrics":
        encode = cast("Callable[[Collector], bytes]", cast(Any, exposition).generate_latest)
    click.echo(encode(read).decode(), nl=False)


def _serve(scraper: Scraper, dsn: str | None, port: int, host: str, timeout: float) -> None:
    from prometheus_client import CollectorRegistry, start_http_server

    from pyscore.cli.scraping import take

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        take(dsn, timeout)  # a wrong address or a missing schema ends it; later it is waited out
        registry = CollectorRegistry()
        registry.register(scraper)
        try:
            server, _ = start_http_server(port, host, registry)
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise PyscoreError(
                f"cannot listen on {host}, port {port}: {why}; "
                "give another port to --serve, or a name or number of this machine to --address"
            ) from None
        where = f"[{host}]" if ":" in host else host
        click.echo(f"serving http://{where}:{server.server_port}/metrics", err=True)
        try:
            Event().wait()
        finally:
            server.shutdown()
            server.server_close()
    except (KeyboardInterrupt, click.exceptions.Abort):
        click.echo("stopped", err=True)


def _interrupt(number: int, frame: FrameType | None) -> Never:
    raise KeyboardInterrupt
