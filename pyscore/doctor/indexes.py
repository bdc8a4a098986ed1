"""The indexes on the application's tables that scores and leaderboards need."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg

from pyscore.doctor.case import Case
from pyscore.doctor.findings import Verdict, fail, ok, warn

_NEEDED = """
    select n.index_name, n.key_definition, c.oid::regclass::text as said,
           builder_score.has_index(c.oid, n.key_columns) as present,
           format('%%I.%%I', s.nspname, n.index_name) as quoted,
           x.relkind as taken_kind, coalesce(i.indisvalid, true) as taken_valid,
           format('%%I', n.index_name || '_old') as aside
    from builder_score.needed_indexes() as n
    join pg_class as c on c.oid = any(%s::oid[]) and c.relname = n.table_name
    join pg_namespace as s on s.oid = c.relnamespace
    left join pg_class as x on x.relnamespace = s.oid and x.relname = n.index_name
    left join pg_index as i on i.indexrelid = x.oid
"""

# not those that somebody is building at this moment
_INVALID = """
    select i.indexrelid::regclass::text as said, c.relname as name,
           i.indrelid::regclass::text as on_table
    from pg_index as i
    join pg_class as c on c.oid = i.indexrelid and c.relkind = 'i'
    where not i.indisvalid
      and (i.indrelid = any(%s::oid[])
           or i.indrelid in (select c.oid from pg_class as c
                             where c.relnamespace = to_regnamespace('builder_score')))
      and not exists (
          select from pg_stat_progress_create_index as p where i.indexrelid = p.index_relid)
"""


def indexes(case: Case) -> Iterator[Verdict]:
    """Look whether each index that is needed is there, under whatever name, and valid."""
    needed = case.rows(_NEEDED, case.table_oids)
    missing = [row for row in needed if not row["present"]]
    fine = True
    statements: list[str] = []
    if missing:
        try:
            found = case.rows("select s as said from builder_score.missing_index_statements() as s")
            # a line each, to be copied
            statements = [f"{' '.join(row['said'].split())};" for row in found]
        except psycopg.errors.DuplicateTable:
            pass  # the rows say whose name is taken
    for row in missing:
        fine = False
        said = f"{row['said']} has no usable index on {row['key_definition']}"
        ours = [one for one in statements if row["index_name"] in one]
        if ours:
            yield fail(said, "-- each on its own, outside a transaction:", *ours)
        elif row["taken_kind"] == "i" and not row["taken_valid"]:
            yield fail(
                f"{said}: {row['quoted']} is not valid",
                f"REINDEX INDEX CONCURRENTLY {row['quoted']};",
            )
        elif row["taken_kind"] is not None:
            kind = "INDEX" if row["taken_kind"] in ("i", "I") else "TABLE"
            yield fail(
                f"{said}, and its name {row['quoted']} is taken",
                f"ALTER {kind} {row['quoted']} RENAME TO {row['aside']};",
                "# then run pyscore doctor again, which has the statements",
            )
        else:
            yield fail(said, "# mend the indexes below or above first")
    for row in case.rows(_INVALID, case.table_oids):
        if any(row["name"] == one["index_name"] for one in missing):
            continue
        fine = False
        yield warn(
            f"{row['said']} on {row['on_table']} is not valid: it slows writes down for nothing",
            f"-- or, where it is wanted: REINDEX INDEX CONCURRENTLY {row['said']};",
            f"DROP INDEX CONCURRENTLY {row['said']};",
        )
    if fine:
        yield ok(f"all {len(needed)} there and valid")
