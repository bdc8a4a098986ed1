"""The formula in force, and what it makes of raw values: the database computes, not we."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from psycopg import Connection, Cursor
from psycopg.rows import dict_row, tuple_row

ORDER = ("shipped", "vouches", "impact", "profile", "age")
"""The signals, as explain() orders them."""

Raw: TypeAlias = tuple[str, float]
"""A signal, and a raw value of it."""

# The curves of builder_score.compute(), in the same operations; a test holds the two together.
_POINTS = """
select q.signal, q.raw, least(s.max_points, case
           when q.signal in ('shipped', 'vouches') then s.scale * ln(q.raw + 1) / ln(2)
           when q.signal = 'impact' then s.scale * log10(1 + q.raw)
           when q.signal = 'profile' then s.scale * q.raw
           when q.signal = 'age' then s.scale * q.raw / 365
       end) as points
from unnest(%s::text[], %s::double precision[]) as q(signal, raw)
join builder_score.signals as s on s.signal = q.signal
"""

# reach: the raw value from which on there are no more points; null where nobody gets there
_RULES = """
select s.signal, s.max_points, s.scale, s.description,
       case when s.scale > s.max_points * 1e-6 then case
           when s.signal in ('shipped', 'vouches') then
               nullif(power(2, least(s.max_points / s.scale, 60)), power(2, 60)) - 1
           when s.signal = 'impact' then
               nullif(power(10, least(s.max_points / s.scale, 18)), power(10, 18)) - 1
           when s.signal = 'profile' then nullif(least(s.max_points / s.scale, 1.0001), 1.0001)
           when s.signal = 'age' then 365 * s.max_points / s.scale
       end end as reach
from builder_score.signals as s
"""

_SCORES = """
select e.example,
       round(round(least(greatest(sum(e.points), 0), 100)::numeric, 6), %s)
from unnest(%s::integer[], %s::double precision[]) as e(example, points)
group by e.example
"""

# Which of the host's columns count: those that attach() put into the views; detached, those that it
# would. The catalogue says so to any role.
_COLUMNS = """
select t.name::text, array_agg(distinct a.attname::text)
from builder_score.host as h
cross join (values ('users', 'host_users'), ('projects', 'host_projects')) as t(name, view)
join pg_namespace as n on n.nspname = h.host_schema
join pg_class as c on c.relnamespace = n.oid and c.relname = t.name
join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
left join pg_class as v
    on v.relnamespace = 'builder_score'::regnamespace and v.relname = t.view
where v.oid is null or exists (
    select from pg_rewrite as r
    join pg_depend as d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
    where r.ev_class = v.oid
      and d.refclassid = 'pg_class'::regclass and d.refobjid = c.oid and d.refobjsubid = a.attnum)
group by t.name
"""

_PROFILE = ("avatar_url", "headline", "bio", "primary_role", "timezone", "contact_links")


@dataclass(frozen=True, slots=True)
class Rule:
    """A signal's row of the formula.

    Attributes:
        signal: Its name.
        max_points: The most it can be worth; 0: it is off.
        scale: The factor of its curve.
        description: The row's own words.
        reach: The raw value from which on it is worth no more; None where nobody gets there.
    """

    signal: str
    max_points: float
    scale: float
    description: str
    reach: float | None

    @property
    def is_on(self) -> bool:
        """Whether anybody can get points for it."""
        return self.max_points > 0 and self.scale > 0


@dataclass(frozen=True, slots=True)
class Formula:
    """All that decides what a score is.

    Attributes:
        rules: By signal, in `ORDER`; one that has no row is off.
        shipped: The statuses that mean shipped.
        confirmed: The statuses that mean confirmed.
        impact_keys: What counts as impact beside stars.
        profile_fields: Those that count, since attach() found them.
        has_created_at: Whether it found a moment of sign-up.
        has_stars: Whether it found stars.
        has_metrics: Whether it found impact metrics.
        decimals: Of a stored score.
        debounce: Seconds between two computations of a user's score.
    """

    rules: dict[str, Rule]
    shipped: tuple[str, ...]
    confirmed: tuple[str, ...]
    impact_keys: tuple[str, ...]
    profile_fields: tuple[str, ...]
    has_created_at: bool
    has_stars: bool
    has_metrics: bool
    decimals: int
    debounce: float


def read(connection: Connection[Any]) -> Formula:
    """Read the formula.

    Args:
        connection: Of a role that may read the formula, such as the operator.
    """
    with Cursor(connection, row_factory=dict_row) as cursor:
        found = {row["signal"]: Rule(**row) for row in cursor.execute(_RULES)}
    rules = {name: found.get(name, Rule(name, 0, 0, "", None)) for name in ORDER}
    statuses = _tuples(
        connection,
        "select meaning, status from builder_score.statuses order by meaning, status",
    )
    keys = _tuples(connection, "select key from builder_score.impact_keys order by key")
    columns: dict[str, list[str]] = dict(_tuples(connection, _COLUMNS))
    ((decimals,),) = _tuples(connection, "select score_decimals from builder_score.host")
    ((debounce,),) = _tuples(
        connection,
        "select extract(epoch from debounce_window)::float8 from builder_score.settings",
    )
    users, projects = columns.get("users", []), columns.get("projects", [])
    return Formula(
        rules,
        shipped=tuple(status for meaning, status in statuses if meaning == "shipped"),
        confirmed=tuple(status for meaning, status in statuses if meaning == "confirmed"),
        impact_keys=tuple(key for (key,) in keys),
        profile_fields=tuple(field for field in _PROFILE if field in users),
        has_created_at="created_at" in users,
        has_stars="github_stars" in projects,
        has_metrics="impact_metrics" in projects,
        decimals=decimals,
        debounce=debounce,
    )


def points(connection: Connection[Any], raws: Iterable[Raw]) -> dict[Raw, float]:
    """Ask the database what raw values are worth, by the formula in force.

    Args:
        connection: As for `read`.
        raws: Signals that have a row, each with a value that is not negative.
    """
    asked = sorted(set(raws))
    rows = _tuples(
        connection, _POINTS, [signal for signal, _ in asked], [float(raw) for _, raw in asked]
    )
    return {(signal, raw): worth for signal, raw, worth in rows}


def scores(connection: Connection[Any], examples: list[list[float]], decimals: int) -> list[float]:
    """Ask the database what score points add up to.

    Args:
        connection: As for `read`.
        examples: The points of each.
        decimals: Of a stored score.
    """
    pairs = [(place, worth) for place, parts in enumerate(examples) for worth in parts]
    rows = _tuples(
        connection,
        _SCORES,
        decimals,
        [place for place, _ in pairs],
        [float(worth) for _, worth in pairs],
    )
    found = {place: float(score) for place, score in rows}
    return [found.get(place, 0.0) for place in range(len(examples))]


def _tuples(connection: Connection[Any], query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with Cursor(connection, row_factory=tuple_row) as cursor:
        return cursor.execute(query.encode(), parameters or None).fetchall()
