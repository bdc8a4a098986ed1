"""Cuts the revisions from sql/, until the first release freezes them: python migrations/cut.py.

A revision's .down.sql is written by hand. checksums.sha256 notes all of them.
"""

import hashlib
from pathlib import Path

MIGRATIONS = Path(__file__).resolve().parent
SQL = MIGRATIONS.parent / "sql"
CHECKSUMS = MIGRATIONS / "checksums.sha256"

# What each revision holds: the sql/ files whose names lie between these. The first one's head says
# of the whole revision what it does, in how many transactions, and what it locks.
REVISIONS = {
    "0001_schema": ("0", "9"),
    "0002_column": ("900", "901"),
    "0003_indexes": ("910", "911"),
    "0004_attach": ("920", "921"),
    "0005_schedule": ("930", "931"),
}
OUTSIDE_TRANSACTION = {"0003_indexes"}

# Half of deadlock_timeout's default: beside an application's transaction we are who gives up.
TIMEOUTS = "set local lock_timeout = '0.5s';\nset local statement_timeout = 0;\n"


def cut(revision: str) -> str:
    """Put a revision's up script together."""
    first, end = REVISIONS[revision]
    files = [path for path in sorted(SQL.glob("*.sql")) if first <= path.name < end]
    parts = [path.read_text(encoding="utf-8") for path in files]
    if revision not in OUTSIDE_TRANSACTION:
        parts.insert(0, TIMEOUTS)
    return "\n".join(parts)


def checksums() -> str:
    """Note every revision file, in the form that sha256sum -c reads."""
    files = sorted((MIGRATIONS / "versions").glob("0*"))
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  versions/{path.name}\n" for path in files
    )


if __name__ == "__main__":
    for name in REVISIONS:
        script = MIGRATIONS / "versions" / f"{name}.up.sql"
        script.write_text(cut(name), encoding="utf-8")
    CHECKSUMS.write_text(checksums(), encoding="utf-8")
