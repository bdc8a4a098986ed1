-- Onto the host's tables and off them again. All SECURITY INVOKER: the caller owns the host's tables.
-- reads: pg_catalog          writes: host views, triggers, policies and grants on the host's tables
-- locks on host tables: ACCESS EXCLUSIVE for milliseconds, as lock_host_tables() takes it

create function builder_score.owner_role() returns name
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
    select pg_get_userbyid(n.nspowner) from pg_namespace as n where n.nspname = 'builder_score';
$function$;

comment on function builder_score.owner_role() is 'The role that owns this schema: its triggers and worker functions run with its rights.';

create function builder_score.host_table(table_name name) returns regclass
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
    select to_regclass(format('%I.%I', h.host_schema, host_table.table_name)) from builder_score.host as h;
$function$;

comment on function builder_score.host_table(name) is 'One of the host''s three tables, in the schema given at install; null where it is missing.';

create function builder_score.base_type(type_id oid) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
    with recursive base(type_id) as (
        select base_type.type_id
        union all
        select t.typbasetype from base as b join pg_type as t on t.oid = b.type_id where t.typtype = 'd'
    )
    select format_type(b.type_id, null) from base as b join pg_type as t on t.oid = b.type_id where t.typtype <> 'd';
$function$;

comment on function builder_score.base_type(oid) is 'A type''s name, domains resolved.';

create function builder_score.host_column_type(table_name name, column_name name) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
    select builder_score.base_type(a.atttypid)
    from pg_attribute as a
    where a.attrelid = builder_score.host_table(host_column_type.table_name)
      and a.attname = host_column_type.column_name
      and not a.attisdropped;
$function$;

comment on function builder_score.host_column_type(name, name) is 'Type of a host column, domains resolved; null where there is no such column.';

create function builder_score.require_host_types() returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
declare
    v_odd text;
begin
    select string_agg(format('%s.id has type %s', t.name, builder_score.host_column_type(t.name, 'id')), ', ')
    into v_odd
    from unnest(array['users', 'projects']::name[]) as t(name)
    where not exists (
        select from pg_type as y
        where y.oid = to_regtype(builder_score.host_column_type(t.name, 'id')) and y.typnamespace = 'pg_catalog'::regnamespace);
    if v_odd is not null then
        raise exception '%', v_odd
            using errcode = 'datatype_mismatch',
                  detail = 'Expected a type of PostgreSQL''s own, such as uuid, bigint or text: the comparison of another type lies in a '
                           'schema that the worker''s search_path leaves out.',
                  hint = 'Give the table a key of such a type.';
    end if;
    select string_agg(format('%s.id has type %s, and builder_score was installed for %s', t.name, t.now, t.installed), '; ')
    into v_odd
    from (
        select h.name, builder_score.host_column_type(h.name, 'id') as now, builder_score.base_type(h.domain) as installed
        from (values ('users'::name, 'builder_score.user_id'::regtype), ('projects', 'builder_score.project_id')) as h(name, domain)
    ) as t
    where t.now <> t.installed
      -- narrower than the domain: every id fits, and is found by the same index
      and not (t.installed = 'bigint' and t.now in ('integer', 'smallint'))
      and not (t.installed = 'integer' and t.now = 'smallint')
      and not (t.installed in ('text', 'character varying') and t.now in ('text', 'character varying'));
    if v_odd is not null then
        raise exception '%', v_odd
            using errcode = 'datatype_mismatch',
                  detail = 'The queue and what is remembered of each user hold ids of the type that was found at install.',
                  hint = 'Install anew, which computes everybody''s score again: pyscore uninstall, then pyscore migrate. '
                         'DELETE FROM builder_score.host_additions WHERE kind = ''column''; before it keeps users.builder_score as it is meanwhile.';
    end if;
    if builder_score.host_column_type('users', 'builder_score') not in
       ('smallint', 'integer', 'bigint', 'real', 'double precision', 'numeric') then
        raise exception 'users.builder_score has type %', builder_score.host_column_type('users', 'builder_score')
            using errcode = 'datatype_mismatch',
                  detail = 'Expected smallint, integer, bigint, real, double precision or numeric.',
                  hint = 'Change the column''s type, or rename it: migrate then adds one of its own.';
    end if;
end
$function$;

comment on function builder_score.require_host_types() is 'Raises where a key or the score has a type that cannot serve.';

