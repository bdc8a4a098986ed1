-- The trigger functions on the host's tables. They append the ids of their own OLD and NEW rows and read
-- no host table: whoever must be looked up is named by the project, which the worker turns into people
-- in one snapshot. attach() creates the triggers; row level functions serve partitioned hosts.
-- PostgreSQL keeps nobody from renaming a column that they name. The application's writes must not fail for it:
-- then, until the next attach(), everyone is appended.

create function builder_score.users_after_insert() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: pg_attribute
-- writes: score_recalc_queue
declare
    v_id builder_score.user_id;
begin
    if tg_level = 'ROW' then
        begin   -- nothing is written in here: it costs no subtransaction id, and less than a look at pg_attribute
            v_id := new.id;
        exception when undefined_column then
            perform builder_score.enqueue_everyone(format('column renamed: %s', tg_table_name));
            return null;
        end;
        if v_id is not null then    -- a row that names nobody stands for everyone
            insert into builder_score.score_recalc_queue (user_id, priority, reason) values (v_id, 20, 'user inserted');
        end if;
    else
        if not exists (select from pg_attribute as a where a.attrelid = tg_relid and a.attname = 'id') then
            perform builder_score.enqueue_everyone(format('column renamed: %s', tg_table_name));
            return null;
        end if;
        insert into builder_score.score_recalc_queue (user_id, priority, reason)
        select n.id, 20, 'user inserted' from new_rows as n where n.id is not null;
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
    v_new_id builder_score.user_id;
    v_old_id builder_score.user_id;
begin
    begin   -- nothing is written in here: it costs no subtransaction id
        v_new_id := new.id;
        v_old_id := old.id;
    exception when undefined_column then
        perform builder_score.enqueue_everyone(format('column renamed: %s', tg_table_name));
        return null;
    end;
    if v_new_id is not null then
        insert into builder_score.score_recalc_queue (user_id, priority, reason) values (v_new_id, 20, tg_argv[0]);
    end if;
    if v_old_id <> v_new_id or v_new_id is null and v_old_id is not null then
        insert into builder_score.score_recalc_queue (user_id, priority, reason) values (v_old_id, 20, tg_argv[0]);
    end if;
    return null;
end
$function$;

comment on function builder_score.users_after_update() is 'Trigger: a changed profile, or a score that somebody else wrote.';

create function builder_score.users_after_delete() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: pg_attribute
-- writes: score_recalc_queue
declare
    v_id builder_score.user_id;
begin
    if tg_level = 'ROW' then
        begin   -- nothing is written in here: it costs no subtransaction id, and less than a look at pg_attribute
            v_id := old.id;
        exception when undefined_column then
            perform builder_score.enqueue_everyone(format('column renamed: %s', tg_table_name));
            return null;
        end;
        if v_id is not null then
            insert into builder_score.score_recalc_queue (user_id, priority, reason) values (v_id, 20, 'user deleted');
        end if;
    else
        if not exists (select from pg_attribute as a where a.attrelid = tg_relid and a.attname = 'id') then
            perform builder_score.enqueue_everyone(format('column renamed: %s', tg_table_name));
            return null;
        end if;
        insert into builder_score.score_recalc_queue (user_id, priority, reason)
        select o.id, 20, 'user deleted' from old_rows as o where o.id is not null;
    end if;
    return null;
end
$function$;

comment on function builder_score.users_after_delete() is 'Trigger: the worker forgets the user.';

create function builder_score.projects_after_insert() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: pg_attribute
-- writes: score_recalc_queue
-- tg_argv[0]: true where collaborator rows may be there before their project (no foreign key), or where an
-- update that moves a project to another partition fires as a delete and an insert
declare
    v_id builder_score.project_id;
    v_owner builder_score.user_id;
