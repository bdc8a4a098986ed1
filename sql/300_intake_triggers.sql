-- The trigger functions on the host's tables. They append the ids of their own OLD and NEW rows and read
-- no host table: whoever must be looked up is named by the project, which the worker turns into people
-- in one snapshot. attach() creates the triggers; row level functions serve partitioned hosts.
-- PostgreSQL keeps nobody from renaming a column that they name. The application's writes must not fail for it:
-- then, until the next attach(), everyone is appended. The block that notices it writes nothing, so that it costs no
-- subtransaction id, and looks at each column that is named below it: has_column_privilege() raises where it is gone.
-- The application waits for every line that runs here: what the change of a row needs is one expression and one INSERT.

create function builder_score.users_after_insert() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: score_recalc_queue
begin
    begin
        if num_nulls(has_column_privilege(tg_relid, 'id', 'select')) > 0 then
            return null;
        end if;
    exception when undefined_column then
        perform builder_score.enqueue_everyone(format('column renamed: %s', tg_table_name));
        return null;
    end;
    -- a row that names nobody stands for everyone
    if tg_level = 'STATEMENT' then
        insert into builder_score.score_recalc_queue (user_id, priority, reason)
        select n.id, 20, 'user inserted' from new_rows as n where n.id is not null;
    elsif new.id is not null then
        insert into builder_score.score_recalc_queue (user_id, priority, reason)
        values (new.id, 20, 'user inserted');
    end if;
    return null;
end
$function$;

comment on function builder_score.users_after_insert() is 'Trigger: a new user gets a first score.';

create function builder_score.users_after_update() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: score_recalc_queue
-- tg_argv[0]: the reason; the trigger's WHEN has decided that the change matters
declare
    v_same boolean;
begin
    begin
        v_same := old.id = new.id;
    exception when undefined_column then
        perform builder_score.enqueue_everyone(format('column renamed: %s', tg_table_name));
        return null;
    end;
    if v_same then
        insert into builder_score.score_recalc_queue (user_id, priority, reason)
        values (new.id, 20, tg_argv[0]);
    else
        insert into builder_score.score_recalc_queue (user_id, priority, reason)
        select v.user_id, 20, tg_argv[0]
        from (values (new.id), (old.id)) as v(user_id)
        where v.user_id is not null;
    end if;
    return null;
end
$function$;

comment on function builder_score.users_after_update() is 'Trigger: a changed profile, or a score that somebody else wrote.';

create function builder_score.users_after_delete() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: score_recalc_queue
begin
    begin
        if num_nulls(has_column_privilege(tg_relid, 'id', 'select')) > 0 then
            return null;
        end if;
    exception when undefined_column then
        perform builder_score.enqueue_everyone(format('column renamed: %s', tg_table_name));
        return null;
    end;
    if tg_level = 'STATEMENT' then
        insert into builder_score.score_recalc_queue (user_id, priority, reason)
        select o.id, 20, 'user deleted' from old_rows as o where o.id is not null;
    elsif old.id is not null then
        insert into builder_score.score_recalc_queue (user_id, priority, reason)
        values (old.id, 20, 'user deleted');
    end if;
    return null;
end
$function$;

comment on function builder_score.users_after_delete() is 'Trigger: the worker forgets the user.';

create function builder_score.projects_after_insert() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: score_recalc_queue
-- tg_argv[0]: true where collaborator rows may be there before their project (no foreign key), or where an
-- update that moves a project to another partition fires as a delete and an insert
begin
    begin
        if num_nulls(has_column_privilege(tg_relid, 'id', 'select'), has_column_privilege(tg_relid, 'owner_id', 'select')) > 0 then
            return null;
        end if;
    exception when undefined_column then
        perform builder_score.enqueue_everyone(format('column renamed: %s', tg_table_name));
        return null;
    end;
    if tg_level = 'STATEMENT' then
        insert into builder_score.score_recalc_queue (user_id, priority, reason)
        select distinct n.owner_id, 10, 'project inserted'
        from new_rows as n where n.owner_id is not null;
        if tg_argv[0] = 'true' then
            insert into builder_score.score_recalc_queue (project_id, priority, reason)
            select n.id, 10, 'project inserted'
            from new_rows as n where n.id is not null;
        end if;
        return null;
    end if;
    if new.owner_id is not null then
        insert into builder_score.score_recalc_queue (user_id, priority, reason)
        values (new.owner_id, 10, 'project inserted');
    end if;
    if tg_argv[0] = 'true' and new.id is not null then
        insert into builder_score.score_recalc_queue (project_id, priority, reason)
        values (new.id, 10, 'project inserted');
    end if;
    return null;
