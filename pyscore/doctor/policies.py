"""Row level security: a policy that hides rows from us makes scores silently too low."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyscore.doctor.case import ATTACH, OWNER, Case
from pyscore.doctor.findings import Verdict, fail, ok, warn

_OURS = """
    select c.oid, array_agg(p.polname::text) as names
    from pg_class as c
    join pg_policy as p on p.polrelid = c.oid and p.polpermissive
        and p.polname in ('builder_score_read', 'builder_score_write') and %s::oid = any(p.polroles)
    where c.oid = any(%s::oid[])
    group by c.oid
"""

# As attach() looks for them. Whom to give a policy that is everybody's: whoever may use the table,
# be it by a grant on a column or to PUBLIC, or as pg_read_all_data: nobody else comes to see more.
_RESTRICTIVE = """
    select p.polrelid as oid, p.polname as name, quote_ident(p.polname) as quoted,
           0 = any(p.polroles) as for_everybody,
           %(owner)s::oid = any(p.polroles) as for_us,
           array(select quote_ident(r.rolname) from pg_roles as r
                 where r.oid = any(p.polroles) and r.oid <> %(owner)s
                   and pg_has_role(%(owner)s::oid, r.oid, 'member') order by 1) as through,
           array(select quote_ident(r.rolname) from pg_roles as r
                 where r.oid = any(p.polroles) and r.oid <> %(owner)s order by 1) as others,
           array(with allowed as (
                     select r.oid, r.rolname from pg_roles as r
                     where not r.rolsuper and not r.rolbypassrls
                       and not pg_has_role(%(owner)s::oid, r.oid, 'member')
                       and (has_any_column_privilege(r.oid, c.oid, 'select, insert, update')
                            or has_table_privilege(r.oid, c.oid, 'delete')))
                 select quote_ident(r.rolname) from allowed as r
                 where not exists (select from allowed as g
                                   where g.oid <> r.oid and pg_has_role(r.oid, g.oid, 'usage'))
                 order by 1) as users_of_table
    from pg_policy as p join pg_class as c on c.oid = p.polrelid
    where p.polrelid = any(%(oids)s::oid[]) and not p.polpermissive and p.polcmd in ('*', 'r', 'w')
      and exists (select from unnest(p.polroles) as r(oid)
                  where r.oid = 0 or pg_has_role(%(owner)s::oid, r.oid, 'member'))
    order by p.polrelid::regclass::text, p.polname
"""

_LETS = "select builder_score.lets_everything(%s, %s, %s) as all"

RECOMPUTE = "SELECT builder_score.enqueue_everyone('a policy hid rows');"


def policies(case: Case) -> Iterator[Verdict]:
    """Look whether our role sees every row, also on the day row level security is switched on."""
    if not case.is_attached:
        return
    owner = case.owner
    if owner["bypasses"]:
        yield ok(f"row level security does not apply to {owner['rolname']}")
        return
    if owner["rolname"] != OWNER:
        yield from _installers(case)
        return
    names = {row["oid"]: row["names"] for row in case.rows(_OURS, owner["oid"], case.table_oids)}
    found: list[Verdict] = []
    for name, table in case.tables.items():
        wanted = ["builder_score_read", *(["builder_score_write"] if name == "users" else [])]
        missing = [one for one in wanted if one not in names.get(table["oid"], ())]
        if missing:
            found.append(_missing(case, table, ", ".join(missing)))
    by_oid = {table["oid"]: table for table in case.tables.values()}
    for policy in case.named(_RESTRICTIVE, owner=owner["oid"], oids=case.table_oids):
        found.append(_restrictive(case, by_oid[policy["oid"]], policy))
    on = [table["said"] for table in case.tables.values() if _applies(case, table)]
    said = (
        f"on {', '.join(on)}, whose every row our policies let us see" if on else "in nobody's way"
    )
    yield from found or [ok(f"row level security is {said}")]


def _installers(case: Case) -> Iterator[Verdict]:
    """Look at what holds for an installer that owns everything itself: attach() makes no policy."""
    owner, found = case.owner, list[Verdict]()
    for name, table in case.tables.items():
        if not _applies(case, table):
            continue
        commands = ["r", "w"] if name == "users" else ["r"]
        if all(case.row(_LETS, table["oid"], owner["rolname"], one)["all"] for one in commands):
            continue
        found.append(
            fail(
                f"row level security is forced on {table['said']}, also on {owner['rolname']}, who "
                "owns builder_score: scores are too low",
                f"-- where the application never connects as {owner['rolname']} (else see roles):",
                f"CREATE POLICY every_row ON {table['said']} TO {owner['quoted']} USING (true);",
                RECOMPUTE,
            )
        )
    yield from found or [ok(f"row level security is in {owner['rolname']}'s way nowhere")]


def _applies(case: Case, table: dict[str, Any]) -> bool:
    exempt = table["owner"] == case.owner["rolname"] and not table["relforcerowsecurity"]
    return table["relrowsecurity"] and not exempt


def _missing(case: Case, table: dict[str, Any], missing: str) -> Verdict:
    if _applies(case, table):
        return fail(f"{table['said']} lacks our policy {missing}: scores are too low", ATTACH)
    return warn(
        f"{table['said']} lacks our policy {missing}: scores would be too low as soon as row level "
        "security is switched on",
        ATTACH,
    )


def _restrictive(case: Case, table: dict[str, Any], policy: dict[str, Any]) -> Verdict:
    owner, on = case.owner["quoted"], f"{policy['quoted']} ON {table['said']}"
    if policy["for_everybody"]:
        # with pg_read_all_data there is always one
        remedy = (
            "-- whoever may use the table today; roles that are to come have to be added:\n"
            f"ALTER POLICY {on} TO {', '.join(policy['users_of_table'])};"
        )
    elif policy["for_us"]:
        roles = [role for role in policy["others"] if role not in policy["through"]]
        remedy = f"ALTER POLICY {on} TO {', '.join(roles)};" if roles else f"DROP POLICY {on};"
    else:
        remedy = f"REVOKE {', '.join(policy['through'])} FROM {owner};"
    said = (
        f"restrictive policy {policy['name']} on {table['said']} applies to {case.owner['rolname']}"
    )
    if _applies(case, table):
        return fail(f"{said}: scores are too low", remedy, RECOMPUTE)
    return warn(f"{said}, and would hide rows as soon as row level security is switched on", remedy)