begin
    if tg_level = 'ROW' then
        begin   -- nothing is written in here: it costs no subtransaction id, and less than a look at pg_attribute
            v_id := new.id;
            v_owner := new.owner_id;
        exception when undefined_column then
            perform builder_score.enqueue_everyone(format('column renamed: %s', tg_table_name));
            return null;
        end;
        if v_owner is not null then
            insert into builder_score.score_recalc_queue (user_id, priority, reason) values (v_owner, 10, 'project inserted');
        end if;
        if tg_argv[0]::boolean then
            insert into builder_score.score_recalc_queue (project_id, priority, reason) values (v_id, 10, 'project inserted');
        end if;
    else
        if (select count(*) from pg_attribute as a where a.attrelid = tg_relid and a.attname in ('id', 'owner_id')) < 2 then
            perform builder_score.enqueue_everyone(format('column renamed: %s', tg_table_name));
            return null;
        end if;
        insert into builder_score.score_recalc_queue (user_id, priority, reason)
        select distinct n.owner_id, 10, 'project inserted' from new_rows as n where n.owner_id is not null;
        if tg_argv[0]::boolean then
            insert into builder_score.score_recalc_queue (project_id, priority, reason)
            select n.id, 10, 'project inserted' from new_rows as n where n.id is not null;
        end if;
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
    v_new_id builder_score.project_id;
    v_old_id builder_score.project_id;
    v_new_owner builder_score.user_id;
    v_old_owner builder_score.user_id;
begin
    begin
        v_new_id := new.id;
        v_old_id := old.id;
        v_new_owner := new.owner_id;
        v_old_owner := old.owner_id;
    exception when undefined_column then
        perform builder_score.enqueue_everyone(format('column renamed: %s', tg_table_name));
        return null;
    end;
    -- A null owner must not become a row that names nobody: such a row stands for everyone.
    if v_new_owner is not null then
        insert into builder_score.score_recalc_queue (user_id, priority, reason) values (v_new_owner, 10, 'project updated');
    end if;
    if v_old_owner is distinct from v_new_owner or v_old_id is distinct from v_new_id then
        if v_old_owner is not null then
            insert into builder_score.score_recalc_queue (user_id, priority, reason) values (v_old_owner, 10, 'project transferred');
        end if;
        if v_new_id is not null then
            insert into builder_score.score_recalc_queue (project_id, priority, reason) values (v_new_id, 10, 'project transferred');
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
-- reads: pg_attribute
-- writes: score_recalc_queue
-- tg_argv[0]: true where collaborator rows may outlive their project (no foreign key)
declare
    v_id builder_score.project_id;
    v_owner builder_score.user_id;
begin
    if tg_level = 'ROW' then
        begin   -- nothing is written in here: it costs no subtransaction id, and less than a look at pg_attribute
            v_id := old.id;
            v_owner := old.owner_id;
        exception when undefined_column then
            perform builder_score.enqueue_everyone(format('column renamed: %s', tg_table_name));
            return null;
        end;
        if v_owner is not null then
            insert into builder_score.score_recalc_queue (user_id, priority, reason) values (v_owner, 10, 'project deleted');
        end if;
        if tg_argv[0]::boolean then
            insert into builder_score.score_recalc_queue (project_id, priority, reason) values (v_id, 10, 'project deleted');
        end if;
    else
        if (select count(*) from pg_attribute as a where a.attrelid = tg_relid and a.attname in ('id', 'owner_id')) < 2 then
            perform builder_score.enqueue_everyone(format('column renamed: %s', tg_table_name));
            return null;
        end if;
        insert into builder_score.score_recalc_queue (user_id, priority, reason)
        select distinct o.owner_id, 10, 'project deleted' from old_rows as o where o.owner_id is not null;
        if tg_argv[0]::boolean then
            insert into builder_score.score_recalc_queue (project_id, priority, reason)
            select o.id, 10, 'project deleted' from old_rows as o where o.id is not null;
        end if;
    end if;
    return null;
end
$function$;

comment on function builder_score.projects_after_delete() is
    'Trigger: the owner has a project less; collaborators are appended by the rows that the cascade deletes, '
    'or by the project where there is no foreign key.';

create function builder_score.is_confirmed(status text) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: statuses
-- writes: nothing
    select exists (
        select from builder_score.statuses as s where s.meaning = 'confirmed' and s.status = is_confirmed.status
    );
$function$;

comment on function builder_score.is_confirmed(text) is 'Whether a collaboration with this status counts.';