create function builder_score.require_host() returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
declare
    v_missing text;
begin
    select string_agg(format('%s.%s', c.table_name, c.column_name), ', ')
    into v_missing
    from (values ('users'::name, 'id'::name), ('users', 'builder_score'), ('projects', 'id'), ('projects', 'owner_id'), ('projects', 'status'),
                 ('project_collaborators', 'project_id'), ('project_collaborators', 'user_id'), ('project_collaborators', 'status'))
         as c(table_name, column_name)
    where builder_score.host_column_type(c.table_name, c.column_name) is null;
    if v_missing is not null then
        raise exception 'the host''s schema "%" lacks %', (select h.host_schema from builder_score.host as h), v_missing
            using errcode = 'undefined_column',
                  detail = 'Expected users (id, builder_score), projects (id, owner_id, status) and project_collaborators (project_id, user_id, status).',
                  hint = 'Add what is missing, then SELECT * FROM builder_score.attach();';
    end if;
    perform builder_score.require_host_types();
end
$function$;

comment on function builder_score.require_host() is 'Raises when the host''s tables lack something that the views need.';

create function builder_score.take_back(relation regclass) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: pg_catalog
-- writes: privileges on the relation
declare
    v_grantee oid;
begin
    for v_grantee in
        select distinct a.grantee
        from pg_class as c
        cross join lateral aclexplode(c.relacl) as a
        where c.oid = take_back.relation
          and a.grantee not in (select r.oid from pg_roles as r
                                where r.oid = c.relowner or r.rolname in ('builder_score_owner', 'builder_score_operator'))
    loop
        execute format('revoke all on %s from %s', relation,
                       case when v_grantee = 0 then 'public' else quote_ident(pg_get_userbyid(v_grantee)) end);
    end loop;
end
$function$;

comment on function builder_score.take_back(regclass) is
    'Takes from everybody but our roles what the installer''s default privileges, meant for the host''s own tables, gave them.';

create function builder_score.define_host_views() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: pg_catalog
-- writes: the views host_users, host_projects, host_collaborations
declare
    v_owner constant name := builder_score.owner_role();
    v_field text;
    v_type text;
    v_filled text[] := array[]::text[];
    v_created_at text;
    v_stars text;
    v_metrics text;
    v_view text;
