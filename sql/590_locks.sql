-- How the host's tables are locked: for an instant, and never with the application queueing behind us.
-- reads: pg_catalog          writes: nothing
-- locks on host tables: none by itself

create function builder_score.lock_host_tables(
    table_names name[] default array['users', 'projects', 'project_collaborators']::name[],
    lock_mode text default 'access exclusive'
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '0.5s'
as $function$
-- reads: pg_inherits, pg_settings, pg_locks, pg_stat_activity
-- writes: nothing
-- Queries that come while we wait for a lock queue behind us, and a transaction of the application's may want what we
-- have while we want what it has. So all the locks together are waited for no longer than half a second, and half of
-- deadlock_timeout: nobody is held up for longer, and we are who gives up. Then all of them are let go, and tried
-- again later where builder_score.lock_wait allows.
declare
    v_most constant interval := least(
        interval '0.5 seconds',
        (select make_interval(secs => s.setting::integer / 2000.0) from pg_settings as s where s.name = 'deadlock_timeout'));
    v_patience constant interval := greatest(
        v_most, nullif(current_setting('builder_score.lock_wait', true), '')::interval);
    v_deadline constant timestamptz := clock_timestamp() + v_patience;
    v_nap double precision := 0.1;
    v_began timestamptz;
    v_table record;
    v_holders text;
begin
    if lock_mode not in ('share', 'access exclusive') then
        raise exception 'lock mode "%" is not one that a migration takes', lock_mode
            using errcode = 'invalid_parameter_value',
                  hint = 'Expected share or access exclusive.';
    end if;
    loop
        begin
            v_began := clock_timestamp();
            for v_table in
                with recursive tree as (
                    select n.place, 0 as depth, builder_score.host_table(n.name)::oid as id
                    from unnest(table_names) with ordinality as n(name, place)
                    union all
                    select t.place, t.depth + 1, i.inhrelid
                    from tree as t
                    join pg_inherits as i on i.inhparent = t.id
                    join pg_class as c on c.oid = i.inhrelid and c.relkind in ('r', 'p')   -- a foreign table cannot be locked
                )
                select x.id, x.id::regclass as name, x.depth < 0 as is_view
                from (
                    -- Before a table our view of it, as whatever reads through the view does: the other way round an
                    -- attach() that goes on to replace the view would wait for a batch that waits for the table.
                    select to_regclass('builder_score.' || v.view_name)::oid as id, -1 as depth, n.place
                    from unnest(table_names) with ordinality as n(name, place)
                    join (values ('users', 'host_users'), ('projects', 'host_projects'), ('project_collaborators', 'host_collaborations'))
                        as v(table_name, view_name) on v.table_name = n.name
                    where lock_mode = 'access exclusive'
                    union all
                    select t.id, min(t.depth), min(t.place) from tree as t group by t.id
                ) as x
                where x.id is not null
                order by x.depth, x.place, x.id
            loop
                perform set_config('lock_timeout', greatest(1, ceil(1000 * extract(epoch from v_began + v_most - clock_timestamp())))::text, true);
                if v_table.is_view then
                    -- LOCK TABLE would ask for privileges on the table that the view's owner does not have
                    execute format('alter view %s owner to %I', v_table.name, builder_score.owner_role());
                elsif lock_mode = 'share' then
                    execute format('lock table only %s in share mode', v_table.name);
                else
                    execute format('lock table only %s in access exclusive mode', v_table.name);
                end if;
            end loop;
            return;
        exception when lock_not_available then
            if clock_timestamp() >= v_deadline then
                select string_agg(distinct h.holder, ', ' order by h.holder) into v_holders
                from (
                    select case when l.pid is null then 'a prepared transaction (see pg_prepared_xacts)'
                           else format('pid %s (%s)', l.pid, concat_ws(', ', nullif(a.application_name, ''), 'role ' || a.usename,
                                       'in a transaction since ' || to_char(a.xact_start, 'YYYY-MM-DD HH24:MI:SS TZ'))) end
                    from pg_locks as l
                    left join pg_stat_activity as a on a.pid = l.pid
                    where l.granted and l.locktype = 'relation' and l.relation = v_table.id
                      and l.database = (select d.oid from pg_database as d where d.datname = current_database())
                      and l.pid is distinct from pg_backend_pid()
                      and (lock_mode <> 'share' or l.mode not in ('AccessShareLock', 'RowShareLock', 'ShareLock'))
                ) as h(holder);
                raise exception '% could not be locked within % s', v_table.name, round(extract(epoch from v_patience), 3)::real
                    using errcode = 'lock_not_available',
                          detail = coalesce('It is held by ' || v_holders || '.', 'Nobody holds it any more.'),
                          hint = 'Run the same again when they have let go, or end them with SELECT pg_terminate_backend(pid).';
            end if;
        end;
        -- outside the block: nothing is locked while we sleep
        perform pg_sleep(least(v_nap * (0.5 + random() / 2), greatest(0, extract(epoch from v_deadline - clock_timestamp()))));
        v_nap := least(v_nap * 1.5, 5);
    end loop;
end
$function$;

comment on function builder_score.lock_host_tables(name[], text) is
    'Locks host tables with all their partitions until the transaction ends, all within half a second or none; tries again '
    'for as long as the setting builder_score.lock_wait says, else raises 55P03 with who holds them. The caller owns the tables.';