end
$function$;

comment on function builder_score.projects_after_insert() is 'Trigger: the owner has a new project.';

create function builder_score.projects_after_update() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: score_recalc_queue
declare
    v_same_owner boolean;
    v_same boolean;
begin
    begin
        v_same_owner := old.owner_id = new.owner_id;
        v_same := old.id = new.id;
    exception when undefined_column then
        perform builder_score.enqueue_everyone(format('column renamed: %s', tg_table_name));
        return null;
    end;
    if v_same_owner and v_same then
        insert into builder_score.score_recalc_queue (user_id, priority, reason)
        values (new.owner_id, 10, 'project updated');
        return null;
    end if;
    -- A null owner must not become a row that names nobody: such a row stands for everyone.
    if new.owner_id is not null then
        insert into builder_score.score_recalc_queue (user_id, priority, reason)
        values (new.owner_id, 10, 'project updated');
    end if;
    if old.owner_id is distinct from new.owner_id or old.id is distinct from new.id then
        if old.owner_id is not null then
            insert into builder_score.score_recalc_queue (user_id, priority, reason)
            values (old.owner_id, 10, 'project transferred');
        end if;
        if new.id is not null then
            insert into builder_score.score_recalc_queue (project_id, priority, reason)
            values (new.id, 10, 'project transferred');
        end if;
    end if;
    return null;
end
$function$;

comment on function builder_score.projects_after_update() is
    'Trigger: status, stars, metrics or owner changed; a transfer concerns both owners and the collaborators.';

create function builder_score.projects_after_delete() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: score_recalc_queue
-- tg_argv[0]: true where collaborator rows may outlive their project (no foreign key)
begin
    begin
        if num_nulls(has_column_privilege(tg_relid, 'id', 'select'), has_column_privilege(tg_relid, 'owner_id', 'select')) > 0 then
            return null;
        end if;
    exception when undefined_column then
        perform builder_score.enqueue_everyone(format('column renamed: %s', tg_table_name));
        return null;
    end;
    if tg_level = 'STATEMENT' then
        insert into builder_score.score_recalc_queue (user_id, priority, reason)
        select distinct o.owner_id, 10, 'project deleted'
        from old_rows as o where o.owner_id is not null;
        if tg_argv[0] = 'true' then
            insert into builder_score.score_recalc_queue (project_id, priority, reason)
            select o.id, 10, 'project deleted'
            from old_rows as o where o.id is not null;
        end if;
        return null;
    end if;
    if old.owner_id is not null then
        insert into builder_score.score_recalc_queue (user_id, priority, reason)
        values (old.owner_id, 10, 'project deleted');
    end if;
    if tg_argv[0] = 'true' and old.id is not null then
        insert into builder_score.score_recalc_queue (project_id, priority, reason)
        values (old.id, 10, 'project deleted');
    end if;
    return null;
end
$function$;

comment on function builder_score.projects_after_delete() is
    'Trigger: the owner has a project less; collaborators are appended by the rows that the cascade deletes, '
    'or by the project where there is no foreign key.';

create function builder_score.collaborators_after_insert() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: statuses, statuses_changed_by
-- writes: score_recalc_queue
declare
    -- asked only where the answer may be yes
    v_changed constant boolean := current_setting('transaction_isolation') in ('repeatable read', 'serializable')
        and builder_score.statuses_have_changed();
begin
    begin
        if num_nulls(has_column_privilege(tg_relid, 'project_id', 'select'),
                     has_column_privilege(tg_relid, 'user_id', 'select'),
                     has_column_privilege(tg_relid, 'status', 'select')) > 0 then
            return null;
        end if;
    exception when undefined_column then
        perform builder_score.enqueue_everyone(format('column renamed: %s', tg_table_name));
        return null;
    end;
    if tg_level = 'STATEMENT' then
        with confirmed as (
            select n.user_id as user_id, n.project_id as project_id
            from new_rows as n
            where n.status::text in (select s.status from builder_score.statuses as s where s.meaning = 'confirmed')
               or v_changed
        )
        insert into builder_score.score_recalc_queue (user_id, project_id, priority, reason)
        select distinct c.user_id, null::builder_score.project_id, 10, 'collaboration confirmed'
        from confirmed as c where c.user_id is not null
        union all
        select distinct null::builder_score.user_id, c.project_id, 10, 'collaboration confirmed'
        from confirmed as c where c.project_id is not null;
        return null;
    end if;
    if v_changed or exists (
        select from builder_score.statuses as s where s.meaning = 'confirmed' and s.status = new.status::text
    ) then
        insert into builder_score.score_recalc_queue (user_id, project_id, priority, reason)
        select v.user_id, v.project_id, 10, 'collaboration confirmed'
        from (values (new.user_id, null::builder_score.project_id),
                     (null, new.project_id)) as v(user_id, project_id)
        where v.user_id is not null or v.project_id is not null;
    end if;
    return null;