begin
    foreach v_field in array array['avatar_url', 'headline', 'bio', 'primary_role', 'timezone', 'contact_links'] loop
        v_type := builder_score.host_column_type('users', v_field::name);
        if v_type is not null then
            v_filled := array_append(v_filled, case
                when v_field <> 'contact_links' then format('builder_score.is_filled(u.%I::text)::integer', v_field)
                when v_type = 'jsonb' then format('builder_score.is_filled(u.%I::jsonb)::integer', v_field)
                when v_type = 'json' then format($expression$coalesce(json_typeof(u.%1$I::json) = 'object' and left(u.%1$I::text, 10000) !~ '^\s*\{\s*\}\s*$', false)::integer$expression$, v_field)
                else format('builder_score.is_filled(builder_score.to_jsonb_or_null(u.%I::text))::integer', v_field)
            end);
        end if;
    end loop;

    v_created_at := case builder_score.host_column_type('users', 'created_at')
        when 'timestamp with time zone' then 'u.created_at'
        when 'timestamp without time zone' then $expression$u.created_at at time zone 'UTC'$expression$
        when 'date' then $expression$case when u.created_at < date '294276-01-01' then u.created_at::timestamp at time zone 'UTC' else 'infinity' end$expression$
        else 'null'
    end;

    v_type := builder_score.host_column_type('projects', 'github_stars');
    v_stars := case
        when v_type is null then '0'
        when v_type in ('smallint', 'integer', 'bigint') then 'greatest(p.github_stars, 0)'
        when v_type in ('real', 'double precision', 'numeric') then 'builder_score.count_of(p.github_stars::numeric)'
        when v_type = 'jsonb' then 'builder_score.count_of(p.github_stars::jsonb)'
        when v_type = 'json' then 'builder_score.count_of(builder_score.to_jsonb_or_null(p.github_stars::text))'
        -- jsonb has no string as long as text may be
        else 'builder_score.count_of(case when octet_length(p.github_stars::text) <= 20000000 then to_jsonb(p.github_stars::text) end)'
    end;

    v_type := builder_score.host_column_type('projects', 'impact_metrics');
    v_metrics := case
        when v_type is null then 'null'
        when v_type = 'jsonb' then 'p.impact_metrics'
        else 'builder_score.to_jsonb_or_null(p.impact_metrics::text)'
    end;

    drop view if exists builder_score.host_users, builder_score.host_projects, builder_score.host_collaborations;

    execute format(
        'create view builder_score.host_users as
         select u.id, (%s)::text as username, u.builder_score, (%s)::timestamptz as created_at,
                %s as profile_filled, %s as profile_fields
         from %s as u
         where u.id is not null',
        case when builder_score.host_column_type('users', 'username') is null then 'null' else 'u.username' end,
        v_created_at, coalesce(nullif(array_to_string(v_filled, ' + '), ''), '0'), cardinality(v_filled),
        builder_score.host_table('users'));
    execute format(
        'create view builder_score.host_projects as
         select p.id, p.owner_id, p.status::text as status, (%s)::numeric as github_stars, (%s)::jsonb as impact_metrics from %s as p',
        v_stars, v_metrics, builder_score.host_table('projects'));
    execute format(
        'create view builder_score.host_collaborations as
         select c.project_id, c.user_id, c.status::text as status from %s as c',
        builder_score.host_table('project_collaborators'));

    foreach v_view in array array['host_users', 'host_projects', 'host_collaborations'] loop
        execute format('alter view builder_score.%I owner to %I', v_view, v_owner);
        perform builder_score.take_back(format('builder_score.%I', v_view)::regclass);
        if v_owner = 'builder_score_owner' then
            execute format('grant select on builder_score.%I to builder_score_operator', v_view);
        end if;
    end loop;

    comment on view builder_score.host_users is 'The host''s users as the score sees them. Made by attach().';
    comment on column builder_score.host_users.id is 'users.id.';
    comment on column builder_score.host_users.username is 'The name people know the user by; null where the host has none.';
    comment on column builder_score.host_users.builder_score is 'The one host column that we write.';
    comment on column builder_score.host_users.created_at is 'Sign-up; a naive timestamp is UTC; null where the host has none.';
    comment on column builder_score.host_users.profile_filled is 'How many of the profile fields are filled.';
    comment on column builder_score.host_users.profile_fields is 'How many profile fields the host has.';
    comment on view builder_score.host_projects is 'The host''s projects as the score sees them. Made by attach().';
    comment on column builder_score.host_projects.id is 'projects.id.';
    comment on column builder_score.host_projects.owner_id is 'The user who owns the project.';
    comment on column builder_score.host_projects.status is 'The status, as text.';
    comment on column builder_score.host_projects.github_stars is 'Stars as a count.';
    comment on column builder_score.host_projects.impact_metrics is 'The metrics people typed; null where the host has none.';
    comment on view builder_score.host_collaborations is 'The host''s project_collaborators as the score sees them. Made by attach().';
    comment on column builder_score.host_collaborations.project_id is 'The project.';
    comment on column builder_score.host_collaborations.user_id is 'The collaborator.';
    comment on column builder_score.host_collaborations.status is 'The status, as text.';
end
$function$;

comment on function builder_score.define_host_views() is 'Part of attach(): the only place that knows the host''s column names.';

create function builder_score.changed_condition(table_name name, column_names name[]) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
    -- json, xml and points have no equality, nor has an array or a row of them, as the host's UPDATE would learn:
    -- of anything but the plain types the text is compared
    select string_agg(
        case when builder_score.host_column_type(changed_condition.table_name, c.name) in (
                 'text', 'character varying', 'character', 'uuid', 'boolean', 'smallint', 'integer', 'bigint', 'numeric', 'real',
                 'double precision', 'date', 'timestamp without time zone', 'timestamp with time zone', 'jsonb')
             then format('old.%1$I is distinct from new.%1$I', c.name)
             else format('old.%1$I::text is distinct from new.%1$I::text', c.name) end,
        ' or ' order by c.place)
    from unnest(column_names) with ordinality as c(name, place)
    where builder_score.host_column_type(changed_condition.table_name, c.name) is not null;
$function$;

comment on function builder_score.changed_condition(name, name[]) is 'Part of attach(): a trigger''s WHEN, over those of the columns that the host has.';

