"""What a database holds, as text that can be compared: no OIDs, no moments."""

import subprocess
from typing import Any

from psycopg import Connection

from pyscore.cluster import PrivateCluster

# Each query: what it is, its name, its definition. Schemas of the server itself are left out.
_OBJECTS = r"""
with space as (
    select * from pg_namespace where nspname !~ '^pg_' and nspname <> 'information_schema'
),
relation as (
    select c.*, c.oid::regclass::text as name
    from pg_class as c where c.relnamespace in (select oid from space)
)
select 'schema', nspname::text, jsonb_build_array(nspowner::regrole, nspacl)
from space
union all
select 'relation', r.name, jsonb_build_array(
    r.relkind, r.relowner::regrole, r.relacl, r.relpersistence, r.relrowsecurity,
    r.relforcerowsecurity, r.relreplident, r.reloptions, pg_get_expr(r.relpartbound, r.oid),
    case when r.relkind in ('v', 'm') then pg_get_viewdef(r.oid) end,
    array(select i.inhparent::regclass from pg_inherits as i
          where i.inhrelid = r.oid order by i.inhseqno))
from relation as r
union all
select 'column', r.name || '.' || a.attname, jsonb_build_array(
    row_number() over (partition by r.oid order by a.attnum),
    format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid),
    a.attidentity, a.attgenerated, a.attacl, nullif(a.attcollation, 0)::regcollation,
    -- pg_attver is the server's own stamp of when the column was made; pg_dump leaves it out too
    array(select o from unnest(a.attoptions) as o where o not like 'pg\_attver=%' order by o))
from relation as r
join pg_attribute as a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
left join pg_attrdef as d on d.adrelid = a.attrelid and d.adnum = a.attnum
union all
select 'sequence', r.name, to_jsonb(s) - 'seqrelid' - 'seqtypid'
from pg_sequence as s join relation as r on r.oid = s.seqrelid
union all
select 'index', i.indexrelid::regclass::text, jsonb_build_array(
    pg_get_indexdef(i.indexrelid), i.indisvalid, i.indisready, i.indisclustered, i.indisreplident)
from pg_index as i join relation as r on r.oid = i.indrelid
union all
select 'constraint',
    concat(c.conname, ' on ', nullif(c.conrelid, 0)::regclass, nullif(c.contypid, 0)::regtype),
    jsonb_build_array(pg_get_constraintdef(c.oid), c.convalidated)
from pg_constraint as c where c.connamespace in (select oid from space)
union all
select 'trigger', t.tgname || ' on ' || r.name,
    jsonb_build_array(pg_get_triggerdef(t.oid), t.tgenabled)
from pg_trigger as t join relation as r on r.oid = t.tgrelid
where not t.tgisinternal
union all
select 'rule', w.rulename || ' on ' || r.name, to_jsonb(pg_get_ruledef(w.oid))
from pg_rewrite as w join relation as r on r.oid = w.ev_class
union all
select 'policy', p.polname || ' on ' || r.name, jsonb_build_array(
    p.polcmd, p.polpermissive, array(select m::regrole from unnest(p.polroles) as m order by m),
    pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
from pg_policy as p join relation as r on r.oid = p.polrelid
union all
select 'routine', p.oid::regprocedure::text,
    jsonb_build_array(pg_get_functiondef(p.oid), p.proowner::regrole, p.proacl)
from pg_proc as p where p.pronamespace in (select oid from space) and p.prokind in ('f', 'p')
union all
select 'type', t.oid::regtype::text, jsonb_build_array(
    t.typtype, t.typowner::regrole, t.typacl, nullif(t.typbasetype, 0)::regtype, t.typnotnull,
    t.typdefault, nullif(t.typcollation, 0)::regcollation)
from pg_type as t where t.typnamespace in (select oid from space)
union all
select 'event trigger', e.evtname, jsonb_build_array(e.evtevent, e.evtfoid::regproc, e.evtenabled)
from pg_event_trigger as e
union all
select 'extension', e.extname, to_jsonb(e.extversion)
from pg_extension as e
union all
select 'default privileges',
    concat_ws(' ', a.defaclrole::regrole, a.defaclnamespace::regnamespace, a.defaclobjtype),
    to_jsonb(a.defaclacl)
from pg_default_acl as a
union all
select 'comment', o.type || ' ' || o.identity, to_jsonb(d.description)
from pg_description as d
cross join lateral pg_identify_object(d.classoid, d.objoid, d.objsubid) as o
where d.objoid >= 16384  -- below are the server's own objects
union all
select 'role', r.rolname, jsonb_build_array(
    r.rolsuper, r.rolinherit, r.rolcreaterole, r.rolcreatedb, r.rolcanlogin, r.rolbypassrls,
    r.rolconnlimit, shobj_description(r.oid, 'pg_authid'))
from pg_roles as r where r.rolname like 'builder\_score\_%'
"""

# The rows that an install writes, without the moments in them.
_ROWS = r"""
select 'row', 'settings', to_jsonb(t) from builder_score.settings as t
union all
select 'row', 'signal ' || t.signal, to_jsonb(t) from builder_score.signals as t
union all
select 'row', concat_ws(' ', 'status', t.meaning, t.status), 'null' from builder_score.statuses as t
union all
select 'row', 'impact key ' || t.key, to_jsonb(t) from builder_score.impact_keys as t
union all
select 'row', 'host', to_jsonb(t) - 'attached_at' - 'refreshed_at' from builder_score.host as t
union all
select 'row', 'worker ' || t.worker, to_jsonb(t) from builder_score.worker_status as t
union all
select 'row', concat_ws(' ', 'addition', t.kind, t.schema_name, t.table_name, t.object_name),
    'null'
from builder_score.host_additions as t
union all
select 'row', 'queue', jsonb_agg(to_jsonb(t) - '{id,not_before,enqueued_at}'::text[] order by t.id)
from builder_score.score_recalc_queue as t
"""

Catalogue = dict[str, str]


def catalogue(connection: Connection[Any]) -> Catalogue:
    """Everything in the database, ours and the host's: "kind name" to its definition."""
    with connection.transaction():
        connection.execute("set local search_path = pg_catalog")  # so that all names are qualified
        found = connection.execute(_OBJECTS).fetchall()
        installed = "select to_regclass('builder_score.host') is not null"
        if connection.execute(installed).fetchall() == [(True,)]:
            found += connection.execute(_ROWS).fetchall()
    everything = {f"{kind} {name}": str(definition) for kind, name, definition in found}
    assert len(everything) == len(found), "two objects of one name: the names are not exact enough"
    return everything


def without_version_table(everything: Catalogue) -> Catalogue:
    """Leave out Alembic's table: the one thing that sql/ applied by hand lacks."""
    return {
        name: text
        for name, text in everything.items()
        if "builder_score.alembic_version" not in name
    }


def dump(server: PrivateCluster, address: str, *options: str) -> str:
    """Dump a database with pg_dump, rows included unless an option says otherwise."""
    done = subprocess.run(
        # without a fixed key every dump has one of its own
        [server.program("pg_dump"), "--restrict-key=x", *options, address],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def schema_dump(server: PrivateCluster, address: str) -> str:
    """Dump a database's schema: what downgrade promises to restore, byte for byte."""
    return dump(server, address, "--schema-only")