end
$function$;

comment on function builder_score.collaborators_after_insert() is 'Trigger: a collaboration that is confirmed from the start.';

create function builder_score.collaborators_after_update() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: statuses, statuses_changed_by
-- writes: score_recalc_queue
declare
    v_changed constant boolean := current_setting('transaction_isolation') in ('repeatable read', 'serializable')
        and builder_score.statuses_have_changed();
    v_was boolean;
    v_is boolean;
    v_moved boolean;
begin
    begin
        if num_nulls(has_column_privilege(tg_relid, 'project_id', 'select'),
                     has_column_privilege(tg_relid, 'user_id', 'select'),
                     has_column_privilege(tg_relid, 'status', 'select')) > 0 then
            return null;
        end if;
    exception when undefined_column then
        perform builder_score.enqueue_everyone(format('column renamed: %s', tg_table_name));
        return null;
    end;
    select coalesce(bool_or(s.status = old.status::text), false),
           coalesce(bool_or(s.status = new.status::text), false),
           old.user_id is distinct from new.user_id
           or old.project_id is distinct from new.project_id
    into v_was, v_is, v_moved
    from builder_score.statuses as s
    where s.meaning = 'confirmed';
    if v_changed or v_moved and (v_was or v_is) or v_was <> v_is then
        -- where it counts now, and where it counted
        insert into builder_score.score_recalc_queue (user_id, project_id, priority, reason)
        select v.user_id, v.project_id, 10, case when v.is_new then 'collaboration confirmed' else 'collaboration ended' end
        from (values (true, new.user_id, null::builder_score.project_id),
                     (true, null, new.project_id),
                     (false, old.user_id, null),
                     (false, null, old.project_id)) as v(is_new, user_id, project_id)
        where (v.user_id is not null or v.project_id is not null)
          and case when v.is_new then v_changed or v_is and (v_moved or not v_was)
                   else (v_changed or v_was) and (v_moved or not v_is) end;
    end if;
    return null;
end
$function$;

comment on function builder_score.collaborators_after_update() is
    'Trigger: a collaboration becomes confirmed, stops being it, or moves while it is.';

create function builder_score.collaborators_after_delete() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: statuses, statuses_changed_by
-- writes: score_recalc_queue
declare
    v_changed constant boolean := current_setting('transaction_isolation') in ('repeatable read', 'serializable')
        and builder_score.statuses_have_changed();
begin
    begin
        if num_nulls(has_column_privilege(tg_relid, 'project_id', 'select'),
                     has_column_privilege(tg_relid, 'user_id', 'select'),
                     has_column_privilege(tg_relid, 'status', 'select')) > 0 then
            return null;
        end if;
    exception when undefined_column then
        perform builder_score.enqueue_everyone(format('column renamed: %s', tg_table_name));
        return null;
    end;
    if tg_level = 'STATEMENT' then
        with confirmed as (
            select o.user_id as user_id, o.project_id as project_id
            from old_rows as o
            where o.status::text in (select s.status from builder_score.statuses as s where s.meaning = 'confirmed')
               or v_changed
        )
        insert into builder_score.score_recalc_queue (user_id, project_id, priority, reason)
        select distinct c.user_id, null::builder_score.project_id, 10, 'collaboration ended'
        from confirmed as c where c.user_id is not null
        union all
        select distinct null::builder_score.user_id, c.project_id, 10, 'collaboration ended'
        from confirmed as c where c.project_id is not null;
        return null;
    end if;
    if v_changed or exists (
        select from builder_score.statuses as s where s.meaning = 'confirmed' and s.status = old.status::text
    ) then
        insert into builder_score.score_recalc_queue (user_id, project_id, priority, reason)
        select v.user_id, v.project_id, 10, 'collaboration ended'
        from (values (old.user_id, null::builder_score.project_id),
                     (null, old.project_id)) as v(user_id, project_id)
        where v.user_id is not null or v.project_id is not null;
    end if;
    return null;
end
$function$;

comment on function builder_score.collaborators_after_delete() is 'Trigger: a confirmed collaboration is gone.';

create function builder_score.host_truncated() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: score_recalc_queue
begin
    perform builder_score.enqueue_everyone(format('truncate: %s', tg_table_name));
    return null;
end
$function$;

comment on function builder_score.host_truncated() is 'Trigger: one row that stands for everyone.';
