"""The score in plain Python, from the rows of the host's three tables: what the tests believe.

    signal   raw value                                                          points
    shipped  projects owned that are shipped                                    10 log2(n + 1)
    vouches  distinct other people with a confirmed collaboration, either way   8 log2(n + 1)
    impact   stars and metrics of all projects owned                            4 log10(n + 1)
    profile  share of the profile fields filled                                 15 share
    age      whole days since sign-up                                           10 days / 365

Each is cut off at its maximum. The factors, the maxima and the words that mean shipped, confirmed
and impact are rows in tables. The sum is clamped to 0..100, rounded to 6 decimals, then to what
users.builder_score holds; halves go away from zero.

    scores(db)            every user's Score, age as of the user's last recalculation
    assert_all_right(db)  nothing is left to do, and every stored score is the one computed here
"""

import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, ROUND_HALF_UP, Context, Decimal, localcontext
from typing import Any, cast

from psycopg import Connection, sql
from psycopg.rows import dict_row

TEXT_FIELDS = ("avatar_url", "headline", "bio", "primary_role", "timezone")
WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006"
    "\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
SECONDS_A_DAY = 86400
# People type numbers of a million digits.
BIG_NUMBERS = Context(prec=50, Emax=MAX_EMAX, Emin=MIN_EMIN)


@dataclass(frozen=True)
class Signal:
    raw: Decimal
    points: float


@dataclass(frozen=True)
class Score:
    """One user's signals by name, their sum with 6 decimals, and what the column should hold."""

    signals: dict[str, Signal]
    exact: Decimal
    stored: Decimal


@dataclass(frozen=True)
class Person:
    """A row of users: its columns as text, and moments in seconds since 1970."""

    id: Any
    profile: dict[str, str | None]
    created_at: Decimal | None
    as_of: Decimal
    builder_score: Decimal | None


@dataclass(frozen=True)
class Project:
    id: Any
    owner: Any
    status: str | None
    stars: object
    metrics: dict[str, object]


@dataclass(frozen=True)
class Collaboration:
    project: Any
    user: Any
    status: str | None


@dataclass(frozen=True)
class Formula:
    maximum: dict[str, float]
    scale: dict[str, float]
    shipped: set[str]
    confirmed: set[str]
    impact_keys: set[str]

    def signal(self, name: str, raw: Decimal, curve: Callable[[Decimal], float]) -> Signal:
        if name not in self.maximum:
            return Signal(raw, 0.0)
        return Signal(raw, min(self.maximum[name], self.scale[name] * curve(raw)))


@dataclass(frozen=True)
class Community:
    people: list[Person]
    projects: list[Project]
    collaborations: list[Collaboration]
    formula: Formula
    decimals: int


def scores(db: Connection[Any]) -> dict[Any, Score]:
    """Every user's score by id; age as of score_state.computed_at, or as of now without one."""
    community = _read(db)
    return {person.id: score_of(person, community) for person in community.people}


def assert_all_right(db: Connection[Any]) -> None:
    """Nothing is queued or given up, nobody gone is remembered, every stored score is right."""
    left = db.execute("select * from builder_score.score_recalc_queue").fetchall()
    assert left == [], "the queue is not empty"
    assert db.execute("select * from builder_score.backfill").fetchall() == []
    assert db.execute("select * from builder_score.score_dead_letter").fetchall() == []

    community = _read(db)
    remembered = dict(db.execute("select user_id, score from builder_score.score_state").fetchall())
    expected = {person.id: score_of(person, community).stored for person in community.people}
    stored = {person.id: person.builder_score for person in community.people}
    assert stored == expected, "users.builder_score is not what the oracle computes"
    assert remembered == expected, "score_state.score is not what the oracle computes"


def is_filled(text: str | None) -> bool:
    return text is not None and text.strip(WHITE_SPACE) != ""


def is_filled_object(text: str | None) -> bool:
    return json_object(text) != {}


