"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pyscore.errors import PyscoreError


def write(path: Path, text: str) -> None:
    """Write a file, so that whoever opens it meanwhile sees the old text or the new one.

    A link stays one, and a file keeps its permissions; a pipe or a device is just written to.

    Args:
        path: Where.
        text: All of it.

    Raises:
        PyscoreError: It is a directory.
        OSError: It cannot be written.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise PyscoreError(f"{path} is a directory: name a file in it")
    data = text.encode("utf-8", errors="replace")
    if path.exists() and not path.is_file():
        path.write_bytes(data)  # not by its real path: what /dev/stdout leads to has none
        return
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.")
    except FileNotFoundError:
        raise PyscoreError(f"there is no directory {target.parent}") from None
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), _mode(target))
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def _mode(target: Path) -> int:
    """Permissions as before, or as a new file would have them: a web server is to read it."""
    if target.exists():
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
