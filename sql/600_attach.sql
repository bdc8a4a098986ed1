-- Onto the host's tables and off them again. All SECURITY INVOKER: the caller owns the host's tables.
-- reads: pg_catalog          writes: host views, triggers, policies and grants on the host's tables
-- locks on host tables: ACCESS EXCLUSIVE for milliseconds (policies, and triggers that are replaced)

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

create function builder_score.host_column_type(table_name name, column_name name) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
    with recursive base(type_id) as (
        select a.atttypid
        from pg_attribute as a
        where a.attrelid = builder_score.host_table(host_column_type.table_name)
          and a.attname = host_column_type.column_name
          and not a.attisdropped
        union all
        select t.typbasetype from base as b join pg_type as t on t.oid = b.type_id where t.typtype = 'd'
    )
    select format_type(b.type_id, null) from base as b join pg_type as t on t.oid = b.type_id where t.typtype <> 'd';
$function$;

comment on function builder_score.host_column_type(name, name) is 'Type of a host column, domains resolved; null where there is no such column.';

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
    select string_agg(format('%s.id has type %s', t.name, builder_score.host_column_type(t.name, 'id')), ', ')
    into v_missing
    from unnest(array['users', 'projects']::name[]) as t(name)
    where not exists (
        select from pg_type as y
        where y.oid = to_regtype(builder_score.host_column_type(t.name, 'id')) and y.typnamespace = 'pg_catalog'::regnamespace);
    if v_missing is not null then
        raise exception '%', v_missing
            using errcode = 'datatype_mismatch',
                  detail = 'Expected a type of PostgreSQL''s own, such as uuid, bigint or text: the comparison of another type lies in a '
                           'schema that the worker''s search_path leaves out.',
                  hint = 'Give the table a key of such a type.';
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

comment on function builder_score.require_host() is 'Raises when the host''s tables lack something that the views need.';

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
        when v_type in ('smallint', 'integer', 'bigint', 'real', 'double precision', 'numeric') then 'builder_score.count_of(p.github_stars::numeric)'
        else 'builder_score.count_of(to_jsonb(p.github_stars))'
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
         from %s as u',
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
    -- json and xml have no equality: their text is compared
    select string_agg(
        case when builder_score.host_column_type(changed_condition.table_name, c.name) in ('json', 'xml')
             then format('old.%1$I::text is distinct from new.%1$I::text', c.name)
             else format('old.%1$I is distinct from new.%1$I', c.name) end,
        ' or ' order by c.place)
    from unnest(column_names) with ordinality as c(name, place)
    where builder_score.host_column_type(changed_condition.table_name, c.name) is not null;
$function$;

comment on function builder_score.changed_condition(name, name[]) is 'Part of attach(): a trigger''s WHEN, over those of the columns that the host has.';

create function builder_score.define_triggers() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: pg_catalog
-- writes: triggers on the host's tables
declare
    v_table name;
    v_regclass regclass;
    v_function text;
    v_partitioned boolean;
    v_project_too text;
    v_trigger record;