def count(value: object) -> Decimal:
    """A value that somebody typed: a number, or text of the form 12 or 12.5; else nothing."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        value = Decimal(value)
    if isinstance(value, Decimal) and value.is_finite() and value > 0:
        return value
    return Decimal(0)


def score_of(person: Person, community: Community) -> Score:
    formula = community.formula
    owned = [project for project in community.projects if project.owner == person.id]

    shipped = sum(project.status in formula.shipped for project in owned)

    owner_of = {project.id: project.owner for project in community.projects}
    people: set[Any] = set()
    for collaboration in community.collaborations:
        if collaboration.status in formula.confirmed:
            both = {collaboration.user, owner_of.get(collaboration.project)}
            if person.id in both:
                people |= both
    people -= {person.id, None}

    impact = Decimal(0)
    with localcontext(BIG_NUMBERS):
        for project in owned:
            impact += count(project.stars)
            impact += sum(count(project.metrics.get(key)) for key in formula.impact_keys)

    filled = [
        is_filled_object(value) if field == "contact_links" else is_filled(value)
        for field, value in person.profile.items()
    ]
    share = Decimal(sum(filled)) / len(filled) if filled else Decimal(0)

    days = Decimal(0)
    if person.created_at is not None and person.created_at < person.as_of:
        days = (person.as_of - person.created_at) / SECONDS_A_DAY
        days = days.to_integral_value("ROUND_FLOOR") if days.is_finite() else days

    signals = {
        "shipped": formula.signal("shipped", Decimal(shipped), _log2_of_one_plus),
        "vouches": formula.signal("vouches", Decimal(len(people)), _log2_of_one_plus),
        "impact": formula.signal("impact", impact, _log10_of_one_plus),
        "profile": formula.signal("profile", share, float),
        "age": formula.signal("age", days, lambda n: float(n) / 365),
    }
    total = min(max(sum(signal.points for signal in signals.values()), 0.0), 100.0)
    exact = _round(Decimal(total), 6)
    return Score(signals, exact, _round(exact, community.decimals))


def _log2_of_one_plus(n: Decimal) -> float:
    return math.log2(float(n) + 1)


def _log10_of_one_plus(n: Decimal) -> float:
    return float(BIG_NUMBERS.log10(BIG_NUMBERS.add(n, 1)))


def _round(value: Decimal, decimals: int) -> Decimal:
    return value.quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)


# Reading ------------------------------------------------------------------------------------------


def _read(db: Connection[Any]) -> Community:
    computed_at = dict(
        db.execute(
            "select user_id, extract(epoch from computed_at) from builder_score.score_state"
        ).fetchall()
    )
    (now,) = db.execute("select extract(epoch from clock_timestamp())").fetchall()[0]
    types = _column_types(db, "users")
    people = [
        Person(
            id=row["id"],
            profile={
                field: row[field] for field in (*TEXT_FIELDS, "contact_links") if field in row
            },
            created_at=row.get("created_at") if _is_moment(types.get("created_at")) else None,
            as_of=computed_at.get(row["id"]) or now,
            builder_score=None if row["builder_score"] is None else Decimal(row["builder_score"]),
        )
        for row in _rows(db, "users", types)
    ]

    star_types = _column_types(db, "projects")
    type_of_stars = star_types.get("github_stars", "")
    projects: list[Project] = []
    for row in _rows(db, "projects", star_types):
        stars = row.get("github_stars")
        if stars is not None and type_of_stars.startswith(_NUMERIC):
            stars = Decimal(stars)
        elif type_of_stars in ("json", "jsonb"):
            stars = _json(stars)
        metrics = json_object(row.get("impact_metrics"))
        projects.append(Project(row["id"], row["owner_id"], row["status"], stars, metrics))

    collaborations = [
        Collaboration(row["project_id"], row["user_id"], row["status"])
        for row in _rows(db, "project_collaborators", _column_types(db, "project_collaborators"))
    ]
    return Community(
        people, projects, collaborations, _formula(db), _decimals(types["builder_score"])
    )


def _formula(db: Connection[Any]) -> Formula:
    signals = db.execute("select signal, max_points, scale from builder_score.signals").fetchall()
    statuses = db.execute("select meaning, status from builder_score.statuses").fetchall()
    keys = db.execute("select key from builder_score.impact_keys").fetchall()
    return Formula(
        maximum={signal: maximum for signal, maximum, _ in signals},
        scale={signal: scale for signal, _, scale in signals},
        shipped={status for meaning, status in statuses if meaning == "shipped"},
        confirmed={status for meaning, status in statuses if meaning == "confirmed"},
        impact_keys={key for (key,) in keys},
    )


def _decimals(type_name: str) -> int:
    """Decimals that users.builder_score holds: none in whole numbers, else one."""
    return 0 if type_name in ("smallint", "integer", "bigint") or type_name.endswith(",0)") else 1


_NUMERIC = ("smallint", "integer", "bigint", "numeric", "real", "double precision")


def _is_moment(type_name: str | None) -> bool:
    return type_name is not None and type_name.startswith(("timestamp", "date"))


def _host_schema(db: Connection[Any]) -> str:
    return db.execute("select host_schema::text from builder_score.host").fetchall()[0][0]


def _column_types(db: Connection[Any], table: str) -> dict[str, str]:
    """Each column's type, domains resolved."""
    return dict(
        db.execute(
            """
            with recursive typed as (
                select attname, atttypid as type_id, atttypmod as typmod from pg_attribute
                where attrelid = to_regclass(format('%%I.%%I', %s::text, %s::text))
                  and attnum > 0 and not attisdropped
                union all
                select d.attname, t.typbasetype, t.typtypmod
                from typed as d join pg_type as t on t.oid = d.type_id where t.typtype = 'd'
            )
            select d.attname, format_type(d.type_id, d.typmod)
            from typed as d join pg_type as t on t.oid = d.type_id where t.typtype <> 'd'
            """,
            [_host_schema(db), table],
        ).fetchall()
    )


def _rows(db: Connection[Any], table: str, types: dict[str, str]) -> list[dict[str, Any]]:
    """A table's rows: keys as they are, moments in seconds since 1970, everything else as text."""

    def expression(column: str, type_name: str) -> sql.Composable:
        name = sql.Identifier(column)
        if column == "id" or column.endswith("_id"):
            return name
        if _is_moment(type_name):
            # Of a naive timestamp this is the moment in UTC, whatever the session's time zone.
            return sql.SQL("extract(epoch from {0}) as {0}").format(name)
        return sql.SQL("{0}::text as {0}").format(name)

    columns = sql.SQL(", ").join(expression(*column) for column in types.items())
    with db.cursor(row_factory=dict_row) as cursor:
        query = sql.SQL("select {} from {}").format(
            columns, sql.Identifier(_host_schema(db), table)
        )
        return cursor.execute(query).fetchall()


def json_object(text: str | None) -> dict[str, object]:
    """The JSON object, its numbers as decimals; an empty one where the text holds anything else."""
    value = _json(text)
    return cast(dict[str, object], value) if isinstance(value, dict) else {}


def _json(text: str | None) -> object:
    """Any JSON value, its numbers as decimals; None where the text is no JSON."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)  # people nest
    try:
        return json.loads(
            text or "", parse_int=Decimal, parse_float=Decimal, parse_constant=_no_constant
        )
    except (ValueError, RecursionError):
        return None
    finally:
        sys.setrecursionlimit(limit)


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON, whatever Python says")
