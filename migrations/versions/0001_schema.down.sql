-- Takes out the schema builder_score. Alembic's version table goes last of all, with the schema itself. The reference tables
-- go if they are ours and empty; the roles, if no other database uses them.
-- transaction: one
-- locks on host tables: none; ACCESS EXCLUSIVE on reference tables of ours, for milliseconds

set local lock_timeout = '0.5s';
set local statement_timeout = 0;

do $reference_tables$
declare
    v_tables text;
    v_empty boolean;
begin
    select string_agg(format('%I.%I', schema_name, object_name), ', ') into v_tables
    from builder_score.host_additions where kind = 'table';
    if v_tables is null then
        return;
    end if;
    perform builder_score.lock_host_tables();
    execute (
        select 'select ' || string_agg(format('not exists (select from %I.%I)', schema_name, object_name), ' and ')
        from builder_score.host_additions where kind = 'table'
    ) into v_empty;
    if v_empty then
        execute 'drop table ' || v_tables;
    else
        raise notice 'builder_score: the reference tables are not empty and stay';
    end if;
end
$reference_tables$;

do $schema$
declare
    v_object record;
begin
    drop view if exists builder_score.health, builder_score.queue_by_priority, builder_score.live_score_counts,
        builder_score.newest_score_sum;
    drop function if exists builder_score.counts_since(xid8, xid8[]);
    for v_object in
        select c.oid::regclass as name from pg_class as c
        where c.relnamespace = 'builder_score'::regnamespace and c.relkind = 'r' and c.relname <> 'alembic_version'
    loop
        execute format('drop table %s', v_object.name);
    end loop;
    drop sequence builder_score.statuses_changed_by;
    -- In one statement: some depend on others.
    execute (
        select 'drop routine ' || string_agg(p.oid::regprocedure::text, ', ')
        from pg_proc as p where p.pronamespace = 'builder_score'::regnamespace
    );
    drop type builder_score.run_memory;
    drop domain builder_score.user_id, builder_score.project_id;
end
$schema$;

do $roles$
declare
    v_role name;
    v_elsewhere text[];
    v_grant text;
begin
    revoke all on schema builder_score from public;
    if (select nspowner::regrole::text from pg_namespace where nspname = 'builder_score') <> 'builder_score_owner' then
        return;     -- everything was the installer's: if the roles are there, they are others'
    end if;
    if to_regrole('builder_score_operator') is not null then
        revoke all on schema builder_score from builder_score_operator;
        revoke all on builder_score.alembic_version from builder_score_operator;
    end if;
    execute format('alter schema builder_score owner to %I', current_user);
    foreach v_role in array array['builder_score_operator', 'builder_score_owner']::name[] loop
        begin
            -- what a DBA granted to it in this database, such as the grants that attach() asks for
            if to_regrole(v_role::text) is not null then
                -- DROP OWNED takes away what was granted on other databases, too: that is given back
                v_elsewhere := array(
                    select format('grant %s on database %I to %I%s', a.privilege_type, d.datname, v_role, case when a.is_grantable then ' with grant option' end)
                    from pg_database as d
                    cross join lateral aclexplode(d.datacl) as a
                    where a.grantee = v_role::text::regrole and d.datname <> current_database() and pg_has_role(d.datdba, 'usage'));
                -- reassigned first, so that it drops nothing but privileges
                execute format('reassign owned by %I to %I', v_role, current_user);
                execute format('drop owned by %I', v_role);
                foreach v_grant in array v_elsewhere loop
                    execute v_grant;
                end loop;
            end if;
        exception when insufficient_privilege then
            raise notice 'builder_score: what was granted to role % in this database stays: % may not take it back', v_role, current_user;
        end;
        begin
            execute format('drop role if exists %I', v_role);
        exception
            when dependent_objects_still_exist then
                raise notice 'builder_score: role % stays: something else uses it', v_role;
            when insufficient_privilege then
                raise notice 'builder_score: role % stays: % may not drop it', v_role, current_user;
        end;
    end loop;
end
$roles$;
