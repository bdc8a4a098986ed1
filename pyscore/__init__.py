"""Reputation scores that live inside PostgreSQL.

The work is done by the database (schema ``builder_score``); this package installs that schema,
reads what it keeps, and talks to people.

    from pyscore import ScoreReader
    ScoreReader(engine).leaderboard(20)
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyscore.async_reader import AsyncScoreReader
    from pyscore.cache import AsyncProfileCache, ProfileCache
    from pyscore.errors import BadArgumentError, PyscoreError, UnknownUserError
    from pyscore.listener import AsyncScoreListener, ScoreListener
    from pyscore.loaders import ProfileLoader, ScoreLoader
    from pyscore.reader import ScoreReader
    from pyscore.scores import Explanation, Page, Profile, Signal, Tier, UserScore

__version__ = version("pyscore")

__all__ = [
    "AsyncProfileCache",
    "AsyncScoreListener",
    "AsyncScoreReader",
    "BadArgumentError",
    "Explanation",
    "Page",
    "Profile",
    "ProfileCache",
    "ProfileLoader",
    "PyscoreError",
    "ScoreListener",
    "ScoreLoader",
    "ScoreReader",
    "Signal",
    "Tier",
    "UnknownUserError",
    "UserScore",
]

_HOMES = {
    "BadArgumentError": "errors",
    "PyscoreError": "errors",
    "UnknownUserError": "errors",
    "AsyncScoreReader": "async_reader",
    "ProfileLoader": "loaders",
    "ScoreLoader": "loaders",
    "AsyncProfileCache": "cache",
    "ProfileCache": "cache",
    "AsyncScoreListener": "listener",
    "ScoreListener": "listener",
    "ScoreReader": "reader",
    "Explanation": "scores",
    "Page": "scores",
    "Profile": "scores",
    "Signal": "scores",
    "Tier": "scores",
    "UserScore": "scores",
}


def __getattr__(name: str) -> Any:
    # imported when asked for: `import pyscore` alone loads no database driver
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"pyscore.{_HOMES[name]}"), name)
