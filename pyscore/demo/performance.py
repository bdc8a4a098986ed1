"""The whole demo: a stage, its acts in order, and what to go on with."""

from collections.abc import Sequence

from rich.console import Console

from pyscore.demo import community, debian, ending, servers, signals
from pyscore.demo.stage import open_stage

ACTS = {"community": community, "debian": debian}
"""The acts by name, in their order. Each has `play`, and `PERSON` to look at afterwards."""


def perform(acts: Sequence[str], *, keep: bool, embedded_only: bool) -> None:
    """Play acts on a private server.

    Args:
        acts: Names of `ACTS`.
        keep: Leave the server running, and say how to use it.
        embedded_only: Play on the server from PyPI, whatever the machine has.

    Raises:
        PyscoreError: There is no server to play on, or something that should happen does not.
        ClusterError: The server does not start.
        KeyboardInterrupt: A signal has stopped it; nothing is left.
    """
    server = servers.choose(embedded_only=embedded_only)
    console = Console(highlight=False)
    with signals.stoppable():
        console.print(
            "pyscore keeps a reputation score, 0 to 100, in the column users.builder_score of\n"
            "an application's own PostgreSQL. Nobody calls it: the application writes its\n"
            "tables, triggers queue whose score may have changed, a worker computes it.\n",
            markup=False,
        )
        with open_stage(console, server, keep=keep) as stage:
            for name in acts:
                ACTS[name].play(stage)
            if keep:
                ending.say_what_next(stage, ACTS[acts[-1]].PERSON)
        if not keep:
            ending.say_how_to_keep(console)
