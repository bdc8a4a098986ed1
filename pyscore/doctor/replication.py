"""Logical replication, in both directions."""

from __future__ import annotations

from collections.abc import Iterator

from pyscore.doctor.case import Case
from pyscore.doctor.findings import Verdict, fail, ok, warn

_FOR_ALL = """
    select p.pubname as name, quote_ident(p.pubname) as quoted,
           concat_ws(', ', case when p.pubinsert then 'insert' end,
                     case when p.pubupdate then 'update' end,
                     case when p.pubdelete then 'delete' end,
                     case when p.pubtruncate then 'truncate' end) as actions,
           p.pubviaroot as via_root,
           (select string_agg(quote_ident(n.nspname), ', ' order by n.nspname)
            from pg_namespace as n
            where n.nspname not in ('builder_score', 'cron', 'information_schema')
              and n.nspname !~ '^pg_'
              and exists (select from pg_class as c
                          where c.relnamespace = n.oid and c.relkind in ('r', 'p'))) as schemas
    from pg_publication as p where p.puballtables order by p.pubname
"""

# PostgreSQL refuses the worker's UPDATE of such a table
_WITHOUT_IDENTITY = """
    select string_agg(distinct t.pubname, ', ') as publications, c.oid::regclass::text as said
    from pg_publication_tables as t
    join pg_publication as p on p.pubname = t.pubname and p.pubupdate
    join pg_namespace as n on n.nspname = t.schemaname
    join pg_class as c on c.relnamespace = n.oid and c.relname = t.tablename
    where c.oid in (select %s::oid union select i.relid from pg_partition_tree(%s::oid) as i)
      and case c.relreplident
          when 'f' then false
          when 'n' then true
          when 'd' then not exists (
              select from pg_index as i where i.indrelid = c.oid and i.indisprimary)
          else not exists (
              select from pg_index as i where i.indrelid = c.oid and i.indisreplident) end
    group by c.oid
"""

_WITHOUT_COLUMN = """
    select string_agg(t.pubname, ', ' order by t.pubname) as publications,
           c.oid::regclass::text as said
    from pg_publication_tables as t
    join pg_namespace as n on n.nspname = t.schemaname
    join pg_class as c on c.relnamespace = n.oid and c.relname = t.tablename
    where c.relname = 'users' and not exists (
        select from pg_attribute as a
        where a.attrelid = c.oid and a.attname = 'builder_score' and not a.attisdropped)
    group by c.oid
"""

_SUBSCRIBED = """
    select s.subname as name, string_agg(c.oid::regclass::text, ', ' order by c.relname) as tables
    from pg_subscription_rel as r
    join pg_class as c on c.oid = r.srrelid
    cross join lateral (select s.subname from pg_subscription as s where s.oid = r.srsubid) as s
    where r.srrelid in (
        select t.oid from unnest(%s::oid[]) as t(oid)
        union
        select p.relid from unnest(%s::oid[]) as t(oid)
        cross join lateral pg_partition_tree(t.oid) as p)
    group by s.subname order by s.subname
"""

_FIRING_ALWAYS = """
    select count(*) = count(*) filter (where t.tgenabled = 'A') as always
    from pg_trigger as t join pg_proc as p on p.oid = t.tgfoid
    where t.tgrelid = any(%s::oid[]) and p.pronamespace = to_regnamespace('builder_score')
"""


def publications(case: Case) -> Iterator[Verdict]:
    """Look whether subscribers would stop at our tables, or the worker at a publication."""
    fine = True
    for row in case.rows(_FOR_ALL):
        fine = False
        via_root = ", publish_via_partition_root" if row["via_root"] else ""
        yield warn(
            f"publication {row['name']} is FOR ALL TABLES: a subscriber stops at the first change "
            "of ours, unless it has the schema builder_score and users.builder_score too",
            "-- unless all subscribers have them; each of them afterwards: ALTER SUBSCRIPTION ... "
            "REFRESH PUBLICATION",
            f"BEGIN; DROP PUBLICATION {row['quoted']}; CREATE PUBLICATION {row['quoted']} "
            f"FOR TABLES IN SCHEMA {row['schemas'] or 'public'} "
            f"WITH (publish = '{row['actions']}'{via_root}); COMMIT;",
        )
    if not _is_installed(case):
        for row in case.rows(_WITHOUT_COLUMN):
            fine = False
            yield warn(
                f"publication {row['publications']} has {row['said']}: its subscribers stop when "
                "the column builder_score appears",
                "# on each subscriber first:",
                f"# ALTER TABLE {row['said']} ADD COLUMN builder_score integer DEFAULT 0;",
                "pyscore migrate --subscribers-ready",
            )
    elif (users := case.tables["users"]["oid"]) is not None:
        for row in case.rows(_WITHOUT_IDENTITY, users, users):
            fine = False
            yield fail(
                f"{row['said']} is published by {row['publications']} and has no replica identity: "
                "PostgreSQL refuses every update of it, ours too",
                f"ALTER TABLE {row['said']} REPLICA IDENTITY FULL;",
            )
    if fine:
        yield ok("none that publishes our tables, or keeps users from being written")


def _is_installed(case: Case) -> bool:
    return case.row("select to_regclass('builder_score.host') is not null as yes")["yes"]


def subscriptions(case: Case) -> Iterator[Verdict]:
    """Look whether the application's tables are written by a subscription, past our triggers."""
    found = case.rows(_SUBSCRIBED, case.table_oids, case.table_oids)
    if not found:
        yield ok("none writes the application's tables")
        return
    always = case.row(_FIRING_ALWAYS, case.table_oids)["always"]
    for row in found:
        said = f"subscription {row['name']} writes {row['tables']}"
        if case.paused is not None:
            yield ok(f"{said}: scores come with them, and nothing is computed here")
        elif always:
            yield ok(f"{said}: our triggers fire for that too, and scores are computed here")
        else:
            yield warn(
                f"{said}: triggers do not fire for that. Where the publisher has pyscore, scores "
                "come with the rows, and nothing is to be computed here",
                "pyscore pause --reason 'scores come by replication'",
            )