begin
    foreach v_table in array array['users', 'projects', 'project_collaborators']::name[] loop
        v_regclass := builder_score.host_table(v_table);
        v_function := case v_table when 'project_collaborators' then 'collaborators' else v_table end;
        -- Statement triggers on a partitioned table miss what is written to a partition directly.
        v_partitioned := (select c.relkind = 'p' from pg_class as c where c.oid = v_regclass);
        v_project_too := case when v_table = 'projects' then
            quote_literal(v_partitioned or not exists (
                select from pg_constraint as f
                where f.contype = 'f' and f.convalidated and f.confrelid = v_regclass
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
            execute format('drop trigger if exists %I on %s', 'builder_score_' || v_trigger.name, v_regclass);
            execute format('create trigger %I after %s on %s %s %s execute function builder_score.%s',
                'builder_score_' || v_trigger.name, v_trigger.event, v_regclass, v_trigger.level,
                case when v_trigger.condition is not null then format('when (%s)', v_trigger.condition) else '' end,
                v_trigger.function_call);
            execute format('comment on trigger %I on %s is %L', 'builder_score_' || v_trigger.name, v_regclass, v_trigger.comment);
        end loop;
    end loop;
end
$function$;

comment on function builder_score.define_triggers() is 'Part of attach(): the triggers on the host''s three tables, all named builder_score_....';

create function builder_score.define_access() returns setof text
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: pg_catalog
-- writes: grants and policies on the host's tables, for the owner role alone
declare
    v_owner constant name := builder_score.owner_role();
    v_host record;
    v_restrictive text;
begin
    for v_host in
        select c.oid::regclass as name, c.relname, c.relrowsecurity, c.relnamespace::regnamespace as schema_name, p.rolname as table_owner
        from unnest(array['users', 'projects', 'project_collaborators']::name[]) as t(name)
        join pg_class as c on c.oid = builder_score.host_table(t.name)
        join pg_roles as p on p.oid = c.relowner
    loop
        if v_owner <> v_host.table_owner then
            if not has_schema_privilege(v_owner, v_host.schema_name::oid, 'usage') then
                execute format('grant usage on schema %s to %I', v_host.schema_name, v_owner);
            end if;
            execute format('grant select on %s to %I', v_host.name, v_owner);
            if v_host.relname = 'users' then
                execute format('grant update (builder_score) on %s to %I', v_host.name, v_owner);
            end if;
        end if;

        -- Also where row level security is off: a policy that is there does no harm, and one that is missing on
        -- the day it is switched on makes everybody's score silently too low.
        if not (select r.rolsuper or r.rolbypassrls from pg_roles as r where r.rolname = v_owner) then
            select string_agg(format('%I', p.polname), ', ')
            into v_restrictive
            from pg_policy as p
            where p.polrelid = v_host.name
              and not p.polpermissive
              and p.polcmd in ('*', 'r', 'w')
              and exists (select from unnest(p.polroles) as r(oid) where r.oid = 0 or pg_has_role(v_owner, r.oid, 'member'));
            if v_restrictive is not null then
                raise exception 'restrictive policy % on % applies to %', v_restrictive, v_host.name, v_owner
                    using errcode = 'object_not_in_prerequisite_state',
                          detail = 'Scores would be computed from the rows that the policy lets through, and silently be too low.',
                          hint = format('ALTER POLICY ... ON %s TO the application''s roles, so that it does not apply to %I; then attach again.', v_host.name, v_owner);
            end if;
            execute format('drop policy if exists builder_score_read on %s', v_host.name);
            execute format('create policy builder_score_read on %s for select to %I using (true)', v_host.name, v_owner);
            execute format('comment on policy builder_score_read on %s is %L', v_host.name, 'Scores count every row.');
            if v_host.relname = 'users' then
                execute format('drop policy if exists builder_score_write on %s', v_host.name);
                execute format('create policy builder_score_write on %s for update to %I using (true) with check (true)', v_host.name, v_owner);
                execute format('comment on policy builder_score_write on %s is %L', v_host.name, 'The worker locks users and writes builder_score.');
            end if;
            if v_host.relrowsecurity then
                return next format('policy for %I on %s', v_owner, v_host.name);
            end if;
        end if;
    end loop;
end
$function$;

comment on function builder_score.define_access() is 'Part of attach(): what the owner role needs on the host''s tables, and permissive policies for it.';

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
as $function$
-- reads: host_users
-- writes: nothing that stays
-- returns: null when it works, else what is in the way and what mends it
declare
    v_message text;
    v_code text;
    v_object text[];
begin
    begin
        perform builder_score.trial_write();
        raise exception using errcode = 'BS000';     -- undo it
    exception
        when sqlstate 'BS000' then
            return null;
        when assert_failure or others then
            get stacked diagnostics v_message = message_text, v_code = returned_sqlstate;
    end;
    v_object := regexp_match(v_message, '^permission denied for (table|sequence|schema|function) (\S+)$');
    if v_code = '42501' and v_object is not null then
        return format('a trial write to users failed: %s (a trigger of the host''s on users); mend it with: GRANT %s ON %s %s TO %I;',
            v_message,
            case v_object[1] when 'table' then 'SELECT, INSERT, UPDATE' when 'function' then 'EXECUTE' else 'USAGE' end,
            v_object[1], v_object[2], builder_score.owner_role());
    end if;
    return format('a trial write to users failed: %s', v_message);
end
$function$;

comment on function builder_score.try_write() is 'Tries one write in a rolled-back subtransaction. Null when it works, else what mends it.';

create function builder_score.attach(host_search_path text default current_setting('search_path')) returns setof text
language plpgsql
set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $function$
-- reads: pg_catalog, host_users
-- writes: host views, triggers, policies and grants on the host's tables, host, score_recalc_queue
declare
    v_trouble text;
    v_type text;
begin
    perform builder_score.require_host();

    v_type := builder_score.host_column_type('users', 'builder_score');
    update builder_score.host as h
    set search_path = concat_ws(', ', quote_ident(h.host_schema), nullif(attach.host_search_path, '')),
        score_decimals = case
            when v_type in ('smallint', 'integer', 'bigint') then 0
            -- numeric(p, 0): its typmod keeps the scale in the low 11 bits
            when v_type = 'numeric' and exists (
                select from pg_attribute as a
                where a.attrelid = builder_score.host_table('users') and a.attname = 'builder_score'
                  and a.atttypmod >= 4 and ((a.atttypmod - 4) & 2047) = 0) then 0
            else 1 end,
        attached_at = clock_timestamp();

    perform builder_score.define_host_views();
    return next 'views builder_score.host_users, host_projects, host_collaborations';
    return query select * from builder_score.define_access();
    perform builder_score.define_triggers();
    return next format('triggers builder_score_... on %s, %s, %s', builder_score.host_table('users'),
        builder_score.host_table('projects'), builder_score.host_table('project_collaborators'));

    v_trouble := builder_score.try_write();
    if v_trouble is not null then
        raise warning '%', v_trouble;
        return next v_trouble;
    end if;

    if exists (select from builder_score.host_users) then
        perform builder_score.enqueue_everyone('attach');
        return next 'everyone is enqueued';
    end if;
end
$function$;

comment on function builder_score.attach(text) is
    '(Re)creates the views, triggers, grants and policies on the host''s tables from the columns it finds, tries one write, and '
    'enqueues everyone. Idempotent; returns what it did. The caller owns the host''s tables. The argument is the '
    'search_path for the host''s own triggers on users.';

create function builder_score.detach() returns setof text
language plpgsql
set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $function$
-- reads: pg_catalog
-- writes: removes host views, and our triggers, policies and grants on the host's tables; host
declare
    v_owner constant name := builder_score.owner_role();
    v_object record;
    v_count integer := 0;
begin
    for v_object in
        select t.tgname, t.tgrelid::regclass as host_table
        from pg_trigger as t
        join unnest(array['users', 'projects', 'project_collaborators']::name[]) as n(name)
            on t.tgrelid = builder_score.host_table(n.name)
        where t.tgname like 'builder\_score\_%' and not t.tgisinternal
    loop
        execute format('drop trigger %I on %s', v_object.tgname, v_object.host_table);
        v_count := v_count + 1;
    end loop;
    return next format('%s triggers removed', v_count);

    for v_object in
        select p.polname, p.polrelid::regclass as host_table
        from pg_policy as p
        join unnest(array['users', 'projects', 'project_collaborators']::name[]) as n(name)
            on p.polrelid = builder_score.host_table(n.name)
        where p.polname in ('builder_score_read', 'builder_score_write')
    loop
        execute format('drop policy %I on %s', v_object.polname, v_object.host_table);
        return next format('policy %I on %s removed', v_object.polname, v_object.host_table);
    end loop;

    drop view if exists builder_score.host_users, builder_score.host_projects, builder_score.host_collaborations;
    return next 'views removed';

    for v_object in
        select c.oid::regclass as host_table, c.relname, c.relnamespace::regnamespace as schema_name
        from unnest(array['users', 'projects', 'project_collaborators']::name[]) as n(name)
        join pg_class as c on c.oid = builder_score.host_table(n.name)
        where pg_get_userbyid(c.relowner) <> v_owner
    loop
        execute format('revoke select on %s from %I', v_object.host_table, v_owner);
        if v_object.relname = 'users' and builder_score.host_column_type('users', 'builder_score') is not null then
            execute format('revoke update (builder_score) on %s from %I', v_object.host_table, v_owner);
        end if;
        if exists (
            select from pg_namespace as n cross join lateral aclexplode(n.nspacl) as a
            where n.oid = v_object.schema_name and a.grantee = v_owner::text::regrole
        ) then
            execute format('revoke usage on schema %s from %I', v_object.schema_name, v_owner);
        end if;
    end loop;

    update builder_score.host set attached_at = null;
end
$function$;

comment on function builder_score.detach() is
    'Removes the views, and our triggers, policies and grants on the host''s tables; the queue and all scores stay. Returns what it did.';