create function builder_score.needed_triggers()
returns table (host_table regclass, trigger_name name, definition text, comment text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
declare
    v_table name;
    v_function text;
    v_partitioned boolean;
    v_project_too text;
    v_trigger record;
begin
    foreach v_table in array array['users', 'projects', 'project_collaborators']::name[] loop
        host_table := builder_score.host_table(v_table);
        v_function := case v_table when 'project_collaborators' then 'collaborators' else v_table end;
        -- Statement triggers on a partitioned table miss what is written to a partition directly.
        v_partitioned := (select c.relkind = 'p' from pg_class as c where c.oid = host_table);
        v_project_too := case when v_table = 'projects' then
            quote_literal(v_partitioned or not exists (
                select from pg_constraint as f
                where f.contype = 'f' and f.convalidated and f.confrelid = host_table
                  and f.conrelid = builder_score.host_table('project_collaborators')))
            else '' end;

        for v_trigger in
            select t.*
            from (values
                ('insert', v_table, 'insert', case when v_partitioned then 'for each row' else 'referencing new table as new_rows for each statement' end,
                 null, v_function || format('_after_insert(%s)', v_project_too), 'Appends the new rows'' people to the queue.'),
                ('delete', v_table, 'delete', case when v_partitioned then 'for each row' else 'referencing old table as old_rows for each statement' end,
                 null, v_function || format('_after_delete(%s)', v_project_too), 'Appends the deleted rows'' people to the queue.'),
                ('truncate', v_table, 'truncate', 'for each statement',
                 null, 'host_truncated()', 'Appends one row that stands for everyone.'),
                ('profile', 'users', 'update', 'for each row',
                 builder_score.changed_condition('users', array['id', 'avatar_url', 'headline', 'bio', 'primary_role', 'timezone', 'contact_links', 'created_at']),
                 'users_after_update(''profile changed'')', 'Appends the user when a profile field or created_at really changes.'),
                ('overwritten', 'users', 'update', 'for each row',
                 format('old.builder_score is distinct from new.builder_score and (current_user <> %L or current_setting(''builder_score.writing'', true) is distinct from pg_trigger_depth()::text)', builder_score.owner_role()),
                 'users_after_update(''score overwritten'')', 'Appends the user when anyone but our writer writes builder_score.'),
                ('update', 'projects', 'update', 'for each row',
                 builder_score.changed_condition('projects', array['id', 'owner_id', 'status', 'github_stars', 'impact_metrics']),
                 'projects_after_update()', 'Appends the owner, or both owners and the project, when something that counts really changes.'),
                ('update', 'project_collaborators', 'update', 'for each row',
                 builder_score.changed_condition('project_collaborators', array['project_id', 'user_id', 'status']),
                 'collaborators_after_update()', 'Appends both sides when a collaboration is confirmed, ends, or moves.')
            ) as t(name, table_name, event, level, condition, function_call, comment)
            where t.table_name = v_table
        loop
            trigger_name := 'builder_score_' || v_trigger.name;
            definition := format('create trigger %I after %s on %s %s %s execute function builder_score.%s',
                trigger_name, v_trigger.event, host_table, v_trigger.level,
                case when v_trigger.condition is not null then format('when (%s)', v_trigger.condition) else '' end,
                v_trigger.function_call);
            comment := v_trigger.comment;
            return next;
        end loop;

        -- Row triggers reach the partitions by themselves; one for TRUNCATE does not.
        for host_table in
            select t.relid::regclass
            from pg_partition_tree(host_table) as t
            join pg_class as c on c.oid = t.relid
            where t.level > 0 and c.relkind in ('r', 'p')
        loop
            trigger_name := 'builder_score_truncate';
            definition := format('create trigger %I after truncate on %s for each statement execute function builder_score.host_truncated()',
                trigger_name, host_table);
            comment := 'Appends one row that stands for everyone.';
            return next;
        end loop;
    end loop;
end
$function$;

comment on function builder_score.needed_triggers() is 'The triggers on the host''s three tables and their partitions, all named builder_score_...: what attach() creates.';

create function builder_score.define_triggers() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: pg_catalog
-- writes: triggers on the host's tables
declare
    v_trigger record;
begin
    for v_trigger in select * from builder_score.needed_triggers() loop
        execute format('drop trigger if exists %I on %s', v_trigger.trigger_name, v_trigger.host_table);
        execute v_trigger.definition;
        execute format('comment on trigger %I on %s is %L', v_trigger.trigger_name, v_trigger.host_table, v_trigger.comment);
    end loop;
end
$function$;

comment on function builder_score.define_triggers() is 'Part of attach(): makes needed_triggers().';

create function builder_score.lets_everything(host_table regclass, role_name name, command "char") returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
    select coalesce(bool_or(p.polpermissive and pg_get_expr(p.polqual, p.polrelid) = 'true'
                            and coalesce(pg_get_expr(p.polwithcheck, p.polrelid) = 'true', true))
                    and bool_and(p.polpermissive), false)
    from pg_policy as p
    where p.polrelid = lets_everything.host_table
      and p.polcmd in ('*', lets_everything.command)
      and exists (select from unnest(p.polroles) as r(oid) where r.oid = 0 or pg_has_role(lets_everything.role_name, r.oid, 'usage'));
$function$;

comment on function builder_score.lets_everything(regclass, name, "char") is
    'Whether the policies for a role let every row through: r to be read, w to be updated.';

create function builder_score.needed_access()
returns table (host_table regclass, policy_name name, statement text, comment text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
declare
    v_owner constant name := builder_score.owner_role();
    v_sees_all constant boolean := (select r.rolsuper or r.rolbypassrls from pg_roles as r where r.rolname = v_owner);
    v_usage boolean;
    v_host record;
    v_restrictive text;
begin
    for v_host in
        select c.oid::regclass as name, c.relname, c.relnamespace::regnamespace as schema_name, p.rolname as table_owner,
               c.relrowsecurity and c.relforcerowsecurity as is_forced
        from unnest(array['users', 'projects', 'project_collaborators']::name[]) with ordinality as t(name, place)
        join pg_class as c on c.oid = builder_score.host_table(t.name)
        join pg_roles as p on p.oid = c.relowner
        order by t.place
    loop
        host_table := v_host.name;
        if v_owner <> 'builder_score_owner' then
            -- Everything is the installer's, who owns the tables: nothing to grant. A policy that lets it see every
            -- row could end the row security of an application that connects as this very role.
            if v_host.is_forced and not v_sees_all
               and not (builder_score.lets_everything(host_table, v_owner, 'r')
                        and (v_host.relname <> 'users' or builder_score.lets_everything(host_table, v_owner, 'w'))) then
                raise exception 'row level security is forced on %, and nothing lets %, who owns builder_score here, see every row', host_table, v_owner
                    using errcode = 'object_not_in_prerequisite_state',
                          detail = 'Scores would be computed from the rows that the policies let through, and silently be too low.',
                          hint = format('Either pyscore uninstall, then as a superuser CREATE ROLE builder_score_owner NOLOGIN; CREATE ROLE builder_score_operator NOLOGIN; '
                                        'GRANT builder_score_owner TO %1$I; and migrate again. Or, where the application never connects as %1$I: '
                                        'CREATE POLICY every_row ON %2$s TO %1$I USING (true); then attach again.', v_owner, host_table);
            end if;
            continue;
        end if;
        if v_owner <> v_host.table_owner then
            policy_name := null;
            comment := null;
            v_usage := coalesce(v_usage, has_schema_privilege(v_owner, v_host.schema_name::oid, 'usage'));
            if not v_usage then
                statement := format('grant usage on schema %s to %I', v_host.schema_name, v_owner);
                return next;
                v_usage := true;
            end if;
            statement := format('grant select on %s to %I', host_table, v_owner);
            return next;
            if v_host.relname = 'users' then
                statement := format('grant update (builder_score) on %s to %I', host_table, v_owner);
                return next;
            end if;
        end if;

        -- Also where row level security is off: a policy that is there does no harm, and one that is missing on
        -- the day it is switched on makes everybody's score silently too low.
        if not v_sees_all then
            select string_agg(format('%I', p.polname), ', ')
            into v_restrictive
            from pg_policy as p
            where p.polrelid = host_table
              and not p.polpermissive
              and p.polcmd in ('*', 'r', 'w')
              and exists (select from unnest(p.polroles) as r(oid) where r.oid = 0 or pg_has_role(v_owner, r.oid, 'member'));
            if v_restrictive is not null then
                raise exception 'restrictive policy % on % applies to %', v_restrictive, host_table, v_owner
                    using errcode = 'object_not_in_prerequisite_state',
                          detail = 'Scores would be computed from the rows that the policy lets through, and silently be too low.',
                          hint = format('ALTER POLICY ... ON %s TO the application''s roles, so that it does not apply to %I; then attach again.', host_table, v_owner);
            end if;
            policy_name := 'builder_score_read';
            statement := format('create policy builder_score_read on %s for select to %I using (true)', host_table, v_owner);
            comment := 'Scores count every row.';
            return next;
            if v_host.relname = 'users' then
                policy_name := 'builder_score_write';
                statement := format('create policy builder_score_write on %s for update to %I using (true) with check (true)', host_table, v_owner);
                comment := 'The worker locks users and writes builder_score.';
                return next;
            end if;
        end if;
    end loop;
end
$function$;

comment on function builder_score.needed_access() is
    'The grants on the host''s tables, for builder_score_owner alone, and the permissive policies for it: what attach() makes; none '
    'where everything is the installer''s. Raises where row level security would hide rows from the role that owns us.';

create function builder_score.define_access() returns setof text
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: pg_catalog
-- writes: grants and policies on the host's tables, for builder_score_owner alone
declare
    v_needed record;
begin
    for v_needed in select * from builder_score.needed_access() loop
        if v_needed.policy_name is null then
            execute v_needed.statement;
            continue;
        end if;
        execute format('drop policy if exists %I on %s', v_needed.policy_name, v_needed.host_table);
        execute v_needed.statement;
        execute format('comment on policy %I on %s is %L', v_needed.policy_name, v_needed.host_table, v_needed.comment);
        if v_needed.policy_name = 'builder_score_read'
           and (select c.relrowsecurity from pg_class as c where c.oid = v_needed.host_table) then
            return next format('policy for %I on %s', builder_score.owner_role(), v_needed.host_table);
        end if;
    end loop;
end
$function$;

comment on function builder_score.define_access() is 'Part of attach(): makes needed_access(). Returns what matters now: policies where row level security is on.';

create function builder_score.trial_write() returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: host_users
-- writes: users.builder_score of one user, for an instant: the caller rolls it back
declare
    v_user record;
begin
    select u.id, coalesce(u.builder_score::numeric, 0) as score into v_user
    from builder_score.host_users as u
    limit 1
    for no key update skip locked;
    if found then
        perform builder_score.write_scores(array[v_user.id::builder_score.user_id], array[case when v_user.score = 100 then 99 else 100 end]::numeric[]);
    end if;
end
$function$;

comment on function builder_score.trial_write() is 'Writes one score, to see whether the host''s own triggers on users let us; the caller rolls back.';

create function builder_score.try_write() returns text
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '0.1s'
as $function$
-- reads: host_users
-- writes: nothing that stays
-- returns: null when it works, else what is in the way and what mends it
-- The caller has the host's tables locked. The host's triggers may want a lock of a transaction that waits for one of
-- them: who gives up is this, soon enough that nobody's deadlock_timeout has passed.
declare
    v_message text;
    v_code text;
    v_object text[];
    v_name text;
begin
    begin
        perform builder_score.trial_write();
        raise exception using errcode = 'BS000';     -- undo it
    exception
        when sqlstate 'BS000' then
            return null;
        when lock_not_available then
            return 'a trial write to users was not tried to the end: somebody holds a lock that a trigger of the host''s on users wants; pyscore doctor tries again';
        when assert_failure or others then
            get stacked diagnostics v_message = message_text, v_code = returned_sqlstate;
    end;
    v_object := regexp_match(v_message, '^permission denied for (table|sequence|schema|function) (\S+)$');
    -- the message leaves out the schema
    select min(c.oid::regclass::text) into v_name
    from pg_class as c
    where c.relname = v_object[2] and v_object[1] in ('table', 'sequence') and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
    having count(*) = 1;
    if v_code = '42501' and v_object is not null then
        return format('a trial write to users failed: %s (a trigger of the host''s on users); mend it with: GRANT %s ON %s %s TO %I;',
            v_message,
            case v_object[1] when 'table' then 'SELECT, INSERT, UPDATE' when 'function' then 'EXECUTE' else 'USAGE' end,
            v_object[1], coalesce(v_name, v_object[2]), builder_score.owner_role());
    end if;
    return format('a trial write to users failed: %s', v_message);
end
$function$;

comment on function builder_score.try_write() is 'Tries one write in a rolled-back subtransaction. Null when it works, else what mends it.';

create function builder_score.attached_tables() returns setof regclass
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
    -- the three, and whatever they were when they were attached: a table may have been renamed since
    select t.tgrelid::regclass
    from pg_trigger as t
    join pg_proc as p on p.oid = t.tgfoid
    join pg_class as c on c.oid = t.tgrelid
    where p.pronamespace = 'builder_score'::regnamespace and c.relnamespace <> p.pronamespace
      and not t.tgisinternal and t.tgparentid = 0
    union
    select p.polrelid::regclass
    from pg_policy as p
    where p.polname in ('builder_score_read', 'builder_score_write') and p.polroles = array[builder_score.owner_role()::text::regrole::oid]
    union
    select builder_score.host_table(n.name)
    from unnest(array['users', 'projects', 'project_collaborators']::name[]) as n(name)
    where builder_score.host_table(n.name) is not null;
$function$;

comment on function builder_score.attached_tables() is 'The host''s tables, and those that have triggers or policies of ours.';

create function builder_score.release_table(host_table regclass) returns setof text
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: pg_catalog
-- writes: removes our triggers, policies and grants on one table
declare
    v_owner constant name := builder_score.owner_role();
    v_object record;
    v_count integer := 0;
begin
    for v_object in
        select t.tgname
        from pg_trigger as t
        join pg_proc as p on p.oid = t.tgfoid
        where t.tgrelid = release_table.host_table
          and p.pronamespace = 'builder_score'::regnamespace and not t.tgisinternal and t.tgparentid = 0
    loop
        execute format('drop trigger %I on %s', v_object.tgname, release_table.host_table);
        v_count := v_count + 1;
    end loop;
    if v_count > 0 and not (select c.relispartition from pg_class as c where c.oid = release_table.host_table) then
        return next format('%s triggers on %s removed', v_count, release_table.host_table);
    end if;

    for v_object in
        select p.polname
        from pg_policy as p
        where p.polrelid = release_table.host_table and p.polname in ('builder_score_read', 'builder_score_write')
    loop
        execute format('drop policy %I on %s', v_object.polname, release_table.host_table);
        return next format('policy %I on %s removed', v_object.polname, release_table.host_table);
    end loop;

    if v_owner = 'builder_score_owner' and (select pg_get_userbyid(c.relowner) from pg_class as c where c.oid = release_table.host_table) <> v_owner then
        execute format('revoke select on %s from %I', release_table.host_table, v_owner);
        if exists (
            select from pg_attribute as a
            where a.attrelid = release_table.host_table and a.attname = 'builder_score' and not a.attisdropped
        ) then
            execute format('revoke update (builder_score) on %s from %I', release_table.host_table, v_owner);
        end if;
    end if;
end
$function$;

comment on function builder_score.release_table(regclass) is 'Part of detach(): removes our triggers, policies and grants on one table. Returns what it did.';

create function builder_score.column_decimals() returns integer
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: host, pg_catalog: what everyone who calls it may read, before anything was granted on the host's schema too
-- writes: nothing
    -- numeric(p, s), or a domain over it: its typmod keeps s in the low 11 bits, the highest of them for the sign
    with recursive typed(type_id, typmod) as (
        select a.atttypid, a.atttypmod
        from builder_score.host as h
        join pg_namespace as n on n.nspname = h.host_schema
        join pg_class as c on c.relnamespace = n.oid and c.relname = 'users'
        join pg_attribute as a on a.attrelid = c.oid and a.attname = 'builder_score' and not a.attisdropped
        union all
        select t.typbasetype, t.typtypmod from typed as d join pg_type as t on t.oid = d.type_id where t.typtype = 'd'
    )
    select case
        when bool_or(d.type_id in ('smallint'::regtype, 'integer'::regtype, 'bigint'::regtype)) then 0
        else least(coalesce(max((((d.typmod - 4) & 2047) # 1024) - 1024) filter (where d.typmod >= 4), 1), 1) end
    from typed as d;
$function$;

comment on function builder_score.column_decimals() is
    'Decimals that users.builder_score holds and scores have: none in whole numbers, else one; fewer in numeric(p, -1) and the like.';

create function builder_score.attach(host_search_path text default current_setting('search_path'), host_schema name default null)
returns setof text
language plpgsql
set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $function$
-- reads: pg_catalog, host_users
-- writes: host views, triggers, policies and grants on the host's tables, host, host_additions, score_recalc_queue
declare
    v_trouble text;
begin
    if attach.host_schema is not null then
        update builder_score.host_additions as a
        set schema_name = attach.host_schema
        from builder_score.host as h
        where a.kind in ('table', 'column', 'index') and a.schema_name = h.host_schema;
        update builder_score.host as h set host_schema = attach.host_schema;
    end if;
    perform builder_score.require_host();
    perform builder_score.lock_host_tables();

    update builder_score.host as h
    set search_path = concat_ws(', ', quote_ident(h.host_schema), nullif(attach.host_search_path, '')),
        score_decimals = builder_score.column_decimals(),
        attached_at = clock_timestamp(),
        -- we hold the host's tables, so these have ended; and an id from a dump is another server's
        walk_again_after = null,
        -- a restore or a replication may have brought some of the rows
        counted_at = null,
        count_tried_at = null;

    -- what was a host's table when we were attached before, and has given its name to another
    return query
    select r.said
    from builder_score.attached_tables() as t(former)
    cross join lateral builder_score.release_table(t.former) as r(said)
    where t.former not in (select n.host_table from builder_score.needed_triggers() as n);

    perform builder_score.define_host_views();
    return next 'views builder_score.host_users, host_projects, host_collaborations';
    return query select * from builder_score.define_access();
    perform builder_score.define_triggers();
    return next format('triggers builder_score_... on %s, %s, %s', builder_score.host_table('users'),
        builder_score.host_table('projects'), builder_score.host_table('project_collaborators'));

    return query
    select format('no usable index on %s %s; in psql: SELECT builder_score.missing_index_statements() \gexec', builder_score.host_table(n.table_name), n.key_definition)
    from builder_score.needed_indexes() as n
    where not builder_score.has_index(builder_score.host_table(n.table_name), n.key_columns);

    v_trouble := builder_score.try_write();
    if v_trouble is not null then
        raise warning '%', v_trouble;
        return next v_trouble;
    end if;

    -- also for people who are remembered and gone with a table that was dropped
    if exists (select from builder_score.host_users) or exists (select from builder_score.score_state)
       or exists (select from builder_score.score_dead_letter) then
        -- behind what a replica that takes over was given by its publisher
        perform builder_score.keep_queue_ids_ahead();
        perform builder_score.enqueue_everyone('attach');
        return next 'everyone is enqueued';
    end if;
end
$function$;

comment on function builder_score.attach(text, name) is
    '(Re)creates the views, triggers, grants and policies on the host''s tables from the columns it finds, tries one write, and '
    'enqueues everyone. Idempotent; returns what it did. The caller owns the host''s tables. The arguments: the search_path '
    'for the host''s own triggers on users, and where the tables are now if they have moved to another schema.';

create function builder_score.detach() returns setof text
language plpgsql
set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $function$
-- reads: pg_catalog
-- writes: removes host views, and our triggers, policies and grants on the host's tables; host
declare
    v_owner constant name := builder_score.owner_role();
    v_table regclass;
    v_schema record;
begin
    perform builder_score.lock_host_tables();
    for v_table in select t.attached from builder_score.attached_tables() as t(attached) order by t.attached loop
        return query select * from builder_score.release_table(v_table);
    end loop;

    drop view if exists builder_score.host_users, builder_score.host_projects, builder_score.host_collaborations;
    return next 'views removed';

    for v_schema in
        select n.oid::regnamespace as name
        from builder_score.host as h
        join pg_namespace as n on n.nspname = h.host_schema
        cross join lateral aclexplode(n.nspacl) as a
        where v_owner = 'builder_score_owner' and a.grantee = v_owner::text::regrole and a.privilege_type = 'USAGE'
    loop
        execute format('revoke usage on schema %s from %I', v_schema.name, v_owner);
    end loop;

    update builder_score.host set attached_at = null;
end
$function$;

comment on function builder_score.detach() is
    'Removes the views, and our triggers, policies and grants on the host''s tables; the queue and all scores stay. Returns what it did.';
