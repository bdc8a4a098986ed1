"""Where the SQL that this package installs is kept."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _find(name: str) -> Path:
    """Find a folder that travels inside the wheel and stands beside the package in a checkout."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


MIGRATIONS = _find("migrations")
"""The Alembic environment: ``env.py`` and ``versions/``."""

SQL = _find("sql")
"""The desired state of the schema, one readable truth."""
