"""The page: everything read in one snapshot, and rendered into one file."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any

from psycopg import Connection
from psycopg.rows import DictRow

import pyscore
from pyscore.cli.looking import Look, look_inside, snapshot
from pyscore.errors import PyscoreError
from pyscore.report import examples, formula, people, signals
from pyscore.report.curves import BOTTOM, HEIGHT, LEFT, RIGHT, WIDTH
from pyscore.report.health import health
from pyscore.report.spread import FEW, LOWS, spread
from pyscore.report.words import amount, short, shown
from pyscore.scores import UserScore

People = Callable[[], Sequence[UserScore]]
"""Reads the top of the leaderboard, in the transaction that there is."""

TITLE = "How scores are made"


def make(connection: Connection[DictRow], leaders: People | None, *, title: str = TITLE) -> str:
    """Make the page.

    Args:
        connection: As `pyscore.cli.options.installed` gives it; may be a standby's.
        leaders: Reads the leaderboard; None: for the public, without people and health.
        title: Of the page.

    Raises:
        PyscoreError: The extra `report` is missing.
        psycopg.Error: The role may not read what is needed.
    """
    template, style = _templates()
    with snapshot(connection):
        found = formula.read(connection)
        worth = formula.points(connection, [*signals.raws(found), *examples.raws(found)])
        scores = formula.scores(connection, examples.points(found, worth), found.decimals)
        counts = connection.execute("select * from builder_score.distribution()").fetchall()
        seen: Look | None = None
        top: Sequence[UserScore] = ()
        if leaders is not None:
            seen, top = look_inside(connection), leaders()
        at = _now(connection)
    spreading = spread(
        {Decimal(row["score"]): row["people"] for row in counts}, public=leaders is None
    )
    shares = {rule.signal: rule.max_points for rule in found.rules.values() if rule.is_on}
    values: dict[str, Any] = {
        "public": leaders is None,
        "title": shown(title),
        "version": pyscore.__version__,
        "at": at,
        "formula": found,
        "debounce": _minutes(found.debounce),
        "shares": shares,
        "shares_exceed": sum(shares.values()) >= 100,
        "highest": _highest(found, worth),
        "cards": signals.cards(found, worth),
        "examples": examples.examples(found, worth, scores),
        "spread": spreading,
        "ranges": len(LOWS),
        "columns": sorted(
            {(one.first, one.width) for one in (*spreading.ranges, *spreading.tiers)}
        ),
        "few": FEW,
        "leaders": people.places(top),
        "health": None if seen is None else health(seen),
        "canvas": {
            "width": WIDTH,
            "height": HEIGHT,
            "left": LEFT,
            "right": WIDTH - RIGHT,
            "floor": HEIGHT - BOTTOM,
        },
    }
    css = style(values)
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    return template(values | {"css": css, "css_digest": digest})


Render = Callable[[dict[str, Any]], str]


def _templates() -> tuple[Render, Render]:
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError:
        raise PyscoreError(
            "the page is made with Jinja2; install it with: pip install 'pyscore[report]'"
        ) from None
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pyscore.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: dict[str, Any] = {
        "short": short,
        "amount": amount,
        "commands": partial(_commands, Markup),
    }
    environment.filters.update(filters)
    page, style = environment.get_template("page.html"), environment.get_template("style.css")
    # ours, and numbers: nothing that anybody else wrote is in it
    return page.render, lambda values: Markup(style.render(values))


def _commands(markup: Callable[[str], Any], text: str) -> Any:
    """Set apart what stands between backquotes; what is in the text is still escaped."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return text
    return markup("").join(
        markup("<code>%s</code>") % part if number % 2 else part
        for number, part in enumerate(parts)
    )


def _highest(found: formula.Formula, worth: Mapping[formula.Raw, float]) -> float | None:
    """Return the highest score there can be, where somebody can get there."""
    parts = [rule for rule in found.rules.values() if rule.is_on]
    if not all(rule.reach is not None or rule.signal == "profile" for rule in parts):
        return None
    return min(
        math.fsum(
            worth["profile", 1.0] if rule.signal == "profile" else rule.max_points for rule in parts
        ),
        100,
    )


def _now(connection: Connection[DictRow]) -> datetime:
    row = connection.execute("select now() at time zone 'UTC' as at").fetchone()
    assert row is not None  # one row
    return row["at"]


def _minutes(seconds: float) -> str:
    if seconds >= 120 and seconds % 60 == 0:
        return amount(seconds / 60, "minute")
    return amount(seconds, "second")
