"""`python -m benchmarks`: runs the benchmarks and writes their reports."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

import click

from benchmarks import communities
from benchmarks.progress import say
from benchmarks.reports import RESULTS, Report, summarise
from benchmarks.scales import Scale

MODULES = ("application", "throughput", "wal", "freshness", "growth", "reading")
"""The benchmarks, in the order in which they run and are reported."""


class Benchmark(Protocol):
    """What each of the modules has."""

    NAME: str
    TITLE: str

    def run(self, scale: Scale) -> Report: ...


def benchmarks() -> dict[str, Benchmark]:
    """All benchmarks by name."""
    modules = [cast(Benchmark, import_module(f"benchmarks.{name}")) for name in MODULES]
    return {module.NAME: module for module in modules}


@click.command()
@click.argument("names", nargs=-1)
@click.option("--quick", "scale", flag_value="quick", help="Small sizes; minutes for all of it.")
@click.option("--full", "scale", flag_value="full", help="The largest sizes: 5,000,000 users.")
@click.option("--smoke", "scale", flag_value="smoke", help="Tiny: only whether it works.")
@click.option("--list", "listing", is_flag=True, help="Show the benchmarks' names, and stop.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=RESULTS,
    help="Where the reports go. [default: benchmarks/results]",
)
def main(names: Sequence[str], scale: str | None, listing: bool, output: Path) -> None:
    """Measure, and write a page for each benchmark (all, or NAMES) and a summary of all."""
    known = benchmarks()
    if listing:
        for name, benchmark in known.items():
            click.echo(f"{name:<14}{benchmark.TITLE}")
        return
    if unknown := set(names) - set(known):
        raise click.UsageError(f"no benchmark {', '.join(unknown)}: there are {', '.join(known)}")
    size = Scale(scale or "ordinary")
    try:
        for name, benchmark in known.items():
            if names and name not in names:
                continue
            say(f"{name}: {benchmark.TITLE}")
            report = benchmark.run(size)
            report.write(output, size)
            summarise(output, list(known))
            for figure in report.figures:
                say("  ".join(filter(None, figure.cells())))
    finally:
        communities.close()
    say(f"written to {output}")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