create function builder_score.append_collaboration(
    user_id builder_score.user_id, project_id builder_score.project_id, reason text
) returns void
language sql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: score_recalc_queue
    insert into builder_score.score_recalc_queue (user_id, project_id, priority, reason)
    select v.user_id, v.project_id, 10, append_collaboration.reason
    from (values (append_collaboration.user_id, null::builder_score.project_id),
                 (null::builder_score.user_id, append_collaboration.project_id)) as v(user_id, project_id)
    where num_nonnulls(v.user_id, v.project_id) = 1;
$function$;

comment on function builder_score.append_collaboration(builder_score.user_id, builder_score.project_id, text) is
    'Appends both sides of a collaboration: the user, and the project for its owner.';

create function builder_score.collaborators_after_insert() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: pg_attribute, statuses, statuses_changed_by
-- writes: score_recalc_queue
declare
    v_user builder_score.user_id;
    v_project builder_score.project_id;
    v_counts boolean;
    v_changed constant boolean := builder_score.statuses_have_changed();
begin
    if tg_level = 'ROW' then
        begin   -- nothing is written in here: it costs no subtransaction id, and less than a look at pg_attribute
            v_user := new.user_id;
            v_project := new.project_id;
            v_counts := builder_score.is_confirmed(new.status::text) or v_changed;
        exception when undefined_column then
            perform builder_score.enqueue_everyone(format('column renamed: %s', tg_table_name));
            return null;
        end;
        if v_counts then
            perform builder_score.append_collaboration(v_user, v_project, 'collaboration confirmed');
        end if;
    else
        if (select count(*) from pg_attribute as a where a.attrelid = tg_relid and a.attname in ('project_id', 'user_id', 'status')) < 3 then
            perform builder_score.enqueue_everyone(format('column renamed: %s', tg_table_name));
            return null;
        end if;
        with confirmed as (
            select n.user_id, n.project_id
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
    v_new_user builder_score.user_id;
    v_old_user builder_score.user_id;
    v_new_project builder_score.project_id;
    v_old_project builder_score.project_id;
    v_was boolean;
    v_is boolean;
    v_moved boolean;
    v_changed constant boolean := builder_score.statuses_have_changed();
begin
    begin
        v_new_user := new.user_id;
        v_old_user := old.user_id;
        v_new_project := new.project_id;
        v_old_project := old.project_id;
        v_was := builder_score.is_confirmed(old.status::text);
        v_is := builder_score.is_confirmed(new.status::text);
    exception when undefined_column then
        perform builder_score.enqueue_everyone(format('column renamed: %s', tg_table_name));
        return null;
    end;
    v_moved := (v_old_user, v_old_project) is distinct from (v_new_user, v_new_project);
    if v_changed or v_is and (v_moved or not v_was) then
        perform builder_score.append_collaboration(v_new_user, v_new_project, 'collaboration confirmed');
    end if;
    if (v_changed or v_was) and (v_moved or not v_is) then
        perform builder_score.append_collaboration(v_old_user, v_old_project, 'collaboration ended');
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
-- reads: pg_attribute, statuses, statuses_changed_by
-- writes: score_recalc_queue
declare
    v_user builder_score.user_id;
    v_project builder_score.project_id;
    v_counts boolean;
    v_changed constant boolean := builder_score.statuses_have_changed();
begin
    if tg_level = 'ROW' then
        begin   -- nothing is written in here: it costs no subtransaction id, and less than a look at pg_attribute
            v_user := old.user_id;
            v_project := old.project_id;
            v_counts := builder_score.is_confirmed(old.status::text) or v_changed;
        exception when undefined_column then
            perform builder_score.enqueue_everyone(format('column renamed: %s', tg_table_name));
            return null;
        end;
        if v_counts then
            perform builder_score.append_collaboration(v_user, v_project, 'collaboration ended');
        end if;
    else
        if (select count(*) from pg_attribute as a where a.attrelid = tg_relid and a.attname in ('project_id', 'user_id', 'status')) < 3 then
            perform builder_score.enqueue_everyone(format('column renamed: %s', tg_table_name));
            return null;
        end if;
        with confirmed as (
            select o.user_id, o.project_id
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
