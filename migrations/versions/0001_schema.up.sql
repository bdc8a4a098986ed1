set local lock_timeout = '0.5s';
set local statement_timeout = 0;

-- The schema builder_score: its tables, functions and roles. Where the database has none of users, projects and
-- project_collaborators, it creates them too.
-- transaction: one
-- locks on host tables: none

-- The host's key types, as domains. With them every other statement of this schema is static text,
-- whatever the host's ids are.
-- reads: pg_catalog          writes: nothing
-- locks on host tables: none

do $host_types$
declare
    v_schema constant text :=
        coalesce(nullif(current_setting('builder_score.host_schema', true), ''), 'public');
    v_missing text[];
    v_count integer;
    v_type text;
    v_target record;
begin
    select array_agg(t.name order by t.place) filter (where to_regclass(format('%I.%I', v_schema, t.name)) is null),
           count(to_regclass(format('%I.%I', v_schema, t.name)))
    into v_missing, v_count
    from unnest(array['users', 'projects', 'project_collaborators']) with ordinality as t(name, place);

    if v_count not in (0, 3) then
        raise exception 'schema "%" has only some of the tables that builder_score needs: missing %',
                v_schema, array_to_string(v_missing, ', ')
            using errcode = 'undefined_table',
                  detail = 'Expected all of users, projects and project_collaborators, or none of them '
                           '(then reference tables are created).',
                  hint = 'Create the missing tables, or name the schema that holds the application''s tables: '
                         'pyscore migrate --host-schema SCHEMA.';
    end if;

    for v_target in
        select t.domain, t.host_table
        from (values ('user_id', 'users'), ('project_id', 'projects')) as t(domain, host_table)
    loop
        if v_count = 0 then
            v_type := 'uuid';
        else
            -- without its length: what is compared with an id may be longer
            select format_type(a.atttypid, -1)
                   || case when a.attcollation <> y.typcollation
                           then format(' collate %I.%I', n.nspname, l.collname) else '' end
            into v_type
            from pg_attribute as a
            join pg_type as y on y.oid = a.atttypid
            left join pg_collation as l on l.oid = a.attcollation
            left join pg_namespace as n on n.oid = l.collnamespace
            where a.attrelid = to_regclass(format('%I.%I', v_schema, v_target.host_table))
              and a.attname = 'id'
              and not a.attisdropped;
            if not found then
                raise exception '%.id is missing in schema "%"', v_target.host_table, v_schema
                    using errcode = 'undefined_column',
                          detail = 'builder_score identifies users and projects by a single column named id.',
                          hint = 'Add the column, or a generated one, before migrating.';
            end if;
        end if;
        execute format('create domain builder_score.%I as %s', v_target.domain, v_type);
    end loop;
end
$host_types$;

comment on domain builder_score.user_id is 'The type of the host''s users.id.';
comment on domain builder_score.project_id is 'The type of the host''s projects.id.';

-- What later migrations would stumble over, said while nothing has been done yet.
-- reads: pg_catalog          writes: nothing
-- locks on host tables: none

do $preconditions$
declare
    v_schema constant text :=
        coalesce(nullif(current_setting('builder_score.host_schema', true), ''), 'public');
    v_lacking text;
    v_type text;
begin
    if to_regclass(format('%I.users', v_schema)) is null then
        return;     -- the reference tables have all of it
    end if;

    select string_agg(format('%s.%s', c.table_name, c.column_name), ', ')
    into v_lacking
    from (values ('users', 'id'), ('projects', 'id'), ('projects', 'owner_id'), ('projects', 'status'),
                 ('project_collaborators', 'project_id'), ('project_collaborators', 'user_id'),
                 ('project_collaborators', 'status')) as c(table_name, column_name)
    where not exists (
        select from pg_attribute as a
        where a.attrelid = to_regclass(format('%I.%I', v_schema, c.table_name))
          and a.attname = c.column_name and not a.attisdropped);
    if v_lacking is not null then
        raise exception 'the tables in schema "%" lack %', v_schema, v_lacking
            using errcode = 'undefined_column',
                  detail = 'Expected users (id), projects (id, owner_id, status) and '
                           'project_collaborators (project_id, user_id, status).',
                  hint = 'Add what is missing, or a generated column of that name, then migrate again.';
    end if;

    with recursive typed(type_id) as (
        select a.atttypid
        from pg_attribute as a
        where a.attrelid = to_regclass(format('%I.users', v_schema)) and a.attname = 'builder_score' and not a.attisdropped
        union all
        -- a domain over a domain
        select y.typbasetype from typed as d join pg_type as y on y.oid = d.type_id where y.typtype = 'd'
    )
    select format_type(d.type_id, null) into v_type
    from typed as d join pg_type as y on y.oid = d.type_id
    where y.typtype <> 'd';
    if v_type not in ('smallint', 'integer', 'bigint', 'real', 'double precision', 'numeric') then
        raise exception 'users.builder_score has type %', v_type
            using errcode = 'datatype_mismatch',
                  detail = 'Expected smallint, integer, bigint, real, double precision or numeric.',
                  hint = 'Change the column''s type, or rename it: migrate then adds one of its own.';
    end if;

    select string_agg(format('%I.%I (owned by %I)', v_schema, c.relname, pg_get_userbyid(c.relowner)), ', ' order by c.relname)
    into v_lacking
    from pg_class as c
    where c.oid in (select to_regclass(format('%I.%I', v_schema, t.name)) from unnest(array['users', 'projects', 'project_collaborators']) as t(name))
      and not pg_has_role(current_user, c.relowner, 'usage');
    if v_lacking is not null then
        raise exception '% is not the owner of %', current_user, v_lacking
            using errcode = 'insufficient_privilege',
                  detail = 'Triggers and indexes on a table, and a column, are added by its owner.',
                  hint = 'Migrate as the role that owns the tables, or as a superuser.';
    end if;
end
$preconditions$;

-- Logical replication: a subscriber that lacks our tables or our column stops at the first change to them.
-- So refuse until somebody says that the subscribers are ready.
-- reads: pg_publication          writes: nothing
-- locks on host tables: none

do $publications$
declare
    v_schema constant text :=
        coalesce(nullif(current_setting('builder_score.host_schema', true), ''), 'public');
    v_publications text;
    v_with_users text;
begin
    if coalesce(current_setting('builder_score.subscribers_ready', true), '') = 'on' then
        return;
    end if;
    select string_agg(quote_ident(p.pubname), ', ') into v_publications
    from pg_publication as p where p.puballtables;
    select string_agg(quote_ident(t.pubname), ', ') into v_with_users
    from pg_publication_tables as t
    where t.schemaname = v_schema and t.tablename = 'users'
      and not exists (
          select from pg_attribute as a
          where a.attrelid = to_regclass(format('%I.users', v_schema)) and a.attname = 'builder_score' and not a.attisdropped);
    if v_publications is not null then
        raise exception 'publication % is FOR ALL TABLES: its subscribers stop when our tables appear', v_publications
            using errcode = 'object_not_in_prerequisite_state',
                  detail = 'A subscriber must have the schema builder_score, its tables and users.builder_score first.',
                  hint = 'On each subscriber run the script that `pyscore migrate --sql` prints, then UPDATE builder_score.settings '
                         'SET paused = true; then here: pyscore migrate --subscribers-ready';
    end if;
    if v_with_users is not null then
        raise exception 'publication % has the table users: its subscribers stop when the column builder_score appears', v_with_users
            using errcode = 'object_not_in_prerequisite_state',
                  detail = 'A subscriber must have the column first.',
                  hint = format('On each subscriber: ALTER TABLE %I.users ADD COLUMN builder_score integer DEFAULT 0; '
                                'then here: pyscore migrate --subscribers-ready', v_schema);
    end if;
end
$publications$;

-- The reference tables, for a database that has none of the three. Where the host has them, nothing happens.
-- reads: pg_catalog          writes: creates users, projects, project_collaborators
-- locks on host tables: none

create table builder_score.host_additions (
    kind text not null,
    schema_name name not null,
    table_name name not null,
    object_name name not null,
    added_at timestamptz not null default clock_timestamp(),
    primary key (kind, schema_name, table_name, object_name),
    constraint "kind must be table, column, index or extension"
        check (kind in ('table', 'column', 'index', 'extension'))
);

comment on table builder_score.host_additions is
    'What we added outside our own schema and must take out again on uninstall. '
    'Triggers and policies are known by their names and are not listed.';
comment on column builder_score.host_additions.kind is 'table, column, index or extension.';
comment on column builder_score.host_additions.schema_name is 'Schema of the host''s table, or of the extension.';
comment on column builder_score.host_additions.table_name is 'The host''s table; the extension''s name for an extension.';
comment on column builder_score.host_additions.object_name is 'The table, column, index or extension that we added.';
comment on column builder_score.host_additions.added_at is 'When it was added.';

do $reference_tables$
declare
    v_schema constant text :=
        coalesce(nullif(current_setting('builder_score.host_schema', true), ''), 'public');
    v_search_path constant text := current_setting('search_path');
begin
    if to_regclass(format('%I.users', v_schema)) is not null then
        return;
    end if;

    perform set_config('search_path', quote_ident(v_schema), true);

    create table users (
        id uuid primary key default gen_random_uuid(),
        email text not null unique,
        username text not null unique,
        display_name text,
        avatar_url text,
        headline text,
        bio text,
        primary_role text,
        timezone text,
        contact_links jsonb not null default '{}',
        availability text,
        builder_score integer default 0,
        created_at timestamptz not null default now(),
        updated_at timestamptz not null default now()
    );

    create table projects (
        id uuid primary key default gen_random_uuid(),
        owner_id uuid not null references users (id) on delete cascade,
        title text not null,
        description text,
        status text not null default 'in_progress',
        links jsonb not null default '{}',
        tech_stack text[] not null default '{}',
        impact_metrics jsonb not null default '{}',
        github_stars integer not null default 0,
        created_at timestamptz not null default now(),
        updated_at timestamptz not null default now()
    );

    create table project_collaborators (
        id uuid primary key default gen_random_uuid(),
        project_id uuid not null references projects (id) on delete cascade,
        user_id uuid not null references users (id) on delete cascade,
        role_description text,
        status text not null default 'pending',
        invited_at timestamptz not null default now(),
        confirmed_at timestamptz,
        unique (project_id, user_id)
    );

    create index projects_owner_id_idx on projects (owner_id);
    create index project_collaborators_user_id_idx on project_collaborators (user_id);

    comment on table users is 'People (builder_score''s reference table).';
    comment on column users.builder_score is 'Reputation, 0 to 100, kept by the schema builder_score.';
    comment on table projects is 'What people build (builder_score''s reference table).';
    comment on table project_collaborators is 'Who helps on which project (builder_score''s reference table).';

    insert into builder_score.host_additions (kind, schema_name, table_name, object_name)
    select 'table', v_schema, t.name, t.name
    from unnest(array['users', 'projects', 'project_collaborators']) as t(name);

    perform set_config('search_path', v_search_path, true);
end
$reference_tables$;

-- The roles. builder_score_owner owns this schema and can never log in; builder_score_operator may look,
-- recompute, pause and retry. Where the installer may not create roles, everything stays the installer's.
-- reads: pg_roles          writes: roles, the owner of this schema
-- locks on host tables: none

do $roles$
declare
    v_role name;
    v_usable boolean;
    v_mend text;
begin
    begin
        foreach v_role in array array['builder_score_owner', 'builder_score_operator']::name[] loop
            if not exists (select from pg_roles where rolname = v_role) then
                begin
                    execute format('create role %I nologin', v_role);
                    execute format('comment on role %I is %L', v_role, case v_role
                        when 'builder_score_owner' then 'Owns the schema builder_score and runs its triggers and worker functions.'
                        else 'May read builder_score''s tables, recompute, pause and retry.' end);
                exception when duplicate_object or unique_violation then
                    null;   -- another database of this cluster is being migrated at the same moment
                end;
            end if;
        end loop;
        if exists (select from pg_roles where rolname = 'builder_score_owner' and (rolcanlogin or rolsuper)) then
            raise exception 'role builder_score_owner is there, and can log in or is a superuser'
                using errcode = 'invalid_role_specification',
                      detail = 'Triggers run with its rights whoever writes: expected a role that nobody can be, and that may do nothing else.',
                      hint = 'ALTER ROLE builder_score_owner NOLOGIN NOSUPERUSER; then migrate again.';
        end if;
        -- From PostgreSQL 16 on whoever creates a role may grant it, and is no more than that: neither may they
        -- become it nor do they have its rights. And there it is each grant that inherits, no longer the member.
        if current_setting('server_version_num')::integer >= 160000 then
            v_usable := pg_has_role(current_user, 'builder_score_owner', 'set') and pg_has_role(current_user, 'builder_score_owner', 'usage');
            if not v_usable then
                begin
                    execute format('grant builder_score_owner to %I with inherit true, set true', current_user);
                    v_usable := true;
                exception when insufficient_privilege then
                    if not pg_has_role(current_user, 'builder_score_owner', 'member') then
                        raise;
                    end if;
                end;
            end if;
            v_mend := format('GRANT builder_score_owner TO %I WITH INHERIT TRUE, SET TRUE', current_user);
        else
            if not pg_has_role(current_user, 'builder_score_owner', 'member') then
                execute format('grant builder_score_owner to %I', current_user);
            end if;
            v_usable := pg_has_role(current_user, 'builder_score_owner', 'usage');
            v_mend := format('ALTER ROLE %I INHERIT', current_user);
        end if;
        if not v_usable then
            raise exception 'role % does not inherit the rights of builder_score_owner', current_user
                using errcode = 'invalid_role_specification',
                      detail = 'Expected a member that has them and may become it: builder_score_owner will own what is installed.',
                      hint = format('As a superuser: %s; then migrate again. Or migrate as another role that owns the tables.', v_mend);
        end if;
        alter schema builder_score owner to builder_score_owner;
        alter domain builder_score.user_id owner to builder_score_owner;
        alter domain builder_score.project_id owner to builder_score_owner;
        alter table builder_score.host_additions owner to builder_score_owner;
    exception when insufficient_privilege then
        raise notice 'builder_score: % may not create or become the role builder_score_owner, so it owns everything itself', current_user
            using detail = 'Triggers and worker then run with the rights of this role, and no role may be only an operator.',
                  hint = format('To have both: pyscore uninstall; then, as a superuser, CREATE ROLE builder_score_owner NOLOGIN; '
                                'CREATE ROLE builder_score_operator NOLOGIN; GRANT builder_score_owner TO %I; then migrate again.', current_user);
    end;
end
$roles$;

comment on schema builder_score is 'Reputation scores: users.builder_score, kept right by triggers, a queue and a worker.';

-- What follows, up to $become_installer$, is created by and for the schema's owner.
do $become_owner$
begin
    perform set_config('builder_score.installer', current_user, true);
    perform set_config('role', (select pg_get_userbyid(nspowner) from pg_namespace where nspname = 'builder_score'), true);
end
$become_owner$;

-- Functions below read the host views, which attach() makes last.
set local check_function_bodies = off;

-- What a DBA may turn. One row; every limit is a constraint whose name says what is expected.
-- reads: nothing          writes: settings

create table builder_score.settings (
    one_row boolean primary key default true,
    debounce_window interval not null default '5 minutes',
    batch_size integer not null default 500,
    batch_target interval not null default '0.05 seconds',
    workers integer not null default 1,
    poll_interval interval not null default '0.1 seconds',
    max_attempts integer not null default 5,
    retry_base interval not null default '10 seconds',
    retry_cap interval not null default '1 hour',
    refresh_after interval not null default '7 days',
    backfill_per_second integer not null default 5000,
    notify_max_ids integer not null default 2000,
    lock_timeout interval not null default '0.1 seconds',
    paused boolean not null default false,
    paused_reason text,
    constraint "settings has exactly one row" check (one_row),
    constraint "debounce_window must be between 0 and 1 day"
        check (debounce_window >= '0 seconds' and debounce_window <= '1 day'),
    constraint "batch_size must be between 1 and 10000" check (batch_size between 1 and 10000),
    constraint "workers must be between 1 and 16" check (workers between 1 and 16),
    constraint "batch_target must be between 1 ms and 10 seconds"
        check (batch_target >= '0.001 seconds' and batch_target <= '10 seconds'),
    constraint "poll_interval must be between 20 ms and 1 second"
        check (poll_interval >= '0.02 seconds' and poll_interval <= '1 second'),
    constraint "max_attempts must be between 1 and 100" check (max_attempts between 1 and 100),
    constraint "retry_base must be between 10 ms and 1 hour"
        check (retry_base >= '0.01 seconds' and retry_base <= '1 hour'),
    constraint "retry_cap must be between retry_base and 7 days"
        check (retry_cap >= retry_base and retry_cap <= '7 days'),
    constraint "refresh_after must be between 1 day and 365 days"
        check (refresh_after >= '1 day' and refresh_after <= '365 days'),
    constraint "backfill_per_second must be between 1 and 1000000"
        check (backfill_per_second between 1 and 1000000),
    constraint "notify_max_ids must be between 0 and 5000" check (notify_max_ids between 0 and 5000),
    constraint "lock_timeout must be between 1 ms and 10 seconds"
        check (lock_timeout >= '0.001 seconds' and lock_timeout <= '10 seconds')
);

comment on table builder_score.settings is 'What a DBA may turn: one row. A change takes effect with the next batch.';
comment on column builder_score.settings.one_row is 'Always true: keeps the table at one row.';
comment on column builder_score.settings.debounce_window is 'Least time between two unforced recalculations of a user; 0 is off.';
comment on column builder_score.settings.batch_size is 'Users that a worker takes in one transaction, at most.';
comment on column builder_score.settings.batch_target is 'How long a transaction of a worker''s is to take: it takes fewer users when it takes longer.';
comment on column builder_score.settings.workers is 'Resident workers side by side, one connection each; after a change SELECT * FROM builder_score.schedule() again.';
comment on column builder_score.settings.poll_interval is 'Longest nap of an idle worker: the first score after a pause is a little further away.';
comment on column builder_score.settings.max_attempts is 'Failures in a row after which a user goes to score_dead_letter.';
comment on column builder_score.settings.retry_base is 'Wait after the first failure; doubles with every further one.';
comment on column builder_score.settings.retry_cap is 'Longest wait between two attempts.';
comment on column builder_score.settings.refresh_after is 'Age at which the score of a still ageing account is computed anew.';
comment on column builder_score.settings.backfill_per_second is 'Users a second that a backfill puts into the queue.';
comment on column builder_score.settings.notify_max_ids is 'Changed users above which one NOTIFY says "all" instead of naming them.';
comment on column builder_score.settings.lock_timeout is 'How long a batch may wait for a lock (a host trigger''s, another worker''s): at most half of deadlock_timeout, else it is the application that a deadlock ends.';
comment on column builder_score.settings.paused is 'True: workers leave at once and start nothing.';
comment on column builder_score.settings.paused_reason is 'Why, for the next person who looks.';

insert into builder_score.settings default values;

create function builder_score.keep_settings_row() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
begin
    raise exception 'the row of builder_score.settings cannot be removed'
        using errcode = 'restrict_violation',
              detail = 'Every worker reads its settings from this one row.',
              hint = 'UPDATE the columns that should change.';
end
$function$;

comment on function builder_score.keep_settings_row() is 'Trigger: refuses to remove the one row of settings.';

create trigger keep_settings_row before delete on builder_score.settings
    for each row execute function builder_score.keep_settings_row();
create trigger keep_settings_row_on_truncate before truncate on builder_score.settings
    for each statement execute function builder_score.keep_settings_row();

comment on trigger keep_settings_row on builder_score.settings is 'Refuses to delete the one row.';
comment on trigger keep_settings_row_on_truncate on builder_score.settings is 'Refuses to truncate the one row away.';

-- What only one may do at a time. Whoever does it has its row locked until the transaction ends.
-- reads: nothing          writes: turns (locks)

-- Rows, and no advisory locks: those are anybody's to take who may connect, and these only their owner's.
create table builder_score.turns (
    turn text primary key
);

comment on table builder_score.turns is 'What only one may do at a time: whoever does it has its row locked until the transaction ends.';
comment on column builder_score.turns.turn is 'What it is.';

insert into builder_score.turns (turn) values ('catch ids up'), ('change statuses'), ('sum score_counts up'), ('begin a walk');

create function builder_score.is_our_turn(turn text) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: turns
-- writes: turns (a lock)
begin
    perform from builder_score.turns as t where t.turn = is_our_turn.turn for update skip locked;
    return found;
end
$function$;

comment on function builder_score.is_our_turn(text) is
    'Whether nobody else does it, and until the transaction ends nobody else will. Waits for nobody.';

create function builder_score.wait_for_our_turn(turn text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: turns
-- writes: turns (a lock)
begin
    perform from builder_score.turns as t where t.turn = wait_for_our_turn.turn for update;
end
$function$;

comment on function builder_score.wait_for_our_turn(text) is 'Returns when nobody else does it, and until the transaction ends nobody else will.';

-- The intake. Append-only: no unique key but id, no foreign key, no upsert, so that appending never waits.
-- reads: nothing          writes: nothing

create table builder_score.score_recalc_queue (
    id bigint generated always as identity,
    user_id builder_score.user_id,
    project_id builder_score.project_id,
    priority smallint not null,
    not_before timestamptz not null default clock_timestamp(),
    reason text not null,
    enqueued_at timestamptz not null default clock_timestamp(),
    -- No check: PostgreSQL parses it anew for every INSERT, and the application's transaction waits for that. Who may
    -- insert is enqueue(), which checks, and functions that know what they append.
    constraint score_recalc_queue_pkey primary key (id)
) with (
    -- All rows die: the end of the file is often empty, and vacuum would give it back under ACCESS EXCLUSIVE, for which the
    -- application waits, and readers on a standby are cancelled. Nor does it pay to look after rows that only came.
    vacuum_truncate = off,
    autovacuum_vacuum_insert_threshold = -1
);

create index score_recalc_queue_due on builder_score.score_recalc_queue (priority, not_before)
    where user_id is not null;
create index score_recalc_queue_user on builder_score.score_recalc_queue (user_id)
    where user_id is not null;
create index score_recalc_queue_project_due on builder_score.score_recalc_queue (not_before)
    where project_id is not null;
create index score_recalc_queue_project on builder_score.score_recalc_queue (project_id)
    where project_id is not null;
create index score_recalc_queue_everyone on builder_score.score_recalc_queue (not_before)
    where user_id is null and project_id is null;

comment on table builder_score.score_recalc_queue is
    'Whose score may have changed. A row names a user, a project (everyone it concerns) or neither (everyone).';
comment on column builder_score.score_recalc_queue.id is 'Names the row exactly: a worker deletes the ids it has seen.';
comment on column builder_score.score_recalc_queue.user_id is 'The user to recalculate; may no longer exist.';
comment on column builder_score.score_recalc_queue.project_id is 'The project whose owner and confirmed collaborators to recalculate; may no longer exist.';
comment on column builder_score.score_recalc_queue.priority is '0 high and past the debounce, 10 medium, 20 low.';
comment on column builder_score.score_recalc_queue.not_before is 'A hint for the index: the row is not looked at earlier.';
comment on column builder_score.score_recalc_queue.reason is 'What happened, for people.';
comment on column builder_score.score_recalc_queue.enqueued_at is 'When the row was appended.';
comment on index builder_score.score_recalc_queue_due is 'Due users of one priority, oldest first.';
comment on index builder_score.score_recalc_queue_project_due is 'Due projects, oldest first.';
comment on index builder_score.score_recalc_queue_user is 'All rows of a user, to delete or defer them together.';
comment on index builder_score.score_recalc_queue_project is 'Rows of a project, for is_pending().';
comment on index builder_score.score_recalc_queue_everyone is 'Rows that stand for everyone; apart, because they wait for a walk that is under way.';
comment on constraint score_recalc_queue_pkey on builder_score.score_recalc_queue is 'Ids are handed out by a sequence: unique without waiting.';

create function builder_score.enqueue(
    user_id builder_score.user_id,
    priority integer default 10,
    reason text default 'requested'
) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: score_recalc_queue
#variable_conflict use_column
declare
    v_id bigint;
begin
    if enqueue.user_id is null then
        raise exception 'user_id must not be null'
            using errcode = 'null_value_not_allowed',
                  detail = 'A queue row without a user stands for everyone.',
                  hint = 'Name a user, or call builder_score.enqueue_everyone() to recompute everyone.';
    end if;
    if enqueue.priority is null or enqueue.priority not in (0, 10, 20) then
        raise exception 'priority % is not known', coalesce(enqueue.priority::text, 'null')
            using errcode = 'invalid_parameter_value',
                  detail = 'Expected 0 (high, past the debounce), 10 (medium) or 20 (low).',
                  hint = 'Most callers leave it out.';
    end if;
    insert into builder_score.score_recalc_queue (user_id, priority, reason)
    values (enqueue.user_id, enqueue.priority, coalesce(enqueue.reason, 'requested'))
    returning id into v_id;
    return v_id;
end
$function$;

comment on function builder_score.enqueue(builder_score.user_id, integer, text) is
    'Ask for a user''s score to be computed soon. Appends one row, reads nothing, never waits; priority 0 goes past the debounce.';

create function builder_score.enqueue_everyone(reason text default 'requested') returns bigint
language sql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: score_recalc_queue
    insert into builder_score.score_recalc_queue (priority, reason)
    values (20, coalesce(enqueue_everyone.reason, 'requested'))
    returning id;
$function$;

comment on function builder_score.enqueue_everyone(text) is
    'Ask for everyone''s score to be computed: one row, which the worker expands, throttled by settings.backfill_per_second.';

create function builder_score.keep_queue_ids_ahead() returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_bitmapscan = off
set enable_seqscan = off
as $function$
-- reads: score_recalc_queue
-- writes: the sequence of score_recalc_queue.id, turns (a lock)
-- A data-only restore loads rows with the ids they had, lets the triggers append more, and then sets the sequence
-- to where it was; a logical replica gets the rows and no sequence. Without this, every write of the application's
-- would meet an id that is taken. In a queue that is in order this looks behind its last row, and finds nothing.
begin
    -- The snapshot is older than the look at the sequence, so a row that somebody appends meanwhile is never ahead.
    if not exists (select from builder_score.score_recalc_queue as q
                   where q.id >= (select s.last_value + s.is_called::integer from builder_score.score_recalc_queue_id_seq as s)) then
        return;
    end if;
    -- One at a time, and looking again: a second worker would set it back to what was the last id when it looked.
    if builder_score.is_our_turn('catch ids up') then
        if exists (select from builder_score.score_recalc_queue as q
                   where q.id >= (select s.last_value + s.is_called::integer from builder_score.score_recalc_queue_id_seq as s)) then
            perform setval('builder_score.score_recalc_queue_id_seq', (select max(q.id) from builder_score.score_recalc_queue as q));
        end if;
    end if;
end
$function$;

comment on function builder_score.keep_queue_ids_ahead() is
    'Moves the sequence of ids behind the rows that are there, where a restore or a replica has left it before them. The worker calls it.';

-- The formula, as rows. Changing any of them enqueues everyone.
-- reads: nothing          writes: signals, statuses, impact_keys

create table builder_score.signals (
    signal text primary key,
    max_points double precision not null,
    scale double precision not null,
    description text not null,
    constraint "signal must be shipped, vouches, impact, profile or age"
        check (signal in ('shipped', 'vouches', 'impact', 'profile', 'age')),
    constraint "max_points must be between 0 and 100" check (max_points between 0 and 100),
    constraint "scale must be between 0 and 1000" check (scale between 0 and 1000)
);

comment on table builder_score.signals is 'The five signals. A signal with max_points 0 is off. A change enqueues everyone.';
comment on column builder_score.signals.signal is 'Its name.';
comment on column builder_score.signals.max_points is 'Points are cut off here.';
comment on column builder_score.signals.scale is 'Factor of the curve that description names.';
comment on column builder_score.signals.description is 'Raw value and curve, for people.';

insert into builder_score.signals (signal, max_points, scale, description) values
    ('shipped', 30, 10, 'projects owned with a shipped status: scale * log2(n + 1)'),
    ('vouches', 25, 8, 'distinct other people with a confirmed collaboration: scale * log2(n + 1)'),
    ('impact', 20, 4, 'stars and impact metrics over all projects owned: scale * log10(n + 1)'),
    ('profile', 15, 15, 'share of the profile fields filled: scale * share'),
    ('age', 10, 10, 'whole days since sign-up: scale * days / 365');

create table builder_score.statuses (
    meaning text not null,
    status text not null,
    primary key (meaning, status),
    constraint "meaning must be shipped or confirmed" check (meaning in ('shipped', 'confirmed'))
);

comment on table builder_score.statuses is 'Which of the host''s statuses mean shipped (projects) and confirmed (project_collaborators).';
comment on column builder_score.statuses.meaning is 'shipped or confirmed.';
comment on column builder_score.statuses.status is 'The host''s status, as text.';

insert into builder_score.statuses (meaning, status) values ('shipped', 'shipped'), ('confirmed', 'confirmed');

create table builder_score.impact_keys (
    key text primary key
);

comment on table builder_score.impact_keys is 'Keys of projects.impact_metrics whose values count as impact, beside github_stars.';
comment on column builder_score.impact_keys.key is 'A top-level key of the JSON object.';

insert into builder_score.impact_keys (key) values ('users');

create function builder_score.formula_stamp() returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: signals, statuses, impact_keys
-- writes: nothing
-- plpgsql keeps the plan: each batch asks for it.
begin
    return left(md5(
        (select string_agg(format('%s %s %s', signal, max_points, scale), ',' order by signal collate "C") from builder_score.signals)
        || ';' || coalesce((select string_agg(format('%s %s', meaning, status), ',' order by meaning collate "C", status collate "C") from builder_score.statuses), '')
        || ';' || coalesce((select string_agg(key, ',' order by key collate "C") from builder_score.impact_keys), '')
    ), 12);
end
$function$;

comment on function builder_score.formula_stamp() is
    'Names the formula in force: a hash of its rows, kept with every score, so that one computed with an older formula shows.';

create sequence builder_score.statuses_changed_by;

comment on sequence builder_score.statuses_changed_by is
    'The transaction that changed statuses last. A sequence, because it is read past the snapshot of whoever reads it.';

create function builder_score.statuses_have_changed() returns boolean
language sql volatile
set search_path = pg_catalog, pg_temp
as $function$
-- reads: statuses_changed_by
-- writes: nothing
    select current_setting('transaction_isolation') in ('repeatable read', 'serializable')
       and not pg_visible_in_snapshot((select c.last_value::text::xid8 from builder_score.statuses_changed_by as c), pg_current_snapshot());
$function$;

comment on function builder_score.statuses_have_changed() is
    'Whether statuses may have changed since this transaction took its snapshot: then what it sees as uncounted may count.';

create function builder_score.keep_statuses_change_past() returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: statuses_changed_by
-- writes: statuses_changed_by, turns (a lock)
-- Restored from a dump it may name a transaction of another server's that is yet to come here, and statuses would seem
-- to change all the time. Whoever changes them holds the lock to the end, so what we see under it has ended or is foreign.
begin
    if (select c.last_value::text::xid8 from builder_score.statuses_changed_by as c) >= pg_snapshot_xmax(pg_current_snapshot())
       and builder_score.is_our_turn('change statuses') then
        if (select c.last_value::text::xid8 from builder_score.statuses_changed_by as c) >= pg_snapshot_xmax(pg_current_snapshot()) then
            perform setval('builder_score.statuses_changed_by', pg_snapshot_xmax(pg_current_snapshot())::text::bigint);
        end if;
    end if;
end
$function$;

comment on function builder_score.keep_statuses_change_past() is
    'Where a restore has left statuses_changed_by ahead of this server''s transactions, brings it back to them. The worker calls it.';

create function builder_score.formula_changed() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: score_recalc_queue, statuses_changed_by, turns (a lock)
declare
    v_changed boolean := true;
begin
    if tg_op = 'INSERT' then
        v_changed := exists (select from new_rows);
    elsif tg_op = 'DELETE' then
        v_changed := exists (select from old_rows);
    elsif tg_op = 'UPDATE' then
        -- a description is for people
        v_changed := exists (
            select to_jsonb(n) - 'description' from new_rows as n
            except
            select to_jsonb(o) - 'description' from old_rows as o
        );
    end if;
    if v_changed then
        perform builder_score.enqueue_everyone(format('formula: %s', tg_table_name));
        if tg_table_name = 'statuses' then
            -- one after the other, so that the last id is that of the last to commit
            perform builder_score.wait_for_our_turn('change statuses');
            perform setval('builder_score.statuses_changed_by', pg_current_xact_id()::text::bigint);
        end if;
    end if;
    return null;
end
$function$;

comment on function builder_score.formula_changed() is 'Trigger: a statement that changed the formula concerns everyone.';

do $formula_triggers$
declare
    v_table name;
    v_event record;
begin
    foreach v_table in array array['signals', 'statuses', 'impact_keys']::name[] loop
        for v_event in
            select e.*
            from (values ('insert', 'referencing new table as new_rows'),
                         ('update', 'referencing old table as old_rows new table as new_rows'),
                         ('delete', 'referencing old table as old_rows'),
                         ('truncate', '')) as e(name, transition_tables)
        loop
            execute format('create trigger formula_%s after %s on builder_score.%I %s for each statement execute function builder_score.formula_changed()',
                v_event.name, v_event.name, v_table, v_event.transition_tables);
            execute format('comment on trigger formula_%s on builder_score.%I is %L', v_event.name, v_table, 'Enqueues everyone.');
        end loop;
    end loop;
end
$formula_triggers$;

-- What the worker remembers: of each user, of failures, of a running backfill, of itself, of the host.
-- reads: nothing          writes: nothing

create table builder_score.score_state (
    user_id builder_score.user_id primary key,
    score numeric,
    previous_score numeric,
    computed_at timestamptz,
    attempts integer not null default 0,
    retry_at timestamptz,
    first_failed_at timestamptz,
    formula_stamp text,
    rows_read bigint
) with (
    -- Who were first computed together share pages, and a walk over everyone updates all of a page in one transaction:
    -- with room for each once more that moves nobody to another page, and writes to no index.
    fillfactor = 50
);

create index score_state_retrying on builder_score.score_state (retry_at) where retry_at is not null;
create index score_state_heavy on builder_score.score_state (user_id) where rows_read is not null;

comment on index builder_score.score_state_retrying is 'Users in backoff, who are few.';
comment on index builder_score.score_state_heavy is 'Users who are recalculated alone, who are few.';
comment on table builder_score.score_state is 'Per user: the last recalculation and, while it fails, the backoff.';
comment on column builder_score.score_state.user_id is 'The user; no foreign key, so that the host''s DDL and deletes stay its own.';
comment on column builder_score.score_state.score is 'The score last computed, as written to users.builder_score; null before the first success.';
comment on column builder_score.score_state.previous_score is 'The score before the last change.';
comment on column builder_score.score_state.computed_at is 'When: opens the debounce window, and the moment at which the account''s age was taken.';
comment on column builder_score.score_state.attempts is 'Failures in a row.';
comment on column builder_score.score_state.retry_at is 'Not before this moment, whatever is enqueued meanwhile.';
comment on column builder_score.score_state.first_failed_at is 'First of the failures in a row.';
comment on column builder_score.score_state.formula_stamp is 'formula_stamp() it was computed with.';
comment on column builder_score.score_state.rows_read is
    'Projects and collaborations that were read, where those were more than a thousand: such a user has a batch of their own. Else null, '
    'so that a recalculation changes no column of an index.';

create table builder_score.score_dead_letter (
    user_id builder_score.user_id primary key,
    attempts integer not null,
    sqlstate text not null,
    message text not null,
    first_failed_at timestamptz not null,
    last_failed_at timestamptz not null
);

comment on table builder_score.score_dead_letter is 'Users whose computation failed settings.max_attempts times. A new event gives a fresh start.';
comment on column builder_score.score_dead_letter.user_id is 'The user.';
comment on column builder_score.score_dead_letter.attempts is 'Failures in a row when the user was given up.';
comment on column builder_score.score_dead_letter.sqlstate is 'SQLSTATE of the last failure.';
comment on column builder_score.score_dead_letter.message is 'Its message.';
comment on column builder_score.score_dead_letter.first_failed_at is 'First of those failures.';
comment on column builder_score.score_dead_letter.last_failed_at is 'Last of them.';

create table builder_score.backfill (
    one_row boolean primary key default true,
    reason text not null,
    only_ageing boolean not null,
    after_user_id builder_score.user_id,
    seen bigint not null default 0,
    estimated_total bigint not null,
    started_at timestamptz not null default clock_timestamp(),
    resume_at timestamptz not null default clock_timestamp(),
    constraint "one backfill runs at a time" check (one_row)
);

comment on table builder_score.backfill is 'The walk over everyone that is under way: one row, or none.';
comment on column builder_score.backfill.one_row is 'Always true: keeps the table at one row.';
comment on column builder_score.backfill.reason is 'Why everyone was enqueued.';
comment on column builder_score.backfill.only_ageing is 'True: only accounts that still gain points by age, and whose score is old.';
comment on column builder_score.backfill.after_user_id is 'The last user seen; the walk goes on behind it.';
comment on column builder_score.backfill.seen is 'Users seen so far.';
comment on column builder_score.backfill.estimated_total is 'How many there are, by the planner''s statistics.';
comment on column builder_score.backfill.started_at is 'When it began.';
comment on column builder_score.backfill.resume_at is 'When the throttle lets it go on.';

create function builder_score.worker_number(worker text) returns integer
language sql immutable parallel safe
return case when worker like 'resident%' then coalesce(nullif(substr(worker, 10), ''), '1')::integer end;

comment on function builder_score.worker_number(text) is 'The number of a resident worker, as in resident-2; null for drain.';

create table builder_score.worker_status (
    worker text primary key,
    backend_pid integer,
    started_at timestamptz,
    heartbeat_at timestamptz,
    batches bigint not null default 0,
    passes bigint not null default 0,
    recalculated bigint not null default 0,
    changed bigint not null default 0,
    failed bigint not null default 0,
    minute timestamptz,
    minute_recalculated bigint not null default 0,
    minute_before_recalculated bigint not null default 0,
    last_batch_at timestamptz,
    last_batch_seconds double precision,
    batch_seconds double precision not null default 0,
    last_error text,
    last_error_at timestamptz,
    run_by text,
    number integer generated always as (builder_score.worker_number(worker)) stored,
    constraint "worker must be resident, resident-2 to resident-16 or drain"
        check (worker ~ '^(resident(-([2-9]|1[0-6]))?|drain)$')
);

comment on table builder_score.worker_status is 'Heartbeat and totals: of each resident worker (run_worker) and of drain() called by hand.';
comment on column builder_score.worker_status.worker is 'resident, resident-2 and so on, or drain.';
comment on column builder_score.worker_status.backend_pid is 'Backend of the last run.';
comment on column builder_score.worker_status.started_at is 'When the last run began.';
comment on column builder_score.worker_status.heartbeat_at is 'When it last said that it is alive.';
comment on column builder_score.worker_status.batches is 'Batches so far.';
comment on column builder_score.worker_status.passes is 'Attempts to score a batch or a part of one; above batches when failures made it split.';
comment on column builder_score.worker_status.recalculated is 'Recalculations so far.';
comment on column builder_score.worker_status.changed is 'Of those, scores that changed.';
comment on column builder_score.worker_status.failed is 'Failures counted against a user so far.';
comment on column builder_score.worker_status.minute is 'The minute of the last batch that had work.';
comment on column builder_score.worker_status.minute_recalculated is 'Recalculations in that minute.';
comment on column builder_score.worker_status.minute_before_recalculated is 'Recalculations in the minute before it.';
comment on column builder_score.worker_status.last_batch_at is 'End of the last batch that had work.';
comment on column builder_score.worker_status.last_batch_seconds is 'How long it took.';
comment on column builder_score.worker_status.batch_seconds is 'How long all batches took so far.';
comment on column builder_score.worker_status.last_error is 'Last failure of a batch, with its SQLSTATE.';
comment on column builder_score.worker_status.last_error_at is 'When.';
comment on column builder_score.worker_status.run_by is 'What called it: pg_cron, or the application_name of its session.';
comment on column builder_score.worker_status.number is 'Of a resident worker; those above settings.workers have had their day.';

insert into builder_score.worker_status (worker) values ('resident'), ('drain');

create type builder_score.run_memory as (
    marks timestamptz[],
    looked_at timestamptz,
    full_look_at timestamptz,
    batch_size integer,
    round_at timestamptz,
    others_until timestamptz,
    swept_to builder_score.user_id,
    ahead builder_score.user_id[],
    ahead_since timestamptz,
    ahead_priority smallint
);

comment on type builder_score.run_memory is
    'What a run of a worker knows from one batch to the next; lost with the run. All null: look everywhere, take settings.batch_size.';
comment on column builder_score.run_memory.marks is
    'By priority (0, 10, 20), and of projects: the oldest not_before that the last look found, or a moment ago. Before it there are only '
    'dead rows, which stay for as long as somebody holds back vacuum, and what was committed late.';
comment on column builder_score.run_memory.looked_at is 'When all was looked at from the start.';
comment on column builder_score.run_memory.full_look_at is 'When that is done again: it may take a twentieth of the time.';
comment on column builder_score.run_memory.round_at is 'When an idle worker''s round is a whole one though nothing seems to be there.';
comment on column builder_score.run_memory.batch_size is 'Users in the next batch, by how long the last ones took; null: settings.batch_size, however long that takes.';
comment on column builder_score.run_memory.swept_to is 'While more is due than a batch takes: the last user who was taken; from there on, in the order of ids, the next ones are.';
comment on column builder_score.run_memory.ahead is 'Chosen for the batches that come next, in the order in which they are taken.';
comment on column builder_score.run_memory.ahead_since is 'When they were chosen.';
comment on column builder_score.run_memory.ahead_priority is 'Their priority: what comes with a better one does not wait for them.';
comment on column builder_score.run_memory.others_until is
    'After somebody had a batch of their own: for as long again it is the turn of those who need none.';

create table builder_score.scheduled_jobs (
    cron_database name not null,
    job_name text not null,
    run_as name not null,
    job_id bigint not null,
    database_oid oid not null,
    scheduled_at timestamptz not null default now(),
    primary key (cron_database, job_name, run_as)
);

comment on table builder_score.scheduled_jobs is
    'The pg_cron jobs that run our worker, as they were scheduled: pg_cron hides them from other roles, and from this database when '
    'it works in another one. Uninstall takes them out.';
comment on column builder_score.scheduled_jobs.cron_database is 'The database in which pg_cron keeps the job.';
comment on column builder_score.scheduled_jobs.job_name is 'cron.job.jobname.';
comment on column builder_score.scheduled_jobs.run_as is 'The role it runs as; who else is no superuser cannot see it.';
comment on column builder_score.scheduled_jobs.job_id is 'cron.job.jobid.';
comment on column builder_score.scheduled_jobs.database_oid is 'The database it was made for: a copy or a restore of that one has no job.';
comment on column builder_score.scheduled_jobs.scheduled_at is 'When it was last scheduled.';

create function builder_score.known_jobs()
returns table (cron_database name, job_name text, run_as name, job_id bigint, scheduled_at timestamptz)
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: scheduled_jobs, pg_database
-- writes: nothing
    select j.cron_database, j.job_name, j.run_as, j.job_id, j.scheduled_at
    from builder_score.scheduled_jobs as j
    join pg_database as d on d.oid = j.database_oid
    where d.datname = current_database();
$function$;

comment on function builder_score.known_jobs() is 'The rows of scheduled_jobs that are this database''s own.';

create function builder_score.recent_rate(
    minute timestamptz, minute_recalculated bigint, minute_before_recalculated bigint
) returns double precision
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: nothing
    select (case recent_rate.minute
                when m.this_minute then minute_recalculated + minute_before_recalculated
                when m.this_minute - interval '1 minute' then minute_recalculated
                else 0
            end / (60 + extract(epoch from clock_timestamp() - m.this_minute)))::double precision
    from (select date_trunc('minute', clock_timestamp())) as m(this_minute);
$function$;

comment on function builder_score.recent_rate(timestamptz, bigint, bigint) is
    'Recalculations a second, over this minute and the one before.';

create table builder_score.host (
    one_row boolean primary key default true,
    host_schema name not null,
    search_path text not null,
    score_decimals integer not null default 0,
    attached_at timestamptz,
    refreshed_at timestamptz not null default clock_timestamp(),
    walk_again_after xid8,
    clock_set_back boolean not null default false,
    counted_at timestamptz default clock_timestamp(),
    count_tried_at timestamptz,
    constraint "host has exactly one row" check (one_row)
);

comment on table builder_score.host is 'What attach() found: one row.';
comment on column builder_score.host.one_row is 'Always true: keeps the table at one row.';
comment on column builder_score.host.host_schema is 'Schema of users, projects and project_collaborators.';
comment on column builder_score.host.search_path is 'search_path for the one statement that writes users, for the host''s own triggers there.';
comment on column builder_score.host.score_decimals is 'Decimals that users.builder_score holds: 0 for whole numbers, else 1.';
comment on column builder_score.host.attached_at is 'When attach() last ran; null when detached.';
comment on column builder_score.host.refreshed_at is 'When ageing accounts were last enqueued.';
comment on column builder_score.host.walk_again_after is
    'After a change of statuses: everyone is walked again once the transactions before this one, which may have gone by the old list, have ended.';
comment on column builder_score.host.clock_set_back is 'The clock was set back: what waits by the old one is to be brought forward.';
comment on column builder_score.host.counted_at is 'When score_counts was last compared with score_state; null: it is to be done at once.';
comment on column builder_score.host.count_tried_at is 'When that was begun and not done, for want of a lock; null: it was done, or never begun.';

insert into builder_score.host (host_schema, search_path)
select s.name, format('%I, public', s.name)
from (select coalesce(nullif(current_setting('builder_score.host_schema', true), ''), 'public')) as s(name);

-- Autovacuum never looks at tables this small, and without statistics the planner takes a join of them for
-- millions of rows: too much for a health that is looked at every second.
analyze builder_score.settings, builder_score.signals, builder_score.statuses, builder_score.impact_keys,
    builder_score.backfill, builder_score.worker_status, builder_score.host;

-- How many people have each score, so that a rank need not count people: the scores are few.
-- reads: score_state          writes: score_counts

create table builder_score.score_counts (
    appended_by xid8 not null default pg_current_xact_id(),
    id uuid not null default gen_random_uuid(),
    scores numeric[] not null,
    people bigint[] not null,
    people_up_to bigint[],
    stands_for pg_snapshot,
    written_by xid,
    constraint score_counts_pkey primary key (appended_by, id)
) with (
    -- Applications read it for a rank, and would wait for a vacuum that gives back the end of the file.
    vacuum_truncate = off,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 500
);

create index score_counts_sum on builder_score.score_counts (appended_by) where stands_for is not null;

-- Append-only, so that nobody waits: a row per statement that changed scores, by how many people each score became more
-- or less common. Now and then all rows are deleted and their sum is appended, in one statement: whatever snapshot looks
-- at the table, its rows add up to what score_state has in that snapshot.
comment on table builder_score.score_counts is 'How many people have each score: the sum over all rows. Kept by triggers on score_state.';
comment on column builder_score.score_counts.appended_by is 'The transaction that appended the row.';
comment on column builder_score.score_counts.id is 'Tells its rows apart.';
comment on column builder_score.score_counts.scores is 'Scores that became more or less common.';
comment on column builder_score.score_counts.people is 'By how many people; parallel to scores.';
comment on column builder_score.score_counts.people_up_to is
    'Of a sum, whose scores ascend: how many people have such a score or a lower one; parallel to scores. A rank is one place in it.';
comment on column builder_score.score_counts.stands_for is 'Of a sum: the snapshot whose rows it replaced; null: what one statement changed.';
comment on column builder_score.score_counts.written_by is
    'Of a sum: its own xmin, a subtransaction''s as a rule. Another one has a row that was restored, or replicated: its transactions are another server''s.';
comment on constraint score_counts_pkey on builder_score.score_counts is 'Random, so that it is unique without waiting, on a promoted subscriber too.';
comment on index builder_score.score_counts_sum is 'Sums, the newest last: one look past all that were deleted, while vacuum is held back.';

create function builder_score.counts_since(first_later xid8, unfinished xid8[])
returns table (place tid, scores numeric[], people bigint[])
language sql stable
begin atomic
    select r.ctid, r.scores, r.people
    from builder_score.score_counts as r
    where r.appended_by >= counts_since.first_later and r.stands_for is null
    union all
    select r.ctid, r.scores, r.people
    from builder_score.score_counts as r
    where r.appended_by = any(counts_since.unfinished) and r.appended_by < counts_since.first_later and r.stands_for is null;
end;

comment on function builder_score.counts_since(xid8, xid8[]) is
    'The rows that a sum does not hold: of transactions that were unfinished when it was made, and of those that began later. Inlined.';

create view builder_score.newest_score_sum as
select c.ctid as place, c.scores, c.people, c.people_up_to,
       pg_snapshot_xmax(c.stands_for) as first_later,
       array(select pg_snapshot_xip(c.stands_for)) || c.appended_by as unfinished,
       c.xmin = c.written_by as genuine
from builder_score.score_counts as c
where c.stands_for is not null
order by c.appended_by desc
limit 1;

comment on view builder_score.newest_score_sum is 'The last sum in score_counts, and what it does not hold.';
comment on column builder_score.newest_score_sum.place is 'ctid of the row.';
comment on column builder_score.newest_score_sum.scores is 'Scores, the lowest first.';
comment on column builder_score.newest_score_sum.people is 'How many people have each; parallel to scores.';
comment on column builder_score.newest_score_sum.people_up_to is 'How many have it or a lower one; parallel to scores.';
comment on column builder_score.newest_score_sum.first_later is 'It holds nothing of this transaction and those after it.';
comment on column builder_score.newest_score_sum.unfinished is 'Nor of these, which are earlier or its own.';
comment on column builder_score.newest_score_sum.genuine is 'False: it came from another server, whose transactions these are, and says nothing here.';

create view builder_score.live_score_counts as
with newest as materialized (
    select * from builder_score.newest_score_sum
)
select n.place, n.scores, n.people
from newest as n
where n.genuine
union all
select c.place, c.scores, c.people
from newest as n
cross join lateral builder_score.counts_since(n.first_later, n.unfinished) as c
where n.genuine
union all
select c.ctid, c.scores, c.people
from builder_score.score_counts as c
where not exists (select from newest as n where n.genuine);

-- The table may hold any number of deleted rows for as long as somebody holds back vacuum. So they are not waded through:
-- what the newest sum did not see was appended by transactions that had not ended by then, and is found by their ids.
comment on view builder_score.live_score_counts is
    'All rows of score_counts that can be seen, by a way that does not lead through those deleted before the newest sum.';
comment on column builder_score.live_score_counts.place is 'ctid of the row.';
comment on column builder_score.live_score_counts.scores is 'Scores that became more or less common.';
comment on column builder_score.live_score_counts.people is 'By how many people; parallel to scores.';

create function builder_score.count_scores() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: the rows that the statement wrote
-- writes: score_counts
begin
    if tg_op = 'UPDATE' then
        insert into builder_score.score_counts (scores, people)
        select array_agg(g.score), array_agg(g.people)
        from (
            select c.score, sum(c.people)::bigint as people
            from (select o.score, -1 as people from old_states as o union all select n.score, 1 from new_states as n) as c
            where c.score is not null
            group by c.score
            having sum(c.people) <> 0
        ) as g
        having count(*) > 0;
    elsif tg_op = 'INSERT' then
        insert into builder_score.score_counts (scores, people)
        select array_agg(g.score), array_agg(g.people)
        from (select n.score, count(*) as people from new_states as n where n.score is not null group by n.score) as g
        having count(*) > 0;
    else
        insert into builder_score.score_counts (scores, people)
        select array_agg(g.score), array_agg(g.people)
        from (select o.score, -count(*) as people from old_states as o where o.score is not null group by o.score) as g
        having count(*) > 0;
    end if;
    return null;
end
$function$;

comment on function builder_score.count_scores() is 'Trigger: appends by how many people each score became more or less common.';

create function builder_score.truncate_score_counts() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: score_counts
-- As TRUNCATE itself, whatever the snapshot: nobody else has a change of score_state under way.
begin
    truncate builder_score.score_counts;
    return null;
end
$function$;

comment on function builder_score.truncate_score_counts() is 'Trigger: nobody has a score any more.';

create function builder_score.leave_out_score_counts() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: nothing
begin
    return null;
end
$function$;

comment on function builder_score.leave_out_score_counts() is 'Trigger: leaves a row out.';

-- Where a data-only restore fires triggers, those above count the rows of score_state; where it fires none, this one leaves none out.
create trigger leave_out_restored before insert on builder_score.score_counts
    for each row when (new.appended_by <> pg_current_xact_id()) execute function builder_score.leave_out_score_counts();

comment on trigger leave_out_restored on builder_score.score_counts is
    'What a restore brings is left out where triggers fire: they have counted it.';

create trigger count_inserted after insert on builder_score.score_state
    referencing new table as new_states for each statement execute function builder_score.count_scores();
create trigger count_updated after update on builder_score.score_state
    referencing old table as old_states new table as new_states for each statement execute function builder_score.count_scores();
create trigger count_deleted after delete on builder_score.score_state
    referencing old table as old_states for each statement execute function builder_score.count_scores();
create trigger count_truncated after truncate on builder_score.score_state
    for each statement execute function builder_score.truncate_score_counts();

comment on trigger count_inserted on builder_score.score_state is 'Keeps score_counts.';
comment on trigger count_updated on builder_score.score_state is 'Keeps score_counts.';
comment on trigger count_deleted on builder_score.score_state is 'Keeps score_counts.';
comment on trigger count_truncated on builder_score.score_state is 'Keeps score_counts.';

create function builder_score.compact_score_counts(at_least integer default 8) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $function$
-- reads: score_counts
-- writes: score_counts, turns (a lock)
-- One at a time; who comes second has nothing to do. In an older snapshot than the lock's the rows may be gone already.
declare
    v_written_by xid;
begin
    if (select count(*) from (select from builder_score.live_score_counts limit at_least) as l) < at_least
       or current_setting('transaction_isolation') not in ('read committed', 'read uncommitted')
       or not builder_score.is_our_turn('sum score_counts up') then
        return false;
    end if;
    insert into builder_score.score_counts as c (scores, people) values ('{}', '{}') returning c.xmin into v_written_by;
    with gone as (
        delete from builder_score.score_counts as c
        where c.ctid = any(array(select l.place from builder_score.live_score_counts as l))
        returning c.scores, c.people
    ),
    summed as (
        select r.score, sum(r.people)::bigint as people
        from gone as g
        cross join lateral unnest(g.scores, g.people) as r(score, people)
        group by r.score
        having sum(r.people) <> 0
    )
    insert into builder_score.score_counts (scores, people, people_up_to, stands_for, written_by)
    select coalesce(array_agg(s.score order by s.score), '{}'), coalesce(array_agg(s.people order by s.score), '{}'),
           coalesce(array_agg(s.people_up_to order by s.score), '{}'), pg_current_snapshot(), v_written_by
    from (select u.*, sum(u.people) over (order by u.score)::bigint as people_up_to from summed as u) as s;
    return true;
end
$function$;

comment on function builder_score.compact_score_counts(integer) is
    'Where there are so many rows in score_counts, puts their sum in their place. Waits for nobody, and makes nobody wait. Says whether it did.';

-- How one stored value is read. People type these values: nothing that a column can hold may raise.
-- Standard-conforming bodies, so that names are bound here and the planner can inline them.
-- reads: nothing          writes: nothing

create function builder_score.is_filled(value text) returns boolean
language sql immutable parallel safe
-- White space is Unicode's, not the locale's. A value of 20 MB is not searched (the regular expression
-- engine would need four times as much memory, and fails above 1 GB): it counts as filled.
return coalesce(
    octet_length(value) > 20000000
        or value >= '!' collate "C" and value < E'\x7f' collate "C"    -- it begins like most: no regular expression is run
        or value ~ '[^\s\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]',
    false
);

comment on function builder_score.is_filled(text) is 'True when the text holds more than white space.';

create function builder_score.is_filled(value jsonb) returns boolean
language sql immutable parallel safe
return coalesce(jsonb_typeof(value) = 'object' and value <> '{}'::jsonb, false);

comment on function builder_score.is_filled(jsonb) is 'True when the value is a JSON object with at least one key.';

create function builder_score.count_of(value numeric) returns numeric
language sql immutable parallel safe
-- 10^400 is far beyond any curve's maximum and keeps a sum of many inside numeric's range; 10^-20 is far below any
-- curve's least step and keeps the conversion to double precision from raising an underflow.
return case
    when value > 0 and value < 'Infinity'::numeric then trim_scale(round(least(value, 1e400), 20))
    else 0
end;

comment on function builder_score.count_of(numeric) is 'The value as a count: null, negative, NaN and infinite are 0; nothing is larger than 10^400.';

create function builder_score.count_of(value jsonb) returns numeric
language sql immutable parallel safe
return case jsonb_typeof(value)
    -- as above, and only once: inlined, each mention looks the key up again; there is no NaN and no Infinity in JSON
    when 'number' then trim_scale(round(least(greatest(value::numeric, 0), 1e400), 20))
    when 'string' then case
        when octet_length(value #>> '{}') > 20000000 or (value #>> '{}') !~ '^[0-9]+(\.[0-9]+)?$' then 0
        when length(ltrim(split_part(value #>> '{}', '.', 1), '0')) > 400 then 1e400
        else builder_score.count_of((
            right(split_part(value #>> '{}', '.', 1), 401) || '.' || left(split_part(value #>> '{}', '.', 2) || '0', 20)
        )::numeric)
    end
    else 0
end;

comment on function builder_score.count_of(jsonb) is
    'The value as a count: a JSON number, or text of the form 12 or 12.5; anything else is 0.';

create function builder_score.to_jsonb_or_null(value text) returns jsonb
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $function$
-- not parallel safe: the exception block is a subtransaction
begin
    return value::jsonb;
exception when others then
    return null;    -- not JSON, or JSON that jsonb cannot hold (\u0000)
end
$function$;

comment on function builder_score.to_jsonb_or_null(text) is 'For hosts that keep JSON in a json or text column: the value as jsonb, or null where it is none.';

-- The score: one set-based query over the three host views.
-- reads: host_users, host_projects, host_collaborations, signals, statuses, impact_keys, score_state
-- writes: nothing

create function builder_score.log10_of_one_plus(n numeric) returns double precision
language sql immutable parallel safe
-- double precision ends at 1e308
return case when n < 1e300 then log10(1 + n::double precision) else log(n)::double precision end;

comment on function builder_score.log10_of_one_plus(numeric) is 'log10(1 + n), for n up to 10^131071.';

create function builder_score.count_many(
    user_id builder_score.user_id,
    shipped_statuses text[],
    confirmed_statuses text[],
    impact_keys text[],
    out shipped double precision,
    out impact numeric,
    out people double precision,
    out rows_read bigint
) returns record
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_custom_plan
set enable_bitmapscan = on
set enable_seqscan = on
set max_parallel_workers_per_gather = 0
as $function$
-- reads: host_projects, host_collaborations
-- writes: nothing
-- As compute() does it, but planned for this one user: for somebody with very many rows that is no probe for each.
-- Callers have forbidden the planner what it is to choose here. The application's processors are not taken for it.
begin
    select count(*) filter (where p.status = any(count_many.shipped_statuses)),
           coalesce(sum(p.github_stars + m.impact), 0), count(*)
    into shipped, impact, rows_read
    from builder_score.host_projects as p
    cross join lateral (
        select coalesce(sum(builder_score.count_of(p.impact_metrics -> k.key)), 0) as impact
        from unnest(count_many.impact_keys) as k(key)
    ) as m
    where p.owner_id = count_many.user_id;

    select count(distinct v.person) filter (where v.person <> count_many.user_id), count_many.rows_read + count(*)
    into people, rows_read
    from (
        select c.user_id as person
        from builder_score.host_projects as p
        join builder_score.host_collaborations as c on c.project_id = p.id
        where p.owner_id = count_many.user_id and c.status = any(count_many.confirmed_statuses)
        union all
        select p.owner_id
        from builder_score.host_collaborations as c
        join builder_score.host_projects as p on p.id = c.project_id
        where c.user_id = count_many.user_id and c.status = any(count_many.confirmed_statuses)
    ) as v;
end
$function$;

comment on function builder_score.count_many(builder_score.user_id, text[], text[], text[]) is
    'What compute() counts of a user''s projects and collaborations, where there are more than a thousand of either.';

create function builder_score.compute(
    user_ids builder_score.user_id[],
    as_of timestamptz[],
    max_rows bigint default null,
    until timestamptz default null,
    out user_id builder_score.user_id,
    out shipped numeric,
    out shipped_points double precision,
    out vouches numeric,
    out vouches_points double precision,
    out impact numeric,
    out impact_points double precision,
    out profile numeric,
    out profile_points double precision,
    out age numeric,
    out age_points double precision,
    out score numeric,
    out stored numeric,
    out rows_read bigint,
    out place integer
) returns setof record
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_bitmapscan = off
as $function$
-- reads: host_users, host_projects, host_collaborations, signals, statuses, impact_keys, score_state
-- writes: nothing
-- stored: users.builder_score
-- rows_read: of projects and collaborations. Who has more of them than max_rows is not read to the end, and has no score.
-- Without max_rows, who has more than a thousand of either is not read to the end here, but counted apart: at once, where
-- score_state says so of a user who is alone.
-- until: who comes later is left out, but the first fifty. place: that of the user in user_ids; they are done in their order.
-- An index scan a user: a bitmap is dearer to make than the few rows behind it.
#variable_conflict use_column
declare
    v_shipped constant text[] := array(select s.status from builder_score.statuses as s where s.meaning = 'shipped');
    v_confirmed constant text[] := array(select s.status from builder_score.statuses as s where s.meaning = 'confirmed');
    v_keys constant text[] := array(select k.key from builder_score.impact_keys as k);
    v_limit constant bigint := coalesce(max_rows, case
        when cardinality(user_ids) = 1
             and exists (select from builder_score.score_state as s where s.user_id = user_ids[1] and s.rows_read is not null) then 0
        else 1000 end);
    f record;
begin
    select coalesce(max(s.max_points) filter (where s.signal = 'shipped'), 0) as shipped_max,
           coalesce(max(s.scale) filter (where s.signal = 'shipped'), 0) as shipped_scale,
           coalesce(max(s.max_points) filter (where s.signal = 'vouches'), 0) as vouches_max,
           coalesce(max(s.scale) filter (where s.signal = 'vouches'), 0) as vouches_scale,
           coalesce(max(s.max_points) filter (where s.signal = 'impact'), 0) as impact_max,
           coalesce(max(s.scale) filter (where s.signal = 'impact'), 0) as impact_scale,
           coalesce(max(s.max_points) filter (where s.signal = 'profile'), 0) as profile_max,
           coalesce(max(s.scale) filter (where s.signal = 'profile'), 0) as profile_scale,
           coalesce(max(s.max_points) filter (where s.signal = 'age'), 0) as age_max,
           coalesce(max(s.scale) filter (where s.signal = 'age'), 0) as age_scale
    into f
    from builder_score.signals as s;

    -- Each lateral part keeps to one user or one project (aggregate, limit, offset 0), so that the planner cannot
    -- turn the batch into a scan of a whole host table, whatever its statistics say or lack.
    return query
    select p.user_id,
           p.shipped, p.shipped_points,
           p.vouches, p.vouches_points,
           p.impact, p.impact_points,
           p.profile, p.profile_points,
           p.age, p.age_points,
           case when p.rows_read <= max_rows is not false then round(least(greatest(
               p.shipped_points + p.vouches_points + p.impact_points + p.profile_points + p.age_points,
               0), 100)::numeric, 6) end,
           p.stored, p.rows_read, p.place::integer
    from (
        select i.user_id,
               n.shipped::numeric as shipped,
               least(f.shipped_max, f.shipped_scale * ln(n.shipped + 1) / ln(2)) as shipped_points,
               n.people::numeric as vouches,
               least(f.vouches_max, f.vouches_scale * ln(n.people + 1) / ln(2)) as vouches_points,
               n.impact as impact,
               least(f.impact_max, f.impact_scale * builder_score.log10_of_one_plus(n.impact)) as impact_points,
               host.profile::numeric as profile,
               least(f.profile_max, f.profile_scale * host.profile) as profile_points,
               host.age_days::numeric as age,
               least(f.age_max, f.age_scale * host.age_days / 365) as age_points,
               host.stored,
               n.rows_read,
               i.place
        from (
            select o.user_id, o.as_of, o.place
            from unnest(user_ids, as_of) with ordinality as o(user_id, as_of, place)
            where compute.until is null or o.place <= 50 or clock_timestamp() <= compute.until
        ) as i
        cross join lateral (
            select u.profile_filled::double precision / greatest(u.profile_fields, 1) as profile,
                   case when isfinite(u.created_at)
                        then greatest(floor((extract(epoch from i.as_of) - extract(epoch from u.created_at)) / 86400), 0)
                        when u.created_at = '-infinity' then 1e6
                        else 0
                   end::double precision as age_days,
                   u.builder_score::numeric as stored
            from builder_score.host_users as u
            where u.id = i.user_id
            limit 1
        ) as host
        cross join lateral (
            select count(*) filter (where p.status = any(v_shipped))::double precision as shipped,
                   coalesce(sum(p.github_stars + m.impact), 0) as impact,
                   array_agg(p.id) as ids,
                   count(*) as rows_read
            from (
                select h.id, h.status, h.github_stars, h.impact_metrics
                from builder_score.host_projects as h
                where h.owner_id = i.user_id
                limit v_limit + 1
            ) as p
            cross join lateral (
                select coalesce(sum(builder_score.count_of(p.impact_metrics -> k.key)), 0) as impact
                from unnest(v_keys) as k(key)
            ) as m
        ) as owned
        cross join lateral (
            select count(distinct v.person) filter (where v.person <> i.user_id)::double precision as people,
                   count(*) as rows_read
            from (
                select c.user_id as person
                from unnest(case when owned.rows_read <= v_limit then owned.ids end) as p(id)
                cross join lateral (
                    select k.user_id from builder_score.host_collaborations as k
                    where k.project_id = p.id and k.status = any(v_confirmed)
                    offset 0
                ) as c
                union all
                select p.owner_id
                from builder_score.host_collaborations as c
                cross join lateral (
                    select h.owner_id from builder_score.host_projects as h where h.id = c.project_id offset 0
                ) as p
                where c.user_id = i.user_id and c.status = any(v_confirmed) and owned.rows_read <= v_limit
                limit v_limit + 1
            ) as v
        ) as vouched
        cross join lateral (
            select owned.shipped, owned.impact, vouched.people, owned.rows_read + vouched.rows_read as rows_read
            where max_rows is not null or greatest(owned.rows_read, vouched.rows_read) <= v_limit
            union all
            select m.shipped, m.impact, m.people, m.rows_read
            from builder_score.count_many(i.user_id, v_shipped, v_confirmed, v_keys) as m
            where max_rows is null and greatest(owned.rows_read, vouched.rows_read) > v_limit
        ) as n
    ) as p;
end
$function$;

comment on function builder_score.compute(builder_score.user_id[], timestamptz[], bigint, timestamptz) is
    'Raw value and points of every signal, and the score (0 to 100, 6 decimals), of each user that exists, '
    'with the account''s age taken as of the moment at the same place in as_of.';

-- Why a score is what it is.
-- reads: what compute() reads          writes: nothing

create function builder_score.unknown_user(user_id builder_score.user_id) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
begin
    raise exception 'user "%" does not exist', unknown_user.user_id
        using errcode = 'no_data_found',
              detail = 'There is no row with this id in the host''s users table.',
              hint = 'Check the id; ids are those of users.id.';
end
$function$;

comment on function builder_score.unknown_user(builder_score.user_id) is 'Raises the one error for a user who does not exist.';

create function builder_score.require_attached() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: host
-- writes: nothing
begin
    if (select h.attached_at is null from builder_score.host as h) then
        raise exception 'builder_score is detached from the host''s tables'
            using errcode = 'object_not_in_prerequisite_state',
                  detail = 'Its views and triggers were removed by detach(); scores stay as they were.',
                  hint = 'SELECT * FROM builder_score.attach();';
    end if;
end
$function$;

comment on function builder_score.require_attached() is 'Raises the one error for a schema that is detached.';

create function builder_score.explain(user_id builder_score.user_id)
returns table (signal text, raw numeric, points double precision, max_points double precision)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: host_users, host_projects, host_collaborations, signals, statuses, impact_keys
-- writes: nothing
#variable_conflict use_column
begin
    perform builder_score.require_attached();
    return query
    select v.signal, v.raw, v.points, coalesce(s.max_points, 0)
    from builder_score.compute(array[explain.user_id], array[clock_timestamp()]) as c
    cross join lateral (values
        (1, 'shipped', c.shipped, c.shipped_points),
        (2, 'vouches', c.vouches, c.vouches_points),
        (3, 'impact', c.impact, c.impact_points),
        (4, 'profile', c.profile, c.profile_points),
        (5, 'age', c.age, c.age_points)
    ) as v(place, signal, raw, points)
    left join builder_score.signals as s on s.signal = v.signal
    order by v.place;
    if not found then
        perform builder_score.unknown_user(explain.user_id);
    end if;
end
$function$;

comment on function builder_score.explain(builder_score.user_id) is
    'What the score would be now, and why: one row per signal. The points add up to the score before it is rounded.';

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

-- From rows that name a project, or everyone, to rows that name a user.
-- reads: the host views          writes: score_recalc_queue, backfill

create function builder_score.expand_projects(
    max_rows integer,
    since timestamptz default null,
    out taken bigint,
    out mark timestamptz
) returns record
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_bitmapscan = off
set enable_seqscan = off
as $function$
-- reads: score_recalc_queue, host_projects, host_collaborations, statuses
-- writes: score_recalc_queue
-- since: where to begin looking (null: with the oldest); mark: where the next look may begin
-- In the index's order, as choose_due().
declare
    v_now constant timestamptz := clock_timestamp();     -- a function in its place could not use the index
begin
    -- As an array, here and wherever rows are chosen with SKIP LOCKED: chosen once, where the subquery of an IN may
    -- be run again for every row that it is compared with.
    -- One statement, so one snapshot: whoever sees the queue row sees the owner and the collaborators of
    -- that same moment. A transfer that commits later has a queue row of its own.
    with taken as (
        delete from builder_score.score_recalc_queue as q
        where q.id = any(array(
            select c.id from builder_score.score_recalc_queue as c
            where c.project_id is not null and c.not_before <= v_now
              and c.not_before >= coalesce(expand_projects.since, '-infinity')
            order by c.not_before
            limit expand_projects.max_rows
            for update skip locked
        ))
        returning q.project_id, q.priority, q.reason, q.enqueued_at, q.not_before
    ),
    project as (
        select t.project_id, min(t.priority) as priority, min(t.reason) as reason, min(t.enqueued_at) as enqueued_at
        from taken as t
        group by t.project_id
    ),
    appended as (
        insert into builder_score.score_recalc_queue (user_id, priority, reason, enqueued_at)
        select c.user_id, min(p.priority), min(p.reason), min(p.enqueued_at)
        from project as p
        cross join lateral (
            select h.owner_id as user_id from builder_score.host_projects as h where h.id = p.project_id
            union all
            select k.user_id from builder_score.host_collaborations as k
            where k.project_id = p.project_id
              and k.status in (select s.status from builder_score.statuses as s where s.meaning = 'confirmed')
        ) as c
        where c.user_id is not null
        group by c.user_id
    )
    -- as choose_due() marks: what was taken may come back
    select count(*), coalesce(min(t.not_before), v_now - interval '1 second') into taken, mark from taken as t;
end
$function$;

comment on function builder_score.expand_projects(integer, timestamptz) is
    'Turns due queue rows that name a project into rows for its owner and its confirmed collaborators. Returns how many it took.';

create function builder_score.start_backfill(reason text, only_ageing boolean) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: pg_catalog
-- writes: backfill, turns (a lock)
begin
    -- Beside a worker that is about to begin one the insert would wait for its batch.
    if not builder_score.is_our_turn('begin a walk') then
        return false;
    end if;
    insert into builder_score.backfill (reason, only_ageing, estimated_total)
    select start_backfill.reason, start_backfill.only_ageing, coalesce(sum(greatest(c.reltuples, 0)), 0)
    from builder_score.host as h
    join pg_namespace as n on n.nspname = h.host_schema
    join pg_class as r on r.relnamespace = n.oid and r.relname = 'users'
    cross join lateral (
        select r.oid where r.relkind <> 'p'
        union all
        select t.relid from pg_partition_tree(r.oid) as t where r.relkind = 'p' and t.isleaf
    ) as leaf
    join pg_class as c on c.oid = leaf.oid
    on conflict (one_row) do nothing;
    return found;
end
$function$;

comment on function builder_score.start_backfill(text, boolean) is
    'Begins a walk over everyone, or over those whose age still counts. False when one is under way.';

create function builder_score.advance_backfill() returns timestamptz
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $function$
-- reads: score_recalc_queue, backfill, host, host_users, score_state, score_dead_letter, signals, settings
-- writes: score_recalc_queue, backfill, host
-- returns: when the walk may go on; null when none is under way
-- Rows for everyone look common to the planner where many rows have no user and many no project: it would scan the
-- whole queue for one, with every batch.
declare
    v_backfill builder_score.backfill;
    v_settings builder_score.settings;
    v_chunk integer;
    v_ids builder_score.user_id[];
    v_now timestamptz := clock_timestamp();
    v_enqueued bigint;
begin
    -- A trigger in a transaction that was open when statuses changed went by the old list, and its queue row, or
    -- the lack of one, became visible after the walk had passed: so a second walk follows those transactions.
    -- An id that is yet to come is another server's, from a dump.
    if exists (select from builder_score.host as h
               where h.walk_again_after <= pg_snapshot_xmin(pg_current_snapshot())
                  or h.walk_again_after > pg_snapshot_xmax(pg_current_snapshot())) then
        perform builder_score.enqueue_everyone('formula: statuses, for transactions that were open');
        update builder_score.host set walk_again_after = null;
        v_now := clock_timestamp();     -- that row is due
    end if;

    -- A row that arrives while a walk is under way waits for the next walk: this one has already passed
    -- people whom the new row means.
    if exists (
           select from builder_score.score_recalc_queue as q
           where q.user_id is null and q.project_id is null and q.not_before <= v_now)
       and builder_score.start_backfill('everyone', false)
    then
        with taken as (
            delete from builder_score.score_recalc_queue as q
            where q.id = any(array(
                select c.id from builder_score.score_recalc_queue as c
                where c.user_id is null and c.project_id is null and c.not_before <= v_now
                for update skip locked
            ))
            returning q.reason
        )
        update builder_score.backfill as b
        set reason = coalesce((select string_agg(distinct t.reason, ', ') from taken as t), b.reason)
        returning b.* into v_backfill;
        if v_backfill.reason ~ '\mstatuses\M' and v_backfill.reason !~ 'that were open'
           and exists (select from pg_snapshot_xip(pg_current_snapshot())) then
            update builder_score.host set walk_again_after = pg_snapshot_xmax(pg_current_snapshot());
        end if;
    end if;

    select b.* into v_backfill from builder_score.backfill as b for update skip locked;
    if not found then
        return null;
    end if;
    v_now := clock_timestamp();
    -- A step puts it off by a second at most; more means that the clock was set back.
    if v_backfill.resume_at > v_now and v_backfill.resume_at <= v_now + interval '1 second' then
        return v_backfill.resume_at;
    end if;

    select s.* into v_settings from builder_score.settings as s;
    v_chunk := least(1000, v_settings.backfill_per_second);

    -- People of the host, and people whom only we still know (a truncate leaves no queue row a user).
    select array_agg(e.id order by e.id) into v_ids
    from (
        select k.id
        from (
            (select u.id from builder_score.host_users as u
             where u.id > v_backfill.after_user_id order by u.id limit v_chunk)
            union
            (select s.user_id from builder_score.score_state as s
             where s.user_id > v_backfill.after_user_id order by s.user_id limit v_chunk)
            union
            (select d.user_id from builder_score.score_dead_letter as d
             where d.user_id > v_backfill.after_user_id order by d.user_id limit v_chunk)
        ) as k(id)
        where v_backfill.after_user_id is not null
        union all
        select k.id
        from (
            (select u.id from builder_score.host_users as u order by u.id limit v_chunk)
            union
            (select s.user_id from builder_score.score_state as s order by s.user_id limit v_chunk)
            union
            (select d.user_id from builder_score.score_dead_letter as d order by d.user_id limit v_chunk)
        ) as k(id)
        where v_backfill.after_user_id is null
        order by id
        limit v_chunk
    ) as e;

    if v_ids is null then
        delete from builder_score.backfill;
        return v_now;   -- look again at once: another row may have waited for this walk to end
    end if;

    insert into builder_score.score_recalc_queue (user_id, priority, reason)
    select e.id, 20, v_backfill.reason
    from unnest(v_ids) as e(id)
    where not v_backfill.only_ageing
       or builder_score.is_ageing(e.id, v_now - v_settings.refresh_after);
    get diagnostics v_enqueued = row_count;

    update builder_score.backfill as b
    set after_user_id = v_ids[cardinality(v_ids)],
        seen = b.seen + cardinality(v_ids),
        -- looking at a user who needs nothing costs a tenth
        resume_at = v_now + make_interval(
            secs => greatest(v_enqueued, cardinality(v_ids) / 10.0)::double precision / v_settings.backfill_per_second)
    returning b.resume_at into v_now;
    return v_now;
end
$function$;

comment on function builder_score.advance_backfill() is
    'Starts a walk over everyone where a queue row asks for it, and takes one throttled step of the one under way.';

create function builder_score.is_ageing(user_id builder_score.user_id, computed_before timestamptz) returns boolean
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: host_users, score_state, signals
-- writes: nothing
    select exists (
        select
        from builder_score.host_users as u
        join builder_score.signals as g on g.signal = 'age'
        left join builder_score.score_state as s on s.user_id = u.id
        where u.id = is_ageing.user_id
          -- nothing is known of people who were loaded past the triggers; who is failing has a row
          -- a score from the future, and its age with it, is from before the clock was set back
          and (s.user_id is null or s.computed_at < is_ageing.computed_before or s.computed_at > clock_timestamp())
          and g.max_points > 0
          and g.scale > 0
          -- in seconds: a timestamp near the end of its range cannot be added to
          and extract(epoch from least(coalesce(s.computed_at, is_ageing.computed_before), clock_timestamp()))
              < extract(epoch from u.created_at) + (ceil(365 * g.max_points / g.scale) * 86400)::numeric
    );
$function$;

comment on function builder_score.is_ageing(builder_score.user_id, timestamptz) is
    'Whether the user''s age still gained points when the score was last computed, and that was before the given moment.';

create function builder_score.refresh_ages() returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $function$
-- reads: score_recalc_queue
-- writes: backfill, host
begin
    if exists (select from builder_score.score_recalc_queue as q where q.user_id is null and q.project_id is null)
       or not builder_score.start_backfill('age', true) then
        return false;
    end if;
    update builder_score.host set refreshed_at = clock_timestamp();
    return true;
end
$function$;

comment on function builder_score.refresh_ages() is
    'Begins the walk that enqueues, at low priority, accounts younger than the age cap whose score is older than '
    'settings.refresh_after. The worker calls it once a day. False when another walk is under way or waits.';

-- Workers side by side: which of the due users each prefers. A preference only: what keeps them right are the row locks.
-- reads: nothing          writes: advisory locks

create function builder_score.take_place(out place integer, out places integer) returns record
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: advisory locks
-- A place is a lock that ends with the batch's transaction, whatever becomes of it: who naps, has crashed or was killed
-- leaves the share to the others at once. place: how many of the others are before ours.
declare
    v_ours integer;
begin
    place := 0;
    places := 1;
    for i in 101..124 loop
        if v_ours is null and pg_try_advisory_xact_lock(1651271539, i) then
            v_ours := i;
        elsif pg_try_advisory_lock_shared(1651271539, i) then
            perform pg_advisory_unlock_shared(1651271539, i);
        else
            place := place + (v_ours is null)::integer;
            places := places + 1;
        end if;
    end loop;
    if v_ours is null then      -- a crowd: alone, as far as we know
        place := 0;
        places := 1;
    end if;
end
$function$;

comment on function builder_score.take_place() is
    'Takes one of the places of those who are in a batch, until the transaction ends. Of how many it is which.';

create function builder_score.is_share(user_id builder_score.user_id, place integer, places integer) returns boolean
language sql immutable parallel safe
return places = 1 or (hashtext(user_id::text) & 2147483647) % places = place;

comment on function builder_score.is_share(builder_score.user_id, integer, integer) is
    'Whether the worker at that place takes the user before the others do.';

-- One batch: choose, lock, re-read, compute, write, delete. Each part a function; run_batch() is the order.
-- reads: everything          writes: users.builder_score and our own tables

create function builder_score.choose_due(
    batch_size integer,
    batch_number bigint,
    passed_over builder_score.user_id[],
    since timestamptz[] default null,
    place integer default 0,
    places integer default 1,
    out user_ids builder_score.user_id[],
    out first_of_them builder_score.user_id,
    out all_of_them boolean,
    out marks timestamptz[],
    out priority smallint
) returns record
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_bitmapscan = off
set enable_seqscan = off
as $function$
-- reads: score_recalc_queue
-- writes: nothing
-- since: where to begin looking, by priority (null: with the oldest)
-- all_of_them: whether no due row behind that was left out
-- marks: where the next look may begin, by priority
-- priority: of all who are not taken for their age alone; null where it is not the same
-- In the index's order, up to the limit: without statistics the planner would fetch the whole backlog, and sort it.
-- Beside other workers half as much again as all of them take, and of that first our share. Who is ahead of the others
-- takes of theirs what they would come to last.
declare
    v_now constant timestamptz := clock_timestamp();
    -- Every tenth place goes to the oldest due row of any priority, and every hundredth to that of any worker's share.
    -- Counted over batches, so that it also holds when a batch has fewer than ten places.
    v_oldest constant integer := div((batch_number + 1) * batch_size, 10) - div(batch_number * batch_size, 10);
    v_window constant integer := case places when 1 then batch_size else (places * batch_size * 3 + 1) / 2 end;
begin
    with due as (
        select q.*, builder_score.is_share(q.user_id, place, places) as ours
        from (values (0::smallint, since[1]), (10::smallint, since[2]), (20::smallint, since[3])) as p(priority, since)
        cross join lateral (
            select q.id, q.user_id, q.priority, q.not_before
            from builder_score.score_recalc_queue as q
            where q.priority = p.priority
              and q.not_before <= v_now
              and q.not_before >= coalesce(p.since, '-infinity')
              and q.user_id is not null
              and q.user_id not in (select p.id from unnest(passed_over) as p(id))     -- hashed, which <> all() is not
            order by q.not_before
            limit v_window
        ) as q
    ),
    chosen as (
        select d.user_id, d.priority, d.not_before, d.among_oldest
        from (
            select due.*,
                   row_number() over (order by due.ours or batch_number % 10 = 9 desc, due.not_before) <= v_oldest as among_oldest
            from due
        ) as d
        order by d.among_oldest desc, d.priority, d.ours desc, case when d.ours then d.not_before end, d.not_before desc
        limit batch_size
    )
    select coalesce(array_agg(distinct c.user_id), '{}'),
           -- by turns the oldest of the best priority and the oldest of all, so that neither keeps the other waiting
           (select f.user_id from chosen as f order by case when batch_number % 2 = 0 then f.priority end, f.not_before limit 1),
           count(*) < batch_size,
           -- Before the first that is there all is dead. Where there is none, a second is left to transactions that have
           -- appended and not yet committed; longer ones are found by the next look at everything.
           (select array_agg(coalesce(m.first, v_now - interval '1 second') order by m.priority)
            from (select p.priority, min(d.not_before) as first
                  from (values (0), (10), (20)) as p(priority) left join due as d on d.priority = p.priority
                  group by p.priority) as m),
           case when min(c.priority) filter (where not c.among_oldest) = max(c.priority) filter (where not c.among_oldest)
                then max(c.priority) filter (where not c.among_oldest) end
    into user_ids, first_of_them, all_of_them, marks, priority
    from chosen as c;
end
$function$;

comment on function builder_score.choose_due(integer, bigint, builder_score.user_id[], timestamptz[], integer, integer) is
    'The due users a batch looks at, but those passed over: by priority, then our share, then age, with every tenth place for the oldest '
    'of any priority.';

create function builder_score.choose_next(
    batch_size integer,
    batch_number bigint,
    passed_over builder_score.user_id[],
    since timestamptz[],
    place integer,
    places integer,
    batch_target interval,
    inout memory builder_score.run_memory,
    out user_ids builder_score.user_id[],
    out first_of_them builder_score.user_id,
    out all_of_them boolean,
    out marks timestamptz[]
) returns record
language plpgsql stable
set search_path = pg_catalog, pg_temp
set jit = off
set enable_bitmapscan = off
set enable_seqscan = off
as $function$
-- reads: score_recalc_queue
-- writes: nothing
-- While more of one priority is due than a batch takes, eight batches are chosen at once and taken in the order of ids: what each
-- of them reads and writes lies closer together then. The next eight go on where these ended, so that nobody's id keeps them
-- waiting; and when a better priority comes, or they took too long, it is chosen anew: nobody is lost, their rows are still there.
-- marks: null where nothing was looked for, because there were some ahead
declare
    v_now constant timestamptz := clock_timestamp();
    v_batches constant integer := 8;
    v_may_sweep constant boolean := cardinality(passed_over) = 0 and memory.batch_size is not null;
    v_chosen record;
begin
    if v_may_sweep and v_now between memory.ahead_since and memory.ahead_since + v_batches * batch_target and cardinality(memory.ahead) > 0
       and not exists (
           select
           from (values (0::smallint), (10::smallint)) as p(priority)
           cross join lateral (
               select from builder_score.score_recalc_queue as q
               where q.priority = p.priority
                 and q.not_before > memory.ahead_since
                 and q.not_before <= v_now
                 and q.user_id is not null
               limit 1
           ) as better
           where p.priority < memory.ahead_priority)
    then
        -- there may be more workers, or fewer, than when they were chosen
        user_ids := array(select u.id from unnest(memory.ahead[:batch_size]) as u(id) where builder_score.is_share(u.id, place, places) order by u.id);
        all_of_them := false;
        memory.swept_to := memory.ahead[least(batch_size, cardinality(memory.ahead))];
        memory.ahead := memory.ahead[batch_size + 1:];
        if cardinality(user_ids) > 0 then
            return;
        end if;
    end if;

    memory.ahead := null;
    if v_may_sweep and memory.swept_to is not null then
        select c.* into v_chosen
        from builder_score.choose_due(v_batches * batch_size, batch_number, passed_over, since, place, places) as c;
        -- our share alone, beside others: who sweeps through theirs would meet them all the way
        user_ids := array(
            select u.id
            from unnest(v_chosen.user_ids) as u(id)
            where builder_score.is_share(u.id, place, places)
            order by u.id <= memory.swept_to, u.id
        );
        if cardinality(user_ids) > batch_size and v_chosen.priority is not null then
            first_of_them := v_chosen.first_of_them;    -- whose turn it is, wherever they are
            user_ids := array_remove(user_ids, first_of_them);
            memory.ahead := user_ids[batch_size:];
            memory.ahead_since := v_now;
            memory.ahead_priority := v_chosen.priority;
            memory.swept_to := coalesce(user_ids[batch_size - 1], memory.swept_to);
            user_ids := user_ids[:batch_size - 1] || first_of_them;
            all_of_them := false;
            marks := v_chosen.marks;
            return;
        end if;
    end if;
    select c.* into v_chosen
    from builder_score.choose_due(batch_size, batch_number, passed_over, since, place, places) as c;
    user_ids := v_chosen.user_ids;
    first_of_them := v_chosen.first_of_them;
    all_of_them := v_chosen.all_of_them;
    marks := v_chosen.marks;
    if v_may_sweep then
        -- Not again directly after it came to nothing: with a better priority in every batch it would be chosen twice each time.
        memory.swept_to := case when not all_of_them and memory.swept_to is null then user_ids[cardinality(user_ids)] end;
    end if;
end
$function$;

comment on function builder_score.choose_next(integer, bigint, builder_score.user_id[], timestamptz[], integer, integer, interval, builder_score.run_memory) is
    'The due users a batch looks at: as choose_due() has them, and in a crowd by neighbours, of eight batches that were chosen at once.';

create function builder_score.lock_users(user_ids builder_score.user_id[]) returns builder_score.user_id[]
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $function$
-- reads: host_users
-- writes: row locks on the host's users
-- One probe a user: left alone, the planner prefers a scan of up to a hundred thousand users.
declare
    v_timeout constant text := current_setting('lock_timeout');
    v_locked builder_score.user_id[];
    v_tries integer := 0;
begin
    perform from builder_score.host_users as u where false for no key update;   -- the table's own lock, as long as that takes
    -- SKIP LOCKED goes by the version of a row that it sees. Where that one's writer commits at this very moment it
    -- follows the row, and waits for whoever writes the next version: then we look again, at versions as they are now.
    perform set_config('lock_timeout', '1ms', true);
    loop
        begin
            select coalesce(array_agg(l.id), '{}') into v_locked
            from (
                select u.id::builder_score.user_id as id
                from builder_score.host_users as u
                where u.id = any(lock_users.user_ids)
                for no key update skip locked
            ) as l;
            exit;
        exception when lock_not_available then
            v_tries := v_tries + 1;
            if v_tries = 5 then
                raise;
            end if;
        end;
    end loop;
    perform set_config('lock_timeout', v_timeout, true);
    return v_locked;
end
$function$;

comment on function builder_score.lock_users(builder_score.user_id[]) is
    'Locks those of the users whom nobody else holds, and says whom. Waits for nobody; lets the host insert projects.';

create function builder_score.has_free_row(user_ids builder_score.user_id[]) returns boolean
language sql security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $function$
-- reads: score_recalc_queue
-- writes: a row lock on score_recalc_queue
-- One probe a user: for the first of any the planner would scan the whole queue.
    select exists (
        select
        from unnest(has_free_row.user_ids) as u(user_id)
        cross join lateral (
            select from builder_score.score_recalc_queue as q
            where q.user_id = u.user_id and q.not_before <= clock_timestamp()
            limit 1
            for update skip locked
        ) as r
    );
$function$;

comment on function builder_score.has_free_row(builder_score.user_id[]) is
    'Whether any due queue row of these users is in nobody''s hands. For whoever holds none of these users, and so is about to wait for nobody.';

create function builder_score.write_scores(user_ids builder_score.user_id[], scores numeric[]) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
set plan_cache_mode = auto
as $function$
-- reads: host
-- writes: users.builder_score
-- One probe a user, as in lock_users().
declare
    v_search_path constant text := current_setting('search_path');
    v_written bigint;
begin
    -- The host's own triggers on users may use unqualified names: they get the host's search_path, and this
    -- one statement, which is analysed under it, names even its operator's schema.
    -- Known to the trigger builder_score_overwritten. The depth tells our write from one that a trigger of the
    -- host's makes meanwhile.
    perform set_config('builder_score.writing', pg_trigger_depth()::text, true);
    perform set_config('search_path', (select h.search_path || ', pg_temp' from builder_score.host as h), true);
    update builder_score.host_users as u
    set builder_score = w.score
    from rows from (pg_catalog.unnest(user_ids), pg_catalog.unnest(scores)) as w(id, score)
    where u.id operator(pg_catalog.=) w.id;
    get diagnostics v_written = row_count;
    perform pg_catalog.set_config('search_path', v_search_path, true);
    perform set_config('builder_score.writing', '', true);

    if v_written <> cardinality(user_ids) then
        raise exception 'users.builder_score was not written for % of % users', cardinality(user_ids) - v_written, cardinality(user_ids)
            using errcode = 'triggered_action_exception',
                  detail = 'A trigger, rule or policy of the host''s on users discarded the write.',
                  hint = 'Let it pass updates of builder_score by the role that owns the schema builder_score.';
    end if;
end
$function$;

comment on function builder_score.write_scores(builder_score.user_id[], numeric[]) is
    'The one place that writes users.builder_score. The rows are locked by the caller.';

create function builder_score.fire_deferred_triggers() returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = auto
set enable_seqscan = on
as $function$
-- reads: host
-- writes: what the host's deferred triggers write
declare
    v_search_path constant text := current_setting('search_path');
begin
    perform set_config('search_path', (select h.search_path || ', pg_temp' from builder_score.host as h), true);
    set constraints all immediate;
    perform pg_catalog.set_config('search_path', v_search_path, true);
end
$function$;

comment on function builder_score.fire_deferred_triggers() is
    'Lets the host''s deferred triggers fire while a failure can still be told to its user, not at COMMIT where nothing catches it.';

create function builder_score.notify_changed(user_ids builder_score.user_id[], max_ids integer) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: NOTIFY builder_score_changed
declare
    v_payload constant text := format('{"user_ids": %s}', array_to_json(user_ids::text[]));
    v_length constant integer := octet_length(v_payload);
    v_count constant integer := cardinality(user_ids);
    v_at_once integer;
begin
    -- A listener that hangs fills the server's queue, and then every COMMIT with a NOTIFY fails. Caches
    -- have a time to live for such days; scores go on.
    if pg_notification_queue_usage() > 0.9 then
        return;
    end if;
    -- A payload ends at 7,999 bytes, and an id may be longer.
    if v_count > max_ids or v_count = 1 and v_length > 7999 then
        perform pg_notify('builder_score_changed', '{"all": true}');
    elsif v_length <= 7999 then
        perform pg_notify('builder_score_changed', v_payload);
    else
        v_at_once := ceil(v_count / ceil(v_length / 7980.0));
        for i in 1..v_count by v_at_once loop
            perform builder_score.notify_changed(user_ids[i:i + v_at_once - 1], v_count);
        end loop;
    end if;
end
$function$;

comment on function builder_score.notify_changed(builder_score.user_id[], integer) is
    'Tells listeners whose scores changed: {"user_ids": ["..."]}, in as many messages as it takes, or {"all": true}.';

create function builder_score.heavy_users(user_ids builder_score.user_id[]) returns builder_score.user_id[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $function$
-- reads: score_state
-- writes: nothing
begin
    return array(select s.user_id from builder_score.score_state as s where s.user_id = any(heavy_users.user_ids) and s.rows_read is not null);
end
$function$;

comment on function builder_score.heavy_users(builder_score.user_id[]) is
    'Those of the users who had so many projects and collaborations that a recalculation takes as long as that of many others.';

create function builder_score.write_states(
    user_ids builder_score.user_id[],
    scores numeric[],
    many_rows bigint[],
    computed_at timestamptz,
    stamp text,
    places tid[] default null
) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
as $function$
-- reads: nothing
-- writes: score_state
-- many_rows: null for most
-- places: where the users' rows were seen, (0,0) for who had none. They are written there, without a look at an index; where
-- one is there no more, all go the other way too, which changes nothing for those who are done.
#variable_conflict use_column
declare
    v_places constant integer := coalesce(cardinality(array_remove(places, '(0,0)')), 0);
    v_written bigint := 0;
begin
    if v_places > 0 then
        update builder_score.score_state as s
        set score = w.score,
            previous_score = case when s.score is distinct from w.score then s.score else s.previous_score end,
            computed_at = write_states.computed_at,
            formula_stamp = write_states.stamp,
            rows_read = w.many_rows,
            attempts = 0,
            retry_at = null,
            first_failed_at = null
        from unnest(user_ids, scores, many_rows, places) as w(user_id, score, many_rows, place)
        where s.ctid = w.place and s.user_id = w.user_id;
        get diagnostics v_written = row_count;
    end if;
    if v_written = cardinality(user_ids) then
        return;
    end if;
    -- An upsert, whatever a lock record costs: a join may be planned while the table is empty, and is kept as it fills.
    insert into builder_score.score_state as s (user_id, score, computed_at, formula_stamp, rows_read)
    select w.user_id, w.score, write_states.computed_at, write_states.stamp, w.many_rows
    from unnest(user_ids, scores, many_rows, places) as w(user_id, score, many_rows, place)
    where w.place = '(0,0)' or v_written < v_places or places is null
    on conflict (user_id) do update
    set score = excluded.score,
        previous_score = case when s.score is distinct from excluded.score then s.score else s.previous_score end,
        computed_at = excluded.computed_at,
        formula_stamp = excluded.formula_stamp,
        rows_read = excluded.rows_read,
        attempts = 0,
        retry_at = null,
        first_failed_at = null;
end
$function$;

comment on function builder_score.write_states(builder_score.user_id[], numeric[], bigint[], timestamptz, text, tid[]) is
    'Notes of each user that the score was computed, and whether that took many rows.';

create function builder_score.score_users(
    user_ids builder_score.user_id[],
    row_ids bigint[],
    row_users builder_score.user_id[] default null,
    until timestamptz default null,
    state_places tid[] default null,
    out recalculated integer,
    out changed integer,
    out put_off integer
) returns record
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $function$
-- reads: host views, formula, score_state, settings
-- writes: users.builder_score, score_state, score_dead_letter, score_recalc_queue, NOTIFY
-- The caller holds the users' row locks and has seen the queue rows in an earlier statement.
-- row_users: whose the rows are; needed where users may be put off, who are left as they are, and their rows: those who
-- are not computed when it is until, and those among others who turn out to need a batch of their own.
-- state_places: where the users' states were seen, parallel to user_ids; (0,0) for who has none.
-- One probe a row: left alone, the planner goes through tens of thousands of queue rows for those it is to delete.
#variable_conflict use_column
declare
    v_now constant timestamptz := clock_timestamp();
    v_stamp constant text := builder_score.formula_stamp();      -- before what it is to vouch for is read
    v_many constant bigint := 1000;
    v_limit constant bigint := case when cardinality(user_ids) > 1 and row_users is not null then v_many end;
    v_done integer;
    v_new record;
begin
    select coalesce(array_agg(c.user_id) filter (where c.score is not null), '{}') as ids,
           coalesce(array_agg(c.score) filter (where c.score is not null), '{}') as scores,
           coalesce(array_agg(c.many_rows) filter (where c.score is not null), '{}') as many_rows,
           array_agg(c.state_place) filter (where c.score is not null) as state_places,
           coalesce(array_agg(c.user_id) filter (where c.score is null), '{}') as heavy,
           coalesce(array_agg(c.user_id) filter (where c.score is not null and c.score is distinct from c.stored), '{}') as changed_ids,
           coalesce(array_agg(c.score) filter (where c.score is not null and c.score is distinct from c.stored), '{}') as changed_scores,
           max(c.place) as last_place
    into v_new
    from (
        select k.user_id, k.stored, round(k.score, h.score_decimals) as score, k.place, state_places[k.place] as state_place,
               case when k.rows_read > v_many then k.rows_read end as many_rows
        from builder_score.compute(
            user_ids, array_fill(v_now, array[cardinality(user_ids)]), v_limit,
            case when row_users is not null then score_users.until end) as k
        cross join builder_score.host as h
    ) as c;
    v_done := case when until is null or row_users is null then cardinality(user_ids)
                   else greatest(v_new.last_place, least(50, cardinality(user_ids))) end;     -- behind the last: nobody but who is gone
    recalculated := cardinality(v_new.ids);
    changed := cardinality(v_new.changed_ids);
    put_off := cardinality(user_ids) - v_done + cardinality(v_new.heavy);

    -- An unchanged score is never written: the index on it would make every write a non-HOT update.
    if changed > 0 then
        perform builder_score.write_scores(v_new.changed_ids, v_new.changed_scores);
        perform builder_score.notify_changed(v_new.changed_ids, (select s.notify_max_ids from builder_score.settings as s));
    end if;
    perform builder_score.write_states(
        v_new.ids, v_new.scores, v_new.many_rows, v_now, v_stamp,
        case when state_places is not null then v_new.state_places end);

    delete from builder_score.score_dead_letter as d where d.user_id = any(v_new.ids::builder_score.user_id[]);
    if put_off = 0 then
        delete from builder_score.score_recalc_queue as q where q.id = any(score_users.row_ids);
    else
        delete from builder_score.score_recalc_queue as q
        where q.id = any(array(
            select r.row_id
            from unnest(score_users.row_ids, score_users.row_users) as r(row_id, user_id)
            where r.user_id in (select d.user_id from unnest(user_ids[:v_done]) as d(user_id))
              and r.user_id not in (select h.user_id from unnest(v_new.heavy::builder_score.user_id[]) as h(user_id))
        ));
        insert into builder_score.score_state as s (user_id, rows_read)
        select h.user_id, v_many + 1 from unnest(v_new.heavy::builder_score.user_id[]) as h(user_id)
        on conflict (user_id) do update set rows_read = excluded.rows_read;
    end if;
end
$function$;

comment on function builder_score.score_users(builder_score.user_id[], bigint[], builder_score.user_id[], timestamptz, tid[]) is
    'Computes and writes the scores of users whose rows the caller has locked, and deletes exactly the given queue rows, '
    'but for those of users whom it puts off.';

-- When a batch cannot take a user now, or cannot score one; and what waits by a clock that was set back.
-- reads: settings, score_recalc_queue, score_state, host, worker_status
-- writes: score_recalc_queue, score_state, score_dead_letter, host, worker_status

create function builder_score.is_users_fault(sqlstate text) returns boolean
language sql immutable parallel safe
-- 40 serialization and deadlock, 53 resources, 55 locks and object state, 57 operator intervention
return left(sqlstate, 2) not in ('40', '53', '55', '57');

comment on function builder_score.is_users_fault(text) is
    'Whether an error with this SQLSTATE counts as a failed attempt of the user it struck.';

create function builder_score.retry_delay(attempts integer) returns interval
language sql volatile
set search_path = pg_catalog, pg_temp
as $function$
-- reads: settings
-- writes: nothing
-- Doubling stops at 2^30, before interval arithmetic overflows. The jitter (0.8 to 1.2) is too small to make
-- a later delay shorter than an earlier one.
    select least(s.retry_cap, s.retry_base * power(2, least(retry_delay.attempts - 1, 30)) * (0.8 + 0.4 * random()))
    from builder_score.settings as s;
$function$;

comment on function builder_score.retry_delay(integer) is
    'Wait after that many failures in a row: exponential from settings.retry_base, jittered, capped by settings.retry_cap.';

create function builder_score.longest_delay() returns interval
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: settings
-- writes: nothing
-- plpgsql keeps its plans, where a function in SQL that is not inlined is planned at every call: here and below
-- whatever a worker calls with every look is in plpgsql.
begin
    -- in seconds, as run_batch() has the window: a day may be an hour shorter
    return (
        select make_interval(secs => extract(epoch from greatest(
            s.debounce_window,
            least(s.retry_cap, s.retry_base * power(2, least(s.max_attempts - 2, 30)) * 1.2),   -- retry_delay(), the jitter at its most
            interval '2 seconds'    -- others' locks, and errors that are nobody's fault
        ))::double precision)
        from builder_score.settings as s
    );
end
$function$;

comment on function builder_score.longest_delay() is
    'The longest that a row is ever put off: one that waits for longer is from before the clock was set back.';

create function builder_score.rows_beyond(until timestamptz, max_rows integer)
returns table (id bigint, enqueued_at timestamptz)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set jit = off
set enable_bitmapscan = off
set enable_seqscan = off
as $function$
-- reads: score_recalc_queue
-- writes: nothing
-- Five ends of indexes, where as a rule there is nothing.
#variable_conflict use_column
begin
    return query
    select r.id, r.enqueued_at
    from (values (0::smallint), (10::smallint), (20::smallint)) as p(priority)
    cross join lateral (
        select q.id, q.enqueued_at from builder_score.score_recalc_queue as q
        where q.priority = p.priority and q.not_before > rows_beyond.until and q.user_id is not null
        order by q.not_before desc
        limit rows_beyond.max_rows
    ) as r
    union all
    (select q.id, q.enqueued_at from builder_score.score_recalc_queue as q
     where q.project_id is not null and q.not_before > rows_beyond.until
     order by q.not_before desc
     limit rows_beyond.max_rows)
    union all
    (select q.id, q.enqueued_at from builder_score.score_recalc_queue as q
     where q.user_id is null and q.project_id is null and q.not_before > rows_beyond.until
     order by q.not_before desc
     limit rows_beyond.max_rows);
end
$function$;

comment on function builder_score.rows_beyond(timestamptz, integer) is
    'Queue rows that wait beyond a moment, those that wait for longest, some of each kind and priority.';

create function builder_score.note_clock_set_back() returns void
language sql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: host
-- Not waiting for whoever attaches.
    update builder_score.host as h
    set clock_set_back = true
    where h.one_row = any(array(select k.one_row from builder_score.host as k for update skip locked));
$function$;

comment on function builder_score.note_clock_set_back() is 'Has the next batch bring forward what waits by a clock that was set back.';

create function builder_score.clock_was_set_back() returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: host, worker_status, score_recalc_queue, settings
-- writes: host
-- A row that somebody has put off by hand is no evidence: a heartbeat from the future is, or a row that was appended
-- there. A second's slack, because clocks are corrected by little all the time, and then nothing waits for long.
declare
    v_now constant timestamptz := clock_timestamp() + interval '1 second';
begin
    if (select h.clock_set_back from builder_score.host as h) then
        return true;
    end if;
    if exists (select from builder_score.worker_status as w where w.heartbeat_at > v_now)
       or exists (select from builder_score.rows_beyond(v_now + builder_score.longest_delay(), 10) as r where r.enqueued_at > v_now) then
        perform builder_score.note_clock_set_back();
        return true;
    end if;
    return false;
end
$function$;

comment on function builder_score.clock_was_set_back() is
    'Whether the clock was set back, and rows that wait by the old one may be left.';

create function builder_score.bring_forward(until timestamptz, max_rows integer) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: score_recalc_queue, score_state
-- writes: score_recalc_queue, score_state, host, worker_status
declare
    v_count bigint;
begin
    update builder_score.score_state as s
    set retry_at = clock_timestamp()
    where s.user_id = any(array(
        select c.user_id from builder_score.score_state as c
        where c.retry_at > bring_forward.until
        for update skip locked
    ));
    update builder_score.score_recalc_queue as q
    set not_before = clock_timestamp()
    where q.id = any(array(
        select c.id from builder_score.score_recalc_queue as c
        where c.id = any(array(select r.id from builder_score.rows_beyond(bring_forward.until, bring_forward.max_rows) as r))
        for update skip locked
    ));
    get diagnostics v_count = row_count;
    -- those in somebody's hands may come back as they were
    if not exists (select from builder_score.rows_beyond(bring_forward.until, 1)) then
        update builder_score.host set clock_set_back = false;
        update builder_score.worker_status as w set heartbeat_at = null where w.heartbeat_at > clock_timestamp();
    end if;
    return v_count;
end
$function$;

comment on function builder_score.bring_forward(timestamptz, integer) is
    'After the clock was set back: makes due what would wait for longer than anything is ever put off. Returns how many rows.';

create function builder_score.defer_held_rows(row_users builder_score.user_id[], due timestamptz[], row_ids bigint[])
returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: score_recalc_queue
-- The three arrays are parallel: a queue row, its user, and when that user is due. The caller holds the users' row locks.
-- One new row takes the place of all of a user's: somebody who is deleted and comes back under the same id may have been
-- seen as gone by another worker, which is about to delete the rows that it has seen, whoever's they are by then.
begin
    with seen as (
        select r.user_id, r.due, r.row_id
        from unnest(row_users, due, row_ids) as r(user_id, due, row_id)
    ),
    dropped as (
        delete from builder_score.score_recalc_queue as q
        using seen as s
        where q.id = s.row_id
        returning q.id, q.priority, q.reason, q.enqueued_at
    )
    insert into builder_score.score_recalc_queue (user_id, not_before, priority, reason, enqueued_at)
    select s.user_id, s.due, coalesce(min(d.priority), 10), coalesce((array_agg(d.reason order by d.id))[1], 'deferred'),
           coalesce(min(d.enqueued_at), clock_timestamp())
    from seen as s
    left join dropped as d on d.id = s.row_id
    group by s.user_id, s.due;
end
$function$;

comment on function builder_score.defer_held_rows(builder_score.user_id[], timestamptz[], bigint[]) is
    'Coalesces the queue rows of each user whom the caller has locked into one, due at the given moment.';

create function builder_score.defer_blocked_users(user_ids builder_score.user_id[]) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: score_recalc_queue
-- Somebody else holds these users. If it is a worker, it is about to delete rows that it has seen, by id:
-- so ids stay as they are, and rows that it already holds are skipped, not waited for.
declare
    v_count bigint;
begin
    update builder_score.score_recalc_queue as q
    set not_before = clock_timestamp() + interval '1 second'
    where q.id = any(array(
        select c.id
        from builder_score.score_recalc_queue as c
        where c.user_id = any(defer_blocked_users.user_ids)
          and c.not_before <= clock_timestamp()     -- else those that cannot be put off would have us do this for ever
        for update skip locked
    ));
    get diagnostics v_count = row_count;
    return v_count;
end
$function$;

comment on function builder_score.defer_blocked_users(builder_score.user_id[]) is
    'Puts the rows of users whom somebody else has locked off for a second, so that no loop spins on them. Returns how many.';

create function builder_score.forget_users(user_ids builder_score.user_id[], seen_at timestamptz) returns void
language sql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: score_state, score_dead_letter
-- Nobody can lock a user who is gone, so another worker may be doing the same: skip what it holds. And who was gone at
-- seen_at may have come back under the same id, and have been computed or have failed since (what is later than now is
-- from before the clock was set back).
    delete from builder_score.score_state as s
    where s.user_id = any(array(
        select c.user_id from builder_score.score_state as c
        where c.user_id = any(forget_users.user_ids)
          and not coalesce(greatest(c.computed_at, c.first_failed_at), '-infinity') between forget_users.seen_at and clock_timestamp() for update skip locked
    ));
    delete from builder_score.score_dead_letter as d
    where d.user_id = any(array(
        select c.user_id from builder_score.score_dead_letter as c
        where c.user_id = any(forget_users.user_ids) and not c.last_failed_at between forget_users.seen_at and clock_timestamp() for update skip locked
    ));
$function$;

comment on function builder_score.forget_users(builder_score.user_id[], timestamptz) is 'Removes what we remember of users who no longer existed at that moment.';

create function builder_score.delete_queue_rows(row_ids bigint[]) returns void
language sql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: score_recalc_queue
    delete from builder_score.score_recalc_queue as q
    where q.id = any(array(
        select c.id from builder_score.score_recalc_queue as c
        where c.id = any(delete_queue_rows.row_ids) for update skip locked
    ));
$function$;

comment on function builder_score.delete_queue_rows(bigint[]) is
    'Deletes those of the rows that nobody else holds: for users no lock protects, because they are gone.';

create function builder_score.record_failure(
    user_id builder_score.user_id, row_ids bigint[], error_code text, message text
) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: settings
-- writes: score_state, score_dead_letter, score_recalc_queue
#variable_conflict use_column
declare
    v_now constant timestamptz := clock_timestamp();
    v_state builder_score.score_state;
    v_due timestamptz;
begin
    if not builder_score.is_users_fault(error_code) then
        -- at least a second, and not everybody at once
        v_due := v_now + make_interval(secs => 1 + random());
    else
        insert into builder_score.score_state as s (user_id, attempts, first_failed_at)
        values (record_failure.user_id, 1, v_now)
        on conflict (user_id) do update
        set attempts = s.attempts + 1,
            first_failed_at = coalesce(s.first_failed_at, v_now)
        returning s.* into v_state;

        if v_state.attempts >= (select s.max_attempts from builder_score.settings as s) then
            insert into builder_score.score_dead_letter as d
                (user_id, attempts, sqlstate, message, first_failed_at, last_failed_at)
            values (record_failure.user_id, v_state.attempts, error_code, record_failure.message, v_state.first_failed_at, v_now)
            on conflict (user_id) do update
            set attempts = excluded.attempts,
                sqlstate = excluded.sqlstate,
                message = excluded.message,
                first_failed_at = least(d.first_failed_at, excluded.first_failed_at),
                last_failed_at = excluded.last_failed_at;
            update builder_score.score_state as s
            set attempts = 0, retry_at = null, first_failed_at = null
            where s.user_id = record_failure.user_id;
            delete from builder_score.score_recalc_queue as q where q.id = any(record_failure.row_ids);
            return;
        end if;

        v_due := v_now + builder_score.retry_delay(v_state.attempts);
        update builder_score.score_state as s set retry_at = v_due where s.user_id = record_failure.user_id;
    end if;

    perform builder_score.defer_held_rows(
        array_fill(record_failure.user_id, array[cardinality(row_ids)]),
        array_fill(v_due, array[cardinality(row_ids)]),
        row_ids
    );
end
$function$;

comment on function builder_score.record_failure(builder_score.user_id, bigint[], text, text) is
    'After a failure of one user, whom the caller has locked: counts the attempt and backs off, or gives the user up '
    'as a dead letter. Errors that are not the user''s only put the rows off.';

create function builder_score.score_or_split(
    user_ids builder_score.user_id[],
    row_ids bigint[],
    row_users builder_score.user_id[],
    split_until timestamptz,
    known_code text default null,
    until timestamptz default null,
    state_places tid[] default null,
    fire_deferred boolean default false,
    out recalculated integer,
    out changed integer,
    out put_off integer,
    out failed integer,
    out passes integer,
    out last_error text
) returns record
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: what score_users() reads
-- writes: what score_users() and record_failure() write
-- row_ids and row_users are parallel: the queue rows seen, and whose they are.
-- until, state_places: for a whole batch, as score_users() has them; its parts, after a failure, have none.
-- fire_deferred: only where the transaction has nobody else's triggers to fire
-- known_code: how more users than these have failed, of whom the others are fine: these are not tried together again.
declare
    v_code text := known_code;
    v_message text;
    v_half integer;
    v_users builder_score.user_id[];
    v_rows bigint[];
    v_row_users builder_score.user_id[];
    v_part record;
    v_other_is_fine boolean := false;
begin
    passes := 0;
    failed := 0;
    if known_code is null or cardinality(user_ids) = 1 then
        passes := 1;
        begin
            select s.recalculated, s.changed, s.put_off into recalculated, changed, put_off
            from builder_score.score_users(user_ids, row_ids, row_users, until, state_places) as s;
            if fire_deferred then
                perform builder_score.fire_deferred_triggers();
            end if;
            return;
        exception when assert_failure or others then    -- others leaves out assert_failure, and query_canceled, which is to pass
            get stacked diagnostics v_code = returned_sqlstate, v_message = message_text;
        end;
        last_error := format('%s: %s', v_code, v_message);
    end if;

    recalculated := 0;
    changed := 0;
    put_off := 0;
    if cardinality(user_ids) = 1 then
        failed := builder_score.is_users_fault(v_code)::integer;
        perform builder_score.record_failure(user_ids[1], row_ids, v_code, v_message);
        return;
    end if;

    v_half := cardinality(user_ids) / 2;
    for v_users in
        select user_ids[:v_half] union all select user_ids[v_half + 1:]
    loop
        select coalesce(array_agg(r.row_id), '{}'), coalesce(array_agg(r.user_id), '{}')
        into v_rows, v_row_users
        from unnest(row_ids, row_users) as r(row_id, user_id)
        join unnest(v_users) as u(user_id) on u.user_id = r.user_id;

        -- A lock that somebody holds for long would strike every part alike, while we hold all these users.
        if not builder_score.is_users_fault(v_code) and clock_timestamp() > split_until then
            perform builder_score.defer_held_rows(
                v_row_users,
                array_fill(clock_timestamp() + make_interval(secs => 1 + random()), array[cardinality(v_rows)]),
                v_rows
            );
            continue;
        end if;

        select s.* into v_part
        from builder_score.score_or_split(v_users, v_rows, v_row_users, split_until, case when v_other_is_fine then v_code end, fire_deferred => fire_deferred) as s;
        v_other_is_fine := v_part.last_error is null and builder_score.is_users_fault(v_code);
        recalculated := recalculated + v_part.recalculated;
        changed := changed + v_part.changed;
        put_off := put_off + v_part.put_off;
        failed := failed + v_part.failed;
        passes := passes + v_part.passes;
        last_error := coalesce(v_part.last_error, last_error);
    end loop;
end
$function$;

comment on function builder_score.score_or_split(builder_score.user_id[], bigint[], builder_score.user_id[], timestamptz, text, timestamptz, tid[], boolean) is
    'Scores a batch; where it raises, halves it until the failing user is alone, so that everybody else''s score is written. '
    'After split_until, an error that is nobody''s fault puts the whole part off instead.';

create function builder_score.retry_dead_letters(user_ids builder_score.user_id[] default null) returns bigint
language sql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: score_dead_letter
-- writes: score_recalc_queue
-- The dead letter itself goes when the score has been computed: until then it says what was wrong.
    with enqueued as (
        insert into builder_score.score_recalc_queue (user_id, priority, reason)
        select d.user_id, 0, 'dead letter retried'
        from builder_score.score_dead_letter as d
        where retry_dead_letters.user_ids is null or d.user_id = any(retry_dead_letters.user_ids)
        returning id
    )
    select count(*) from enqueued;
$function$;

comment on function builder_score.retry_dead_letters(builder_score.user_id[]) is
    'Gives those of the users who are dead letters (null: all dead letters) a fresh start, past the debounce. Returns how many.';

create function builder_score.reconsider_deferred() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: score_recalc_queue
begin
    -- what a worker holds is being decided with the new window or deferred by the old one for the last time
    update builder_score.score_recalc_queue as q
    set not_before = clock_timestamp()
    where q.id = any(array(
        select c.id from builder_score.score_recalc_queue as c
        where c.not_before > clock_timestamp() for update skip locked
    ));
    return null;
end
$function$;

comment on function builder_score.reconsider_deferred() is
    'Trigger: a shorter debounce window also counts for rows that were put off by the longer one.';

create trigger reconsider_deferred after update on builder_score.settings
    for each row when (new.debounce_window < old.debounce_window)
    execute function builder_score.reconsider_deferred();

comment on trigger reconsider_deferred on builder_score.settings is 'Has the worker look again at rows put off by a longer window.';

-- The order of a batch, on which rests that no update is lost and no score is stale.
-- reads: everything          writes: users.builder_score and our own tables

create function builder_score.read_again(
    user_ids builder_score.user_id[],
    locked builder_score.user_id[],
    debounce_window interval,
    place integer,
    places integer,
    out ready builder_score.user_id[],
    out ready_states tid[],
    out ready_rows bigint[],
    out ready_row_users builder_score.user_id[],
    out early_rows bigint[],
    out early_row_users builder_score.user_id[],
    out early_due timestamptz[],
    out gone builder_score.user_id[],
    out gone_rows bigint[],
    out blocked builder_score.user_id[]
) returns record
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_bitmapscan = off
set enable_seqscan = off
as $function$
-- reads: score_recalc_queue, score_state, host_users
-- writes: nothing
-- A snapshot later than every lock: hence volatile. The rows are all that can be seen of these users, due or not.
declare
    v_all_ready boolean;
    v_fates text[];
    v_due timestamptz[];
begin
    with seen as materialized (
        -- one probe each, here and below: a plain join may scan the whole table for a batch
        select u.user_id, r.id, r.not_before, r.priority
        from unnest(read_again.user_ids) as u(user_id)
        cross join lateral (
            select q.id, q.not_before, q.priority
            from builder_score.score_recalc_queue as q
            where q.user_id = u.user_id
            offset 0
        ) as r
    ),
    candidate as (
        select s.user_id, min(s.not_before) as not_before, min(s.priority) = 0 as forced
        from seen as s
        group by s.user_id
        order by s.user_id      -- neighbours in the indexes one after the other, here and in compute()
    ),
    fate as materialized (
        select c.user_id, s.place, d.due,
               case when not coalesce(p.present, l.user_id is not null) then 'gone'
                    when l.user_id is null then 'blocked'
                    when d.due > clock_timestamp() then 'early'
                    else 'ready' end as fate
        from candidate as c
        left join unnest(read_again.locked) as l(user_id) on l.user_id = c.user_id
        left join lateral (
            select x.ctid as place, x.computed_at, x.retry_at from builder_score.score_state as x where x.user_id = c.user_id limit 1
        ) as s on true
        left join lateral (
            -- who is locked is there
            select true as present from builder_score.host_users as u where u.id = c.user_id and l.user_id is null limit 1
        ) as p on true
        cross join lateral (
            select greatest(
                c.not_before,
                -- a window that opened in the future: the clock was set back
                case when not c.forced and s.computed_at <= clock_timestamp() then s.computed_at + read_again.debounce_window end,
                s.retry_at
            ) as due
        ) as d
    )
    select r.row_ids, r.row_users, f.users, f.states, f.fates, f.due, f.all_ready
    into ready_rows, ready_row_users, ready, ready_states, v_fates, v_due, v_all_ready
    from (
        select coalesce(array_agg(s.id), '{}') as row_ids, coalesce(array_agg(s.user_id), '{}') as row_users
        from seen as s
    ) as r
    cross join (
        select coalesce(array_agg(f.user_id), '{}') as users, coalesce(array_agg(coalesce(f.place, '(0,0)')), '{}') as states,
               coalesce(array_agg(f.fate), '{}') as fates, coalesce(array_agg(f.due), '{}') as due,
               coalesce(bool_and(f.fate = 'ready'), true) as all_ready
        from fate as f
    ) as f;

    early_rows := '{}';
    early_row_users := '{}';
    early_due := '{}';
    gone := '{}';
    gone_rows := '{}';
    blocked := '{}';
    if v_all_ready then     -- as a rule
        return;
    end if;
    with fate as materialized (
        select f.user_id, f.place, f.fate, f.due
        from unnest(read_again.ready, read_again.ready_states, v_fates, v_due) as f(user_id, place, fate, due)
    ),
    rows_of as (
        select coalesce(array_agg(r.id) filter (where f.fate = 'ready'), '{}') as ready_rows,
               coalesce(array_agg(r.user_id) filter (where f.fate = 'ready'), '{}') as ready_row_users,
               coalesce(array_agg(r.id) filter (where f.fate = 'early'), '{}') as early_rows,
               coalesce(array_agg(r.user_id) filter (where f.fate = 'early'), '{}') as early_row_users,
               coalesce(array_agg(f.due) filter (where f.fate = 'early'), '{}') as early_due,
               coalesce(array_agg(r.id) filter (where f.fate = 'gone'), '{}') as gone_rows
        from unnest(read_again.ready_rows, read_again.ready_row_users) as r(id, user_id)
        join fate as f on f.user_id = r.user_id
    ),
    users_of as (
        select coalesce(array_agg(f.user_id) filter (where f.fate = 'ready'), '{}') as ready,
               coalesce(array_agg(f.place) filter (where f.fate = 'ready'), '{}') as ready_states,
               coalesce(array_agg(f.user_id) filter (where f.fate = 'gone'), '{}') as gone,
               -- one of another worker's share is that one's to put off, if it is not the one who holds it
               coalesce(array_agg(f.user_id) filter (
                   where f.fate = 'blocked' and builder_score.is_share(f.user_id, read_again.place, read_again.places)
               ), '{}') as blocked
        from fate as f
    )
    select r.*, u.*
    into ready_rows, ready_row_users, early_rows, early_row_users, early_due, gone_rows,
         ready, ready_states, gone, blocked
    from rows_of as r
    cross join users_of as u;
end
$function$;

comment on function builder_score.read_again(builder_score.user_id[], builder_score.user_id[], interval, integer, integer) is
    'After the users were locked: what is to become of each, and the queue rows that this settles. ready: to be computed now; '
    'early: not due yet; gone: no longer there; blocked: somebody else has them.';

create function builder_score.next_batch_size(size integer, took interval, target interval, more_is_due boolean, largest integer)
returns integer
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: nothing
begin
    return case
        when took > 1.5 * target then greatest(size / 2, 1)
        -- it doubles only where there was time for three
        when took < 0.75 * target and more_is_due then least(case when 3 * took < target then 2 * size else size + size / 4 + 1 end, largest)
        else size
    end;
end
$function$;

comment on function builder_score.next_batch_size(integer, interval, interval, boolean, integer) is
    'How many users the next batch is to have, where one of size took so long.';

create function builder_score.take_together(
    due builder_score.user_id[],
    first_of_them builder_score.user_id,
    turn_of_heavy boolean,
    nobody_else boolean,
    out user_ids builder_score.user_id[],
    out alone boolean,
    out heavy builder_score.user_id[]
) returns record
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: score_state
-- writes: nothing
-- Whoever takes as long as many others is alone in a batch, so that nobody is held with them. In their turn they come, and
-- then for as long it is the turn of the others, where there are any. user_ids: none where it is to be looked past heavy.
begin
    alone := false;
    user_ids := due;
    heavy := builder_score.heavy_users(due);
    if cardinality(heavy) = 0 then
        return;
    end if;
    user_ids := array(select d.id from unnest(due) as d(id) where d.id not in (select h.id from unnest(heavy) as h(id)));
    if first_of_them = any(heavy) and turn_of_heavy or cardinality(user_ids) = 0 and nobody_else then
        alone := true;
        user_ids := array[case when first_of_them = any(heavy) then first_of_them else heavy[1] end];
    end if;
end
$function$;

comment on function builder_score.take_together(builder_score.user_id[], builder_score.user_id, boolean, boolean) is
    'Which of the due users a batch takes: one who is heavy, alone, or those who are not.';

create function builder_score.run_batch(
    worker text default 'drain',
    inout memory builder_score.run_memory default null,
    out chosen integer,
    out recalculated integer,
    out changed integer,
    out failed integer,
    out resume_at timestamptz,
    out trouble text,
    out exhausted boolean,
    out in_full boolean
) returns record
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $function$
-- reads: settings, score_recalc_queue, score_state, host, host views
-- writes: users.builder_score, score_recalc_queue, score_state, score_dead_letter, backfill, host, worker_status, NOTIFY
-- For a batch of few people planning would take longer than all the rest. (write_scores() leaves the host's triggers
-- their plans.) What is planned while a table is empty is kept as it fills: so no scans.
-- chosen: how much it did something about (not: what is in the hands of another worker, which will finish it);
-- resume_at: when a throttled backfill goes on, null without one;
-- trouble: why it could do nothing at all
-- exhausted: whether it looked at all that was due, and not only at a batch's worth of it
-- in_full: whether that was without leaving out what memory says to be dead
-- memory: what the last batch of this run returned; null for the first one
declare
    v_began constant timestamptz := clock_timestamp();
    -- What the caller has written in this transaction may have deferred triggers of the caller's, which are not to run with
    -- our rights. Whoever has none yet has written nothing.
    v_own_transaction constant boolean := pg_current_xact_id_if_assigned() is null;
    v_settings builder_score.settings;
    v_window interval;
    v_number bigint;
    v_share record;
    v_since timestamptz[];
    v_marks constant timestamptz[] := memory.marks;
    v_looking interval := interval '0';
    v_look_began timestamptz;
    v_expanded record;
    v_chosen record;
    v_size integer;
    v_projects integer;
    v_until timestamptz;
    v_taken record;
    v_alone boolean;
    v_spared builder_score.user_id;     -- the first who was passed over for being heavy
    v_due builder_score.user_id[];
    v_locked builder_score.user_id[];
    v_passed_over builder_score.user_id[] := array[]::builder_score.user_id[];
    v_all boolean;
    v_unlocked builder_score.user_id[];
    v_held builder_score.user_id[] := array[]::builder_score.user_id[];     -- passed over beside people who are free
    v_seen record;
    v_seen_at timestamptz;
    v_scored record;
    v_error text;
    v_passes integer := 0;
    v_minute timestamptz;
begin
    select s.* into strict v_settings from builder_score.settings as s;
    -- in seconds: a window of a day is 24 hours also on the day that the clocks change
    v_window := make_interval(secs => extract(epoch from v_settings.debounce_window)::double precision);
    perform set_config('lock_timeout', format('%sms', greatest(1, floor(extract(epoch from v_settings.lock_timeout) * 1000))), true);
    -- Scores and queue rows are one transaction: what a crash takes back, it takes back whole, and it is done again.
    perform set_config('synchronous_commit', 'off', true);
    select w.batches into strict v_number from builder_score.worker_status as w where w.worker = run_batch.worker;

    select p.place, p.places into v_share from builder_score.take_place() as p;

    chosen := 0;
    recalculated := 0;
    changed := 0;
    failed := 0;
    exhausted := true;
    -- What is before the marks is looked at, too, as often as it takes no more than a twentieth of the time: with nothing
    -- dead in front of what is due, nearly always. Marks in the future are from before the clock was set back.
    if v_began < any(memory.marks) then
        memory.others_until := null;
    end if;
    in_full := coalesce(v_began not between memory.looked_at and memory.full_look_at or v_began < any(memory.marks), true);
    v_since := case when not in_full then memory.marks end;
    v_size := least(v_settings.batch_size, coalesce(memory.batch_size, v_settings.batch_size));
    v_projects := 20 * v_settings.batch_size;
    if memory.batch_size is not null then
        v_until := v_began + v_settings.batch_target;
        v_projects := 2 * v_size;
    end if;

    <<protected>>
    begin
        perform builder_score.keep_queue_ids_ahead();

        -- (a) choose: first all that stands for people, many at a time, so that one burst of events has become one
        -- set of users before any of them is computed
        perform builder_score.keep_statuses_change_past();
        if builder_score.clock_was_set_back() then
            chosen := builder_score.bring_forward(clock_timestamp() + builder_score.longest_delay(), 20 * v_settings.batch_size);
            -- A batch of its own, for it may hold rows that another worker is about to delete. What it could not take
            -- is in somebody's hands, and keeps nobody waiting.
            if chosen > 0 or not (select h.clock_set_back from builder_score.host as h) then
                chosen := chosen + 1;
                exhausted := false;
                exit protected;
            end if;
        end if;
        v_look_began := clock_timestamp();
        select e.* into v_expanded from builder_score.expand_projects(v_projects, v_since[4]) as e;
        v_looking := clock_timestamp() - v_look_began;
        if v_expanded.taken > 0 then    -- then most of it was no look: somebody's project may have many people
            v_looking := least(v_looking, v_settings.batch_target);
        end if;
        memory.marks := array[null, null, null, v_expanded.mark];
        chosen := chosen + v_expanded.taken;
        exhausted := v_expanded.taken < v_projects;
        -- Before anybody is locked, and every other time at most: projects may come as fast as they are taken.
        if clock_timestamp() > v_until and v_expanded.taken > 0 and v_number % 2 = 0 then
            exhausted := false;
            exit protected;
        end if;
        begin
            resume_at := builder_score.advance_backfill();
        exception when others then
            v_error := format('%s: %s', sqlstate, sqlerrm);    -- a walk that cannot go on does not keep events waiting
        end;
        loop
            v_look_began := clock_timestamp();
            select c.* into v_chosen
            from builder_score.choose_next(
                v_size, v_number, v_passed_over, v_since, v_share.place, v_share.places, v_settings.batch_target, memory) as c;
            memory := v_chosen.memory;
            if v_chosen.marks is null then
                in_full := false;
                memory.marks := v_marks[1:3] || memory.marks[4];
            elsif memory.marks[1] is null then      -- later looks pass people over
                memory.marks := v_chosen.marks || memory.marks[4];
                v_looking := v_looking + (clock_timestamp() - v_look_began);
                v_since := memory.marks[1:3] || v_since[4];     -- the dead rows were waded through
            end if;
            v_due := v_chosen.user_ids;
            v_all := v_chosen.all_of_them;
            exhausted := exhausted and v_all;
            if cardinality(v_due) = 0 then
                exit protected when v_spared is null;
                -- whole batches of those who are heavy, and nobody else: then it is their turn
                v_due := array[v_spared];
            end if;
            select t.* into v_taken
            from builder_score.take_together(
                v_due, v_chosen.first_of_them,
                v_began >= coalesce(memory.others_until, '-infinity'),
                v_all or cardinality(v_passed_over) >= 20 * v_settings.batch_size) as t;
            exhausted := exhausted and cardinality(v_taken.heavy) = 0;
            v_alone := v_taken.alone;
            if cardinality(v_taken.user_ids) = 0 then
                v_spared := coalesce(v_spared, v_taken.heavy[1]);
                v_passed_over := (v_passed_over || v_taken.heavy)::builder_score.user_id[];
                continue;
            end if;
            v_due := v_taken.user_ids;
            -- again: the project rows of a transaction that has committed since the first look, and whose people are chosen
            select e.* into v_expanded from builder_score.expand_projects(v_projects, v_since[4]) as e;
            memory.marks[4] := least(memory.marks[4], v_expanded.mark);
            chosen := chosen + v_expanded.taken;

            -- (b) lock, waiting for nobody
            v_locked := builder_score.lock_users(v_due);

            exit when v_all or cardinality(v_locked) = cardinality(v_due);
            -- A transaction of the application's that called recalculate() for a batch's worth of people, and is still
            -- open, holds them and their rows. They can be neither done nor put off, and are to keep nobody waiting;
            -- nor are they to leave the batch to the few beside them who are free. (Who is gone is held by nobody.)
            v_unlocked := array(
                select d.id
                from (select x.id from unnest(v_due) as x(id) except select l.id from unnest(v_locked) as l(id)) as d
                cross join lateral (select from builder_score.host_users as u where u.id = d.id limit 1) as present
            );
            exit when cardinality(v_unlocked) * 2 <= cardinality(v_due)
                or cardinality(v_held) >= 20 * v_settings.batch_size
                or cardinality(v_locked) = 0 and cardinality(v_held) = 0 and builder_score.has_free_row(
                    array(select d.id from unnest(v_due) as d(id) where builder_score.is_share(d.id, v_share.place, v_share.places)));
            if cardinality(v_locked) > 0 then
                v_held := (v_held || v_unlocked)::builder_score.user_id[];     -- what of theirs is free is put off below
            end if;
            v_passed_over := (v_passed_over || v_unlocked)::builder_score.user_id[];
        end loop;
        v_due := (v_due || v_held)::builder_score.user_id[];

        -- (c) re-read, in a new statement, whose snapshot is later than every lock
        v_seen_at := clock_timestamp();
        select r.* into v_seen
        from builder_score.read_again(v_due, v_locked, v_window, v_share.place, v_share.places) as r;

        -- (d) compute, (e) write, (f) delete exactly the rows seen in (c)
        if cardinality(v_seen.ready) > 0 then
            -- Where a trigger of the host's waits for an application that waits for one of our users, we let go before
            -- the application looks for a deadlock, which would be its end and not ours.
            select s.* into v_scored
            from builder_score.score_or_split(
                v_seen.ready, v_seen.ready_rows, v_seen.ready_row_users,
                clock_timestamp() + least(10 * v_settings.lock_timeout, current_setting('deadlock_timeout')::interval / 2),
                until => v_until, state_places => v_seen.ready_states, fire_deferred => v_own_transaction) as s;
            exhausted := exhausted and v_scored.put_off = 0;
            recalculated := v_scored.recalculated;
            changed := v_scored.changed;
            failed := v_scored.failed;
            v_passes := v_scored.passes;
            v_error := coalesce(v_scored.last_error, v_error);
        end if;

        -- (g) Who could not be taken. Rows of users whom we hold may make us wait for another worker that is
        -- putting them off; so what waits for nobody comes last, and no two workers wait for each other.
        if cardinality(v_seen.early_rows) > 0 then
            perform builder_score.defer_held_rows(v_seen.early_row_users, v_seen.early_due, v_seen.early_rows);
        end if;
        if cardinality(v_seen.gone) > 0 then
            perform builder_score.forget_users(v_seen.gone, v_seen_at);
            perform builder_score.delete_queue_rows(v_seen.gone_rows);
        end if;
        chosen := chosen + cardinality(v_seen.ready) + cardinality(v_seen.early_rows) + cardinality(v_seen.gone);
        if cardinality(v_seen.blocked) > 0 then
            chosen := chosen + builder_score.defer_blocked_users(v_seen.blocked);
        end if;
    exception when others then
        -- A lock on a whole table, a full disk: nobody's fault, nothing done; look again after a nap.
        if builder_score.is_users_fault(sqlstate) then
            raise;
        end if;
        chosen := 0;
        recalculated := 0;
        changed := 0;
        failed := 0;
        resume_at := null;
        trouble := format('%s: %s', sqlstate, sqlerrm);
        v_error := trouble;
    end protected;

    if v_alone and recalculated > 0 then
        memory.others_until := clock_timestamp() + (clock_timestamp() - v_began);
    elsif memory.batch_size is not null and recalculated > 0 then
        memory.batch_size := builder_score.next_batch_size(
            v_size, clock_timestamp() - v_began, v_settings.batch_target, not v_all, v_settings.batch_size);
    end if;
    if in_full then
        memory.looked_at := clock_timestamp();
        -- Ten seconds at most: that is how long something committed late may wait, whatever the clock did meanwhile.
        memory.full_look_at := memory.looked_at + least(20 * v_looking, interval '10 seconds');
    end if;
    if memory.marks[1] is null then
        memory.full_look_at := null;    -- it did not come to look
    end if;
    if clock_timestamp() < v_began then
        perform builder_score.note_clock_set_back();    -- meanwhile: what was put off above was put off by the old one
    end if;
    if chosen > 0 or v_error is not null then
        v_minute := date_trunc('minute', clock_timestamp());
        begin
            update builder_score.worker_status as w
            set backend_pid = pg_backend_pid(),
                heartbeat_at = clock_timestamp(),
                batches = w.batches + 1,
                passes = w.passes + v_passes,
                recalculated = w.recalculated + run_batch.recalculated,
                changed = w.changed + run_batch.changed,
                failed = w.failed + run_batch.failed,
                minute = v_minute,
                minute_recalculated = run_batch.recalculated + case when w.minute = v_minute then w.minute_recalculated else 0 end,
                minute_before_recalculated = case w.minute
                    when v_minute then w.minute_before_recalculated
                    when v_minute - interval '1 minute' then w.minute_recalculated
                    else 0 end,
                last_batch_at = clock_timestamp(),
                last_batch_seconds = extract(epoch from clock_timestamp() - v_began),
                -- it only grows, also when the clock was set back meanwhile
                batch_seconds = w.batch_seconds + greatest(extract(epoch from clock_timestamp() - v_began), 0),
                last_error = coalesce(v_error, w.last_error),
                last_error_at = case when v_error is null then w.last_error_at else clock_timestamp() end
            where w.worker = run_batch.worker;
        exception when lock_not_available then
            null;   -- somebody's open transaction has the row, longer than another drain() would: the scores are worth more than a note of them
        end;
    end if;
    if v_number % 8 = 0 then
        perform builder_score.tidy_score_counts();
    end if;
    -- COMMIT may queue behind another session's NOTIFY.
    perform set_config('lock_timeout', '1s', true);
end
$function$;

comment on function builder_score.run_batch(text, builder_score.run_memory) is
    'One batch: choose due users, lock, re-read, compute, write, delete the rows seen. The caller commits.';

-- The loops around a batch. Procedures that commit cannot pin a search_path, so every name here is qualified
-- and everything that uses an operator is a function that can.
-- reads: settings, host          writes: worker_status, and what run_batch() writes

create function builder_score.run_by() returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: pg_stat_activity
-- writes: nothing
-- SECURITY INVOKER: what kind a backend is is shown to its own role. Over a connection pg_cron has that name.
    select case when a.backend_type = 'pg_cron' then a.backend_type else current_setting('application_name') end
    from pg_stat_activity as a
    where a.pid = pg_backend_pid();
$function$;

comment on function builder_score.run_by() is 'What this session belongs to: pg_cron, or its application_name.';

create function builder_score.worker_name(number integer) returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: nothing
begin
    if number is null or number not between 1 and 16 then
        raise exception 'there is no worker number %', coalesce(number::text, 'null')
            using errcode = 'invalid_parameter_value',
                  detail = 'Expected 1 to 16: as many as settings.workers says run side by side.',
                  hint = 'CALL builder_score.run_worker(null, 2);';
    end if;
    return case number when 1 then 'resident' else 'resident-' || number end;
end
$function$;

comment on function builder_score.worker_name(integer) is 'The row of worker_status of a resident worker.';

create function builder_score.worker_lock(number integer) returns integer
language sql immutable parallel safe
return case number when 1 then 0 else 200 + number end;

comment on function builder_score.worker_lock(integer) is 'Second key of the advisory lock that keeps runs of one worker apart; the first is 1651271539.';

create function builder_score.is_wanted(worker text) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: settings
-- writes: nothing
begin
    return coalesce(builder_score.worker_number(worker) <= (select s.workers from builder_score.settings as s), true);
end
$function$;

comment on function builder_score.is_wanted(text) is 'Whether settings.workers has room for a worker; for drain() it always has.';

create function builder_score.begin_run(worker text, run_by text default null) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: settings, what clock_was_set_back() reads
-- writes: worker_status, host
-- returns: false when paused, or where settings.workers has no room for it
begin
    if (select s.paused from builder_score.settings as s) then
        raise notice 'builder_score is paused: nothing is processed'
            using detail = coalesce((select 'Reason: ' || s.paused_reason from builder_score.settings as s), 'No reason was given.'),
                  hint = 'UPDATE builder_score.settings SET paused = false;';
        return false;
    end if;
    perform set_config('synchronous_commit', 'off', true);
    if not builder_score.is_wanted(begin_run.worker) then
        raise notice 'builder_score has fewer workers: % has nothing to do', begin_run.worker
            using hint = 'UPDATE builder_score.settings SET workers = ...; or SELECT * FROM builder_score.schedule(); to be rid of its job.';
        return false;
    end if;
    perform builder_score.clock_was_set_back();     -- before the heartbeat that tells it is written anew
    -- while a restore is under way there is no key yet that it could conflict with
    insert into builder_score.worker_status (worker)
    select begin_run.worker
    where not exists (select from builder_score.worker_status as w where w.worker = begin_run.worker)
    on conflict do nothing;
    -- not waiting, here and below, for a transaction of somebody's that is open
    update builder_score.worker_status as w
    set backend_pid = pg_backend_pid(), started_at = clock_timestamp(), heartbeat_at = clock_timestamp(), run_by = begin_run.run_by
    where w.worker = any(array(select k.worker from builder_score.worker_status as k where k.worker = begin_run.worker for update skip locked));
    return true;
end
$function$;

comment on function builder_score.begin_run(text, text) is 'Notes that a worker starts, and what called it. False when paused, or above settings.workers.';

create function builder_score.beat(worker text, every interval default '5 seconds') returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: worker_status
-- writes: worker_status
begin
    if exists (
        select from builder_score.worker_status as w
        where w.worker = beat.worker
          -- one from the future is from before the clock was set back, here and wherever it is looked at
          and w.heartbeat_at > clock_timestamp() - beat.every and w.heartbeat_at <= clock_timestamp()
    ) then
        return;     -- an idle worker writes now and then, not at every look
    end if;
    perform set_config('synchronous_commit', 'off', true);
    update builder_score.worker_status as w
    set heartbeat_at = clock_timestamp(), backend_pid = pg_backend_pid()
    where w.worker = any(array(select k.worker from builder_score.worker_status as k where k.worker = beat.worker for update skip locked));
end
$function$;

comment on function builder_score.beat(text, interval) is 'Heartbeat of a worker that found nothing to do.';

create function builder_score.is_alive(worker text) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: worker_status
-- writes: nothing
begin
    return exists (
        select from builder_score.worker_status as w
        where w.worker = is_alive.worker
          and w.heartbeat_at > clock_timestamp() - interval '30 seconds' and w.heartbeat_at <= clock_timestamp()
    );
end
$function$;

comment on function builder_score.is_alive(text) is 'Whether a worker was heard of in the last 30 seconds; an idle one beats every 5.';

create function builder_score.may_go_on() returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: settings, host
-- writes: nothing
begin
    return (select not s.paused from builder_score.settings as s)
       and (select h.attached_at is not null from builder_score.host as h);
exception when undefined_table or insufficient_privilege then
    return false;   -- uninstalled while we waited for the lock of whoever does it
end
$function$;

comment on function builder_score.may_go_on() is 'The stop flag that a running worker looks at each round: paused, or detached.';

create function builder_score.nap_seconds(idle_rounds integer, resume_at timestamptz) returns double precision
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: settings
-- writes: nothing
-- 20 ms after work, then half as long again each round, up to poll_interval (a second at most: a sleeping
-- backend holds back vacuum). A throttled backfill is woken for.
begin
    return (
        select greatest(0.001, least(
            extract(epoch from s.poll_interval),
            0.02 * power(1.5, least(idle_rounds, 20)),
            case when resume_at is not null then greatest(0, extract(epoch from resume_at - clock_timestamp())) end
        ))
        from builder_score.settings as s
    );
end
$function$;

comment on function builder_score.nap_seconds(integer, timestamptz) is 'How long a worker that found nothing sleeps.';

create function builder_score.run_deadline(max_runtime interval) returns timestamptz
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: nothing
declare
    v_now constant timestamptz := clock_timestamp();
    v_deadline timestamptz;
    v_timeout constant interval := current_setting('statement_timeout')::interval;
begin
    if max_runtime < interval '0 seconds' then
        raise exception 'max_runtime % is negative', max_runtime
            using errcode = 'invalid_parameter_value',
                  detail = 'Expected an interval of zero or more, or null for "until the next minute".',
                  hint = 'CALL builder_score.run_worker(''55 seconds'');';
    end if;
    -- A scheduler that starts a run each minute queues the next tick while this run is still going and starts
    -- it the moment this one ends. Ending just before the tick would leave a gap of seconds.
    v_deadline := coalesce(
        v_now + max_runtime,
        date_trunc('minute', v_now) + interval '1 minute 0.2 seconds'
    );
    -- statement_timeout covers the whole CALL, whatever it commits: leave before it strikes.
    if v_timeout > interval '0 seconds' then
        v_deadline := least(v_deadline, v_now + v_timeout * 0.8);
    end if;
    return v_deadline;
end
$function$;

comment on function builder_score.run_deadline(interval) is
    'When a run ends: after max_runtime, or, when that is null, 0.2 s into the next minute, but before statement_timeout.';

create function builder_score.housekeeping() returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: host
-- writes: host, backfill, score_counts
begin
    perform builder_score.tidy_score_counts();
    -- or in the future, when the clock was set back: what was computed meanwhile has too great an age
    if (select h.refreshed_at < clock_timestamp() - interval '1 day' or h.refreshed_at > clock_timestamp() from builder_score.host as h) then
        perform builder_score.refresh_ages();
    end if;
    if builder_score.claim_repair_of_score_counts() and builder_score.tidy_score_counts(repair => true) then
        update builder_score.host set counted_at = clock_timestamp(), count_tried_at = null;
    end if;
end
$function$;

comment on function builder_score.housekeeping() is
    'Sum score_counts up; once a day begin the walk that refreshes ageing accounts, and compare score_counts with score_state.';

create function builder_score.purge_job_runs(keep interval default '7 days') returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: cron.job (pg_cron, where it is)
-- writes: cron.job_run_details: our own job's rows only
-- The caller is the job's role: pg_cron shows each role its own jobs.
declare
    v_count bigint;
begin
    if not exists (select from pg_extension where extname = 'pg_cron') or not has_schema_privilege('cron', 'usage') then
        return 0;
    end if;
    execute $purge$
        delete from cron.job_run_details as d
        using cron.job as j
        where d.jobid = j.jobid
          and j.jobname ~ '^builder-score-worker(-[0-9]{1,2})?(-at-start)?(@|$)'
          and j.database = current_database()
          and d.end_time < clock_timestamp() - $1
    $purge$ using keep;
    get diagnostics v_count = row_count;
    return v_count;
end
$function$;

comment on function builder_score.purge_job_runs(interval) is
    'pg_cron keeps a row of every run for ever: removes those of our own job that are older than keep.';

create function builder_score.seems_idle(memory builder_score.run_memory) returns boolean
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_bitmapscan = off
set enable_seqscan = off
as $function$
-- reads: score_recalc_queue, backfill
-- writes: nothing
-- A tenth of a whole round's cost, so that an idle worker can look often. From the start, too, unless that took long.
declare
    v_now constant timestamptz := clock_timestamp();
    v_since timestamptz[];
begin
    if (v_now between memory.round_at - interval '1 second' and memory.round_at) is not true then
        return false;
    end if;
    if v_now between memory.looked_at and memory.full_look_at then
        v_since := memory.marks;
    elsif memory.full_look_at > memory.looked_at + interval '0.1 seconds' then
        return false;
    end if;
    return not exists (
            select
            from (values (0::smallint, v_since[1]), (10::smallint, v_since[2]), (20::smallint, v_since[3])) as p(priority, since)
            cross join lateral (
                select from builder_score.score_recalc_queue as q
                where q.priority = p.priority
                  and q.not_before <= v_now
                  and q.not_before >= coalesce(p.since, '-infinity')
                  and q.user_id is not null
                limit 1
            ) as due)
       and not exists (
            select from builder_score.score_recalc_queue as q
            where q.project_id is not null and q.not_before <= v_now and q.not_before >= coalesce(v_since[4], '-infinity'))
       and not exists (
            select from builder_score.score_recalc_queue as q
            where q.user_id is null and q.project_id is null and q.not_before <= v_now)
       and not exists (select from builder_score.backfill);
end
$function$;

comment on function builder_score.seems_idle(builder_score.run_memory) is
    'Whether a look at where work arrives finds none. Never for longer than a second: whatever else a round does is done then.';

create function builder_score.run_round(
    worker text,
    idle_rounds integer,
    deadline timestamptz,
    inout memory builder_score.run_memory default null,
    out chosen integer,
    out resume_at timestamptz,
    out trouble text,
    out exhausted boolean,
    out in_full boolean,
    out nap double precision
) returns record
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set row_security = on
as $function$
-- reads: what run_batch() reads
-- writes: what run_batch() writes, and backfill
-- row_security: switched off for the role that calls, it would be an error to read through our policies.
declare
    v_batch record;
begin
    if not builder_score.may_go_on() or not builder_score.is_wanted(worker) then
        -- raised, not returned: this function itself may have been dropped while it waited for the answer
        raise exception 'builder_score: paused, detached or fewer workers' using errcode = 'BS001';
    end if;
    if worker <> 'drain' and builder_score.seems_idle(memory) then
        chosen := 0;
        exhausted := true;
        in_full := false;
        nap := builder_score.nap_seconds(idle_rounds, deadline);
        return;
    end if;
    select b.* into v_batch from builder_score.run_batch(worker, memory) as b;
    memory := v_batch.memory;
    chosen := v_batch.chosen;
    resume_at := v_batch.resume_at;
    trouble := v_batch.trouble;
    exhausted := v_batch.exhausted;
    in_full := v_batch.in_full;
    if chosen = 0 and worker <> 'drain' then
        perform builder_score.beat(worker);
        if worker = 'resident' or not builder_score.is_alive('resident') then
            perform builder_score.housekeeping();
        end if;
        memory.round_at := clock_timestamp() + interval '1 second';
    end if;
    nap := builder_score.nap_seconds(idle_rounds, least(resume_at, deadline));
end
$function$;

comment on function builder_score.run_round(text, integer, timestamptz, builder_score.run_memory) is
    'One round of a worker''s loop: look at the stop flag (BS001: stop), run a batch, and when that found nothing beat and keep '
    'house. nap: seconds to sleep when nothing was found.';

create procedure builder_score.drain()
language plpgsql
as $procedure$
-- reads: what run_round() reads
-- writes: what run_round() writes
declare
    v_round record;
    v_memory builder_score.run_memory;
    v_looks integer := 0;
begin
    -- COMMIT directly before each SET TRANSACTION: even an IF takes a snapshot when it is first planned.
    -- The first one ends the transaction of the call itself, which may be at any isolation level; in a
    -- transaction block of the caller's it raises 2D000, before anything was done.
    commit;
    set transaction isolation level read committed, read write;
    if not builder_score.begin_run('drain') then
        return;
    end if;
    v_memory.batch_size := 50;      -- to begin with
    loop
        commit;
        set transaction isolation level read committed, read write;
        begin
            v_round := builder_score.run_round('drain', 20, null, v_memory);
        exception
            when sqlstate 'BS001' then
                exit;
            when undefined_table or undefined_function or invalid_schema_name or insufficient_privilege or internal_error then
                -- detached or uninstalled while we slept, or waited for the lock of whoever does it; else an error
                exit when pg_catalog.to_regprocedure('builder_score.may_go_on()') is null;
                exit when not builder_score.may_go_on();
                raise;
        end;
        commit;
        if v_round.trouble is not null then
            raise warning 'builder_score: nothing is processed: %', v_round.trouble
                using hint = 'Nothing is lost; CALL builder_score.drain() again.';
        end if;
        v_memory := v_round.memory;
        -- Not until nothing is due: on a busy host there is always something, if only to be put off. Two looks in a row
        -- that took in all there was have seen what was due at the start.
        v_looks := case when v_round.exhausted and v_round.in_full then v_looks operator(pg_catalog.+) 1 else 0 end;
        exit when v_round.resume_at is null and v_round.in_full
            and (v_round.chosen operator(pg_catalog.=) 0 or v_looks operator(pg_catalog.>=) 2);
        if v_round.resume_at is null and (v_round.exhausted or v_round.chosen operator(pg_catalog.=) 0) then
            v_memory.full_look_at := null;      -- it seems to be the end, and is to be seen
        elsif v_round.chosen operator(pg_catalog.=) 0 then
            perform pg_catalog.pg_sleep(v_round.nap);
        end if;
    end loop;
end
$procedure$;

comment on procedure builder_score.drain() is
    'Process what is due now, a backfill that is under way included, one commit a batch, and return. CALL it outside a transaction block.';

create procedure builder_score.run_worker(max_runtime interval default null, number integer default 1)
language plpgsql
as $procedure$
-- reads: what run_round() reads
-- writes: what run_round() writes
declare
    v_deadline timestamptz;
    v_before timestamptz;
    v_now timestamptz;
    v_round record;
    v_memory builder_score.run_memory;
    v_idle integer;
    v_tries integer;
    v_started boolean;
    v_worker text;
    v_lock integer;
    v_locked boolean := true;
    v_session_name constant text := pg_catalog.current_setting('application_name');
begin
    commit;
    set transaction isolation level read committed, read write;
    v_worker := builder_score.worker_name(number);
    v_lock := builder_score.worker_lock(number);
    v_deadline := builder_score.run_deadline(max_runtime);

    -- One run of each worker at a time. The run that holds the lock may be about to end (it outlives the minute
    -- by 0.2 s), so two seconds' patience; then leave quietly.
    v_tries := 0;
    while not pg_catalog.pg_try_advisory_lock(1651271539, v_lock) loop
        v_tries := v_tries operator(pg_catalog.+) 1;
        if v_tries operator(pg_catalog.>) 40 then
            -- unless that run is long dead and only its session keeps the lock; two workers do no harm
            if not builder_score.is_alive(v_worker) then
                v_locked := false;
                exit;
            end if;
            return;
        end if;
        if pg_catalog.clock_timestamp() operator(pg_catalog.>=) v_deadline then
            return;
        end if;
        commit;
        perform pg_catalog.pg_sleep(0.05);
        commit;
        set transaction isolation level read committed, read write;
        if pg_catalog.to_regprocedure('builder_score.is_alive(text)') is null then
            return;     -- uninstalled meanwhile
        end if;
    end loop;

    begin
        v_started := builder_score.begin_run(v_worker, builder_score.run_by());
        if v_started then
            perform builder_score.housekeeping();
            perform builder_score.purge_job_runs();
        end if;
    exception
        when undefined_table or undefined_function or invalid_schema_name or insufficient_privilege or internal_error then
            -- as in the loop below: the run that we waited for may have ended because we are being uninstalled;
            -- a function that is dropped as it is looked up is an internal error
            if pg_catalog.to_regprocedure('builder_score.may_go_on()') is not null then
                if builder_score.may_go_on() then
                    raise;
                end if;
            end if;
            v_started := false;
    end;
    if not v_started then
        if v_locked then
            perform pg_catalog.pg_advisory_unlock(1651271539, v_lock);
        end if;
        return;
    end if;

    -- So that monitoring tells the one long statement that is to be seen here from those that are not.
    perform pg_catalog.set_config('application_name', 'builder-score-worker', false);

    v_memory.batch_size := 50;      -- to begin with
    -- Where nobody who is heavy can be done before statement_timeout ends the run, the others still are.
    v_memory.others_until := pg_catalog.clock_timestamp() operator(pg_catalog.+) '1 second'::pg_catalog.interval;
    v_idle := 0;
    v_before := pg_catalog.clock_timestamp();
    loop
        commit;
        set transaction isolation level read committed, read write;
        begin
            v_round := builder_score.run_round(v_worker, v_idle, v_deadline, v_memory);
        exception
            when sqlstate 'BS001' then
                exit;
            when undefined_table or undefined_function or invalid_schema_name or insufficient_privilege or internal_error then
                -- detached or uninstalled while we slept, or waited for the lock of whoever does it; else an error
                exit when pg_catalog.to_regprocedure('builder_score.may_go_on()') is null;
                exit when not builder_score.may_go_on();
                raise;
        end;
        commit;
        v_memory := v_round.memory;
        v_now := pg_catalog.clock_timestamp();
        if v_now operator(pg_catalog.<) v_before then
            v_deadline := builder_score.run_deadline(max_runtime);      -- the clock was set back
        end if;
        v_before := v_now;
        exit when v_now operator(pg_catalog.>=) v_deadline;
        if v_round.chosen operator(pg_catalog.>) 0 then
            v_idle := 0;
        else
            perform pg_catalog.pg_sleep(v_round.nap);
            v_idle := v_idle operator(pg_catalog.+) 1;
        end if;
    end loop;
    perform pg_catalog.set_config('application_name', v_session_name, false);
    if v_locked then
        perform pg_catalog.pg_advisory_unlock(1651271539, v_lock);
    end if;
end
$procedure$;

comment on procedure builder_score.run_worker(interval, integer) is
    'A resident worker, the first or another of settings.workers: drain, nap, drain again, until max_runtime (null: 0.2 s into the next minute, for pg_cron). '
    'Leaves quietly when another run of the same number goes on, above settings.workers, when paused, and when uninstalled.';

-- For services and operators: one score now, whether stored scores are right, and how everything is.
-- reads: host views and our own tables          writes: users.builder_score, and what score_users() writes

create function builder_score.recalculate(user_id builder_score.user_id) returns numeric
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: host views, score_recalc_queue
-- writes: users.builder_score, score_state, score_dead_letter, score_recalc_queue, NOTIFY
#variable_conflict use_column
declare
    v_row_ids bigint[];
begin
    if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
        raise exception 'recalculate() cannot run at isolation level %', current_setting('transaction_isolation')
            using errcode = 'active_sql_transaction',
                  detail = 'Expected read committed: under an older snapshot the score could be written from data that is no longer true.',
                  hint = format('SELECT builder_score.enqueue(%L, 0); the worker then computes it at once, past the debounce.', recalculate.user_id);
    end if;
    perform builder_score.require_attached();
    perform from builder_score.host_users as u where u.id = recalculate.user_id for no key update;
    if not found then
        perform builder_score.unknown_user(recalculate.user_id);
    end if;
    -- in a new statement, later than the lock: exactly these rows are answered by this recalculation
    select coalesce(array_agg(q.id), '{}') into v_row_ids
    from builder_score.score_recalc_queue as q
    where q.user_id = recalculate.user_id;
    perform builder_score.score_users(array[recalculate.user_id], v_row_ids);
    return (select s.score from builder_score.score_state as s where s.user_id = recalculate.user_id);
end
$function$;

comment on function builder_score.recalculate(builder_score.user_id) is
    'Compute and write one score now, past the debounce, and open a new window. Returns the score. '
    'May wait for whoever holds the user''s row. Needs read committed.';

create function builder_score.find_user(name text) returns builder_score.user_id
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: host_users
-- writes: nothing
declare
    v_id builder_score.user_id;
begin
    perform builder_score.require_attached();
    begin
        select u.id into v_id from builder_score.host_users as u where u.id = find_user.name::builder_score.user_id;
    exception when data_exception or check_violation then
        v_id := null;   -- not of the form of an id
    end;
    if v_id is null then
        select u.id into v_id from builder_score.host_users as u where u.username = find_user.name order by u.id limit 1;
    end if;
    return v_id;
end
$function$;

comment on function builder_score.find_user(text) is 'The user with this id, else with this username; null where there is none.';

create function builder_score.concerning_projects(user_id builder_score.user_id)
returns table (project_id builder_score.project_id)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: host_projects, host_collaborations, statuses
-- writes: nothing
-- The same people as expand_projects() finds.
    select p.id from builder_score.host_projects as p where p.owner_id = concerning_projects.user_id
    union all
    select c.project_id
    from builder_score.host_collaborations as c
    where c.user_id = concerning_projects.user_id
      and c.status in (select s.status from builder_score.statuses as s where s.meaning = 'confirmed');
$function$;

comment on function builder_score.concerning_projects(builder_score.user_id) is
    'Projects whose queue rows will have this user recalculated: those they own, and those they are a confirmed collaborator of.';

create function builder_score.pending(user_id builder_score.user_id)
returns table (
    stands_for text,
    priority smallint,
    reason text,
    enqueued_at timestamptz,
    due_at timestamptz
)
language sql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $function$
-- reads: score_recalc_queue, backfill, host, score_state, settings, host_projects, host_collaborations, statuses
-- writes: nothing
    with waiting as (
        select 'user' as stands_for, q.priority, q.reason, q.enqueued_at, q.not_before
        from builder_score.score_recalc_queue as q
        where q.user_id = pending.user_id
        union all
        -- from the user's projects to the queue, which may hold any number of others; offset 0 keeps it that way round
        select 'project', q.priority, q.reason, q.enqueued_at, q.not_before
        from builder_score.concerning_projects(pending.user_id) as c
        cross join lateral (
            select r.* from builder_score.score_recalc_queue as r
            where r.project_id = c.project_id and r.project_id is not null
            offset 0
        ) as q
        union all
        select 'everyone', q.priority, q.reason, q.enqueued_at, q.not_before
        from builder_score.score_recalc_queue as q
        where q.user_id is null and q.project_id is null
        union all
        -- whom the walk has passed has a row of their own
        select 'everyone', 20::smallint, b.reason, b.started_at, b.started_at
        from builder_score.backfill as b
        where not b.only_ageing and (b.after_user_id is null or b.after_user_id < pending.user_id)
        union all
        -- a second walk, which advance_backfill() begins when the transactions that were open have ended
        select 'everyone', 20::smallint, 'formula: statuses, for transactions that were open', now(), now()
        from builder_score.host as h
        where h.walk_again_after is not null
    )
    select w.stands_for, w.priority, w.reason, w.enqueued_at,
           greatest(
               w.not_before,
               case when not w.forced then t.window_end end,
               t.retry_at
           )
    from (select waiting.*, min(waiting.priority) over () = 0 as forced from waiting) as w
    left join (
        -- as run_batch() takes it
        select s.retry_at,
               case when s.computed_at <= clock_timestamp()
                    then s.computed_at + make_interval(secs => extract(epoch from g.debounce_window)::double precision) end as window_end
        from builder_score.score_state as s
        cross join builder_score.settings as g
        where s.user_id = pending.user_id
    ) as t on true
    order by w.priority, w.enqueued_at;
$function$;

comment on function builder_score.pending(builder_score.user_id) is
    'What is queued that will have this user recalculated: their own rows, their projects'', everyone''s. due_at: not before this '
    'moment, by the debounce window and the backoff.';

create function builder_score.is_pending(user_id builder_score.user_id) returns boolean
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $function$
-- reads: what pending() reads
-- writes: nothing
-- Says whether pending() has a row, and stops at the first: verify() asks for each of thousands of people. Rows for
-- everyone look common to the planner where many rows have no user and many no project: it would scan for one.
begin
    return exists (select from builder_score.score_recalc_queue as q where q.user_id = is_pending.user_id)
        or exists (select from builder_score.score_recalc_queue as q where q.user_id is null and q.project_id is null)
        or exists (select from builder_score.host as h where h.walk_again_after is not null)
        or exists (select from builder_score.backfill as b
                   where not b.only_ageing and (b.after_user_id is null or b.after_user_id < is_pending.user_id))
        or exists (
            select
            from builder_score.concerning_projects(is_pending.user_id) as c
            cross join lateral (
                select from builder_score.score_recalc_queue as q
                where q.project_id = c.project_id and q.project_id is not null
                limit 1
            ) as r
        );
end
$function$;

comment on function builder_score.is_pending(builder_score.user_id) is
    'Whether a visible queue row, by user, project or everyone, will have this user recalculated: whether pending() has a row.';

create function builder_score.verify(user_ids builder_score.user_id[] default null)
returns table (
    user_id builder_score.user_id,
    stored numeric,
    computed numeric,
    computed_at timestamptz,
    standing text
)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $function$
-- reads: host views, formula, score_state, score_recalc_queue, score_dead_letter, backfill, host
-- writes: nothing
#variable_conflict use_column
declare
    v_ids builder_score.user_id[] := verify.user_ids;
    v_after builder_score.user_id;
begin
    perform builder_score.require_attached();
    loop
        if verify.user_ids is null then
            -- everyone, a thousand at a time: memory stays small
            if v_after is null then
                v_ids := array(select u.id from builder_score.host_users as u order by u.id limit 1000);
            else
                v_ids := array(select u.id from builder_score.host_users as u where u.id > v_after order by u.id limit 1000);
            end if;
        end if;

        return query
        select c.user_id, c.stored, c.computed, c.computed_at,
               case when builder_score.is_pending(c.user_id) then 'pending'
                    when exists (select from builder_score.score_dead_letter as d where d.user_id = c.user_id) then 'dead letter'
                    else 'wrong' end
        from (
            select k.user_id, u.builder_score::numeric as stored, r.computed, s.computed_at
            from builder_score.compute(v_ids, array(
                select coalesce(s.computed_at, now())
                from unnest(v_ids) with ordinality as i(user_id, place)
                left join builder_score.score_state as s on s.user_id = i.user_id
                order by i.place
            )) as k
            cross join lateral (select round(k.score, h.score_decimals) as computed from builder_score.host as h) as r
            cross join lateral (select x.builder_score from builder_score.host_users as x where x.id = k.user_id limit 1) as u
            left join builder_score.score_state as s on s.user_id = k.user_id
        ) as c
        where c.stored is distinct from c.computed;

        exit when verify.user_ids is not null or cardinality(v_ids) < 1000;
        v_after := v_ids[1000];
    end loop;
end
$function$;

comment on function builder_score.verify(builder_score.user_id[]) is
    'The users (null: of all) whose stored score is not what compute says, age taken as of computed_at. standing: '
    'pending (something is queued that will mend it), dead letter, or wrong. Locks nothing; works on a standby.';

create function builder_score.scheduler() returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: cron.job (pg_cron, where it is), worker_status, scheduled_jobs
-- writes: nothing
-- pg_cron shows each role its own jobs, and nothing of what it does for another database. So whoever runs the
-- worker now counts, and last what schedule() noted, unless the caller would see that job if it were there.
declare
    v_visible constant boolean := exists (select from pg_extension where extname = 'pg_cron') and has_schema_privilege('cron', 'usage');
    v_sees_all constant boolean := (select r.rolsuper or r.rolbypassrls from pg_roles as r where r.rolname = current_user);
    v_scheduled boolean := false;
    v_run_by text;
begin
    if v_visible then
        execute 'select exists (select from cron.job where jobname = ''builder-score-worker'' and active and database = current_database())'
        into v_scheduled;
    end if;
    if v_scheduled then
        return 'pg_cron';
    end if;
    select coalesce(w.run_by, '') into v_run_by
    from builder_score.worker_status as w
    where w.number is not null
      and w.heartbeat_at > clock_timestamp() - interval '1 minute' and w.heartbeat_at <= clock_timestamp()
    order by w.number
    limit 1;
    if v_run_by is not null then
        return case v_run_by when 'pg_cron' then 'pg_cron' else 'worker' end;
    end if;
    if exists (
        select from builder_score.known_jobs() as j
        where j.cron_database <> current_database()
           or (exists (select from pg_extension where extname = 'pg_cron')
               and not (v_visible and (v_sees_all or j.run_as = current_user)))
    ) then
        return 'pg_cron';
    end if;
    return 'none';
end
$function$;

comment on function builder_score.scheduler() is
    'What drives the worker: pg_cron (here or in another database), worker (somebody else keeps the heartbeat going) or none.';

create function builder_score.job_runs(max_rows integer default 5)
returns table (job text, run_as text, started_at timestamptz, ended_at timestamptz, status text, message text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: cron.job, cron.job_run_details (pg_cron, where it is)
-- writes: nothing
-- The caller is who looks: pg_cron shows each role its own jobs.
begin
    if not exists (select from pg_extension where extname = 'pg_cron') or not has_schema_privilege('cron', 'usage') then
        return;
    end if;
    return query execute $runs$
        select j.jobname::text, j.username::text, d.start_time, d.end_time, d.status::text, d.return_message::text
        from cron.job_run_details as d
        join cron.job as j on j.jobid = d.jobid
        where j.jobname ~ '^builder-score-worker(-[0-9]{1,2})?(-at-start)?(@|$)'
          and j.database = current_database()
        order by d.runid desc
        limit $1
    $runs$ using max_rows;
end
$function$;

comment on function builder_score.job_runs(integer) is
    'The last runs of our pg_cron jobs, the newest first, as far as the caller may see them; empty without pg_cron.';

create view builder_score.queue_by_priority as
with moment as materialized (select clock_timestamp() as now)
select p.priority,
       coalesce(q.queue_depth, 0) as queue_depth,
       coalesce(q.due_now, 0) as due_now,
       (select m.now from moment as m) - q.oldest as oldest_due_age
from (values (0::smallint), (10::smallint), (20::smallint)) as p(priority)
left join (
    -- subqueries: looking at the clock for every row would take longer than reading it
    select r.priority,
           count(*) as queue_depth,
           count(*) filter (where r.not_before <= (select m.now from moment as m)) as due_now,
           min(r.not_before) filter (where r.not_before <= (select m.now from moment as m)) as oldest
    from builder_score.score_recalc_queue as r
    group by r.priority
) as q on q.priority = p.priority
order by p.priority;

comment on view builder_score.queue_by_priority is 'The queue by priority: three rows. Counts the queue, which takes a tenth of a second a million rows.';
comment on column builder_score.queue_by_priority.priority is '0 high, 10 medium, 20 low.';
comment on column builder_score.queue_by_priority.queue_depth is 'Rows in score_recalc_queue.';
comment on column builder_score.queue_by_priority.due_now is 'Of those, rows that could be taken now.';
comment on column builder_score.queue_by_priority.oldest_due_age is 'How long the oldest of these has been due.';

create view builder_score.health as
with moment as materialized (select clock_timestamp() as now)
select q.queue_depth,
       q.due_now,
       q.oldest_due_age,
       (select count(*) from builder_score.score_dead_letter) as dead_letters,
       (select count(*) from builder_score.score_state where retry_at is not null) as retrying,
       w.started_at as last_run_at,
       w.silent as heartbeat_age,
       s.workers,
       r.workers_heard,
       builder_score.scheduler() as scheduler,
       s.paused,
       s.paused_reason,
       h.attached_at is not null as attached,
       (select min(j.cron_database) from builder_score.known_jobs() as j where j.cron_database <> current_database()) as cron_database,
       b.seen as backfill_seen,
       b.estimated_total as backfill_total,
       t.batches,
       t.recalculated,
       t.changed,
       t.failed,
       t.recalculated_per_second,
       t.last_batch_at,
       e.last_error,
       e.last_error_at
from builder_score.settings as s
cross join builder_score.host as h
cross join (
    select count(*) as queue_depth,
           count(*) filter (where r.not_before <= (select m.now from moment as m)) as due_now,
           (select m.now from moment as m)
               - min(r.not_before) filter (where r.not_before <= (select m.now from moment as m)) as oldest_due_age
    from builder_score.score_recalc_queue as r
) as q
cross join (
    select sum(batches)::bigint as batches,
           sum(recalculated)::bigint as recalculated,
           sum(changed)::bigint as changed,
           sum(failed)::bigint as failed,
           sum(builder_score.recent_rate(minute, minute_recalculated, minute_before_recalculated)) as recalculated_per_second,
           max(last_batch_at) as last_batch_at
    from builder_score.worker_status
) as t
left join lateral (
    -- the one that was not heard of for longest
    select x.started_at, x.silent
    from (
        select k.started_at,
               -- one from the future, before the clock was set back, is no younger than one from as long ago
               greatest(clock_timestamp() - k.heartbeat_at, k.heartbeat_at - clock_timestamp()) as silent
        from builder_score.worker_status as k
        where k.number <= s.workers
    ) as x
    order by x.silent desc
    limit 1
) as w on true
cross join lateral (
    select count(*) as workers_heard
    from builder_score.worker_status as k
    where k.number <= s.workers
      and k.heartbeat_at > clock_timestamp() - interval '2 minutes' and k.heartbeat_at <= clock_timestamp()
) as r
left join lateral (
    select x.last_error, x.last_error_at
    from builder_score.worker_status as x
    where x.last_error_at is not null
    order by x.last_error_at desc
    limit 1
) as e on true
left join builder_score.backfill as b on true;

comment on view builder_score.health is 'How the queue and its worker are: one row. Counts the queue, which takes a tenth of a second a million rows.';
comment on column builder_score.health.queue_depth is 'Rows in score_recalc_queue.';
comment on column builder_score.health.due_now is 'Of those, rows that could be taken now.';
comment on column builder_score.health.oldest_due_age is 'How long the oldest of these has been due.';
comment on column builder_score.health.dead_letters is 'Users given up after settings.max_attempts failures.';
comment on column builder_score.health.retrying is 'Users in backoff.';
comment on column builder_score.health.last_run_at is 'When the last run of the worker began that was not heard of for longest; null where the first one never ran.';
comment on column builder_score.health.heartbeat_age is 'Time since it last said that it is alive; about 5 s when idle.';
comment on column builder_score.health.workers is 'How many there are to be: settings.workers.';
comment on column builder_score.health.workers_heard is 'Of these, how many were heard of in the last two minutes.';
comment on column builder_score.health.scheduler is 'pg_cron, worker or none.';
comment on column builder_score.health.paused is 'Whether workers are told to leave.';
comment on column builder_score.health.paused_reason is 'Why.';
comment on column builder_score.health.attached is 'Whether triggers and views are in place.';
comment on column builder_score.health.cron_database is 'The other database whose pg_cron was told to run the worker; null: this one, or none.';
comment on column builder_score.health.backfill_seen is 'Users that the walk over everyone has seen; null when none is under way.';
comment on column builder_score.health.backfill_total is 'How many there are, by the planner''s statistics.';
comment on column builder_score.health.batches is 'Batches so far.';
comment on column builder_score.health.recalculated is 'Recalculations so far.';
comment on column builder_score.health.changed is 'Of those, scores that changed.';
comment on column builder_score.health.failed is 'Failures counted against a user so far.';
comment on column builder_score.health.recalculated_per_second is 'Recalculations a second, over this minute and the one before.';
comment on column builder_score.health.last_batch_at is 'End of the last batch that had work.';
comment on column builder_score.health.last_error is 'Last failure of a batch, with its SQLSTATE.';
comment on column builder_score.health.last_error_at is 'When.';

-- Where a user stands among all, how scores are distributed, and whether the counts that this rests on are right.
-- reads: score_counts, score_state, host_users          writes: score_counts, in repair_score_counts() alone

create function builder_score.distribution() returns table (score numeric, people bigint)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $function$
-- reads: score_counts
-- writes: nothing
-- A generic plan: making one looks at both ends of an index, where there may be many deleted rows.
begin
    return query
    select r.score, sum(r.people)::bigint
    from builder_score.live_score_counts as c
    cross join lateral unnest(c.scores, c.people) as r(score, people)
    group by r.score
    having sum(r.people) <> 0
    order by r.score desc;
end
$function$;

comment on function builder_score.distribution() is
    'How many people have each score, the highest first, as of the last batch. Who has no score yet is not in it.';

create function builder_score.standing(
    user_id builder_score.user_id,
    out score numeric,
    out rank bigint,
    out people bigint,
    out percentile double precision
) returns record
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $function$
-- reads: host_users, score_state, score_counts
-- writes: nothing
-- A generic plan, as in distribution(). Statement by statement, each with what the one before it found, for these few
-- look-ups take no longer than the executor takes to begin with a plan that holds them all.
declare
    v_is_there boolean;
    v_sum record;
    v_higher bigint;
    v_lower bigint;
begin
    if (select h.attached_at is null from builder_score.host as h) then     -- nearly never: a call is spared
        perform builder_score.require_attached();
    end if;
    select true, s.score into v_is_there, score
    from builder_score.host_users as u
    left join builder_score.score_state as s on s.user_id = standing.user_id
    where u.id = standing.user_id;
    if v_is_there is null then
        perform builder_score.unknown_user(standing.user_id);
    end if;

    select n.genuine, n.first_later, n.unfinished,
           coalesce(n.people_up_to[cardinality(n.people_up_to)], 0) as people,
           coalesce(n.people_up_to[p.place], 0) as at_most,
           coalesce(n.people_up_to[case when n.scores[p.place] = standing.score then p.place - 1 else p.place end], 0) as lower
    into v_sum
    from builder_score.newest_score_sum as n
    cross join lateral (select width_bucket(standing.score, n.scores) as place offset 0) as p;
    if v_sum.genuine then
        select v_sum.people + coalesce(sum(r.people), 0),
               v_sum.people - v_sum.at_most + coalesce(sum(r.people) filter (where r.score > standing.score), 0),
               v_sum.lower + coalesce(sum(r.people) filter (where r.score < standing.score), 0)
        into people, v_higher, v_lower
        from builder_score.counts_since(v_sum.first_later, v_sum.unfinished) as c
        cross join lateral unnest(c.scores, c.people) as r(score, people);
    else
        select coalesce(sum(r.people), 0),
               coalesce(sum(r.people) filter (where r.score > standing.score), 0),
               coalesce(sum(r.people) filter (where r.score < standing.score), 0)
        into people, v_higher, v_lower
        from builder_score.score_counts as c
        cross join lateral unnest(c.scores, c.people) as r(score, people);
    end if;
    if score is not null then
        rank := v_higher + 1;
        percentile := 100 * v_lower::double precision / greatest(people - 1, 1);
    end if;
end
$function$;

comment on function builder_score.standing(builder_score.user_id) is
    'Where a user stands as of the last batch. rank: 1 + the number of people with a higher score, so that equal scores share it; '
    'people: how many have a score; percentile: 100 * (people with a lower score) / (people - 1), as percent_rank() has it, 0 for '
    'somebody who is alone. Null while the user has no score. Exact, and counts nobody: it takes no longer among millions.';

create function builder_score.verify_score_counts() returns table (score numeric, counted bigint, people bigint)
language sql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $function$
-- reads: score_counts, score_state
-- writes: nothing
-- A transaction changes both tables or neither, so they agree in any snapshot. What is counted is looked up both ways, for a row
-- that came from another server may be where only one of them leads.
    with counted as (
        select r.score, sum(r.people * c.live) as live, sum(r.people * (1 - c.live)) as there
        from (
            select l.scores, l.people, 1 as live from builder_score.live_score_counts as l
            union all
            select c.scores, c.people, 0 from builder_score.score_counts as c
        ) as c
        cross join lateral unnest(c.scores, c.people) as r(score, people)
        group by r.score
    ),
    actual as (
        select s.score, count(*) as people from builder_score.score_state as s where s.score is not null group by s.score
    )
    select score,
           (case when coalesce(c.live, 0) <> coalesce(a.people, 0) then coalesce(c.live, 0) else c.there end)::bigint,
           coalesce(a.people, 0)
    from counted as c
    full join actual as a using (score)
    where coalesce(c.live, 0) <> coalesce(a.people, 0) or coalesce(c.there, 0) <> coalesce(a.people, 0)
    order by score desc;
$function$;

comment on function builder_score.verify_score_counts() is
    'The scores that not so many people have as score_counts says: counted, and how many have them. Reads all of score_state, locks '
    'nothing, works on a standby. They part when rows are restored into tables that count already, or written with triggers disabled.';

create function builder_score.repair_score_counts() returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $function$
-- reads: score_counts, score_state
-- writes: score_counts, turns (a lock)
-- Later than the lock, which a compaction and another repair take too, one statement puts in the place of all rows that it
-- sees the counts of the score_state that it sees. What others change meanwhile they count in rows that it does not see.
declare
    v_differing bigint;
    v_written_by xid;
begin
    perform builder_score.wait_for_our_turn('sum score_counts up');
    select count(*) into v_differing from builder_score.verify_score_counts();
    if v_differing = 0 then
        return 0;
    end if;
    if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
        raise exception 'repair_score_counts() cannot run at isolation level %', current_setting('transaction_isolation')
            using errcode = 'active_sql_transaction',
                  detail = 'Expected read committed: what is seen must be later than the lock.',
                  hint = 'Call it in a transaction of its own.';
    end if;
    insert into builder_score.score_counts as c (scores, people) values ('{}', '{}') returning c.xmin into v_written_by;
    with gone as (
        delete from builder_score.score_counts
    ),
    actual as (
        select s.score, count(*) as people from builder_score.score_state as s where s.score is not null group by s.score
    )
    insert into builder_score.score_counts (scores, people, people_up_to, stands_for, written_by)
    select coalesce(array_agg(s.score order by s.score), '{}'), coalesce(array_agg(s.people order by s.score), '{}'),
           coalesce(array_agg(s.people_up_to order by s.score), '{}'), pg_current_snapshot(), v_written_by
    from (select a.*, sum(a.people) over (order by a.score)::bigint as people_up_to from actual as a) as s;
    return v_differing;
end
$function$;

comment on function builder_score.repair_score_counts() is
    'Where score_counts is not what score_state holds, counts anew. Returns how many scores differed. Waits for a compaction that is '
    'under way; keeps neither batches nor readers waiting. The worker calls it once a day, and after attach().';

create function builder_score.tidy_score_counts(repair boolean default false) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '0.1s'
as $function$
-- reads: what compact_score_counts() and repair_score_counts() read
-- writes: score_counts
-- Ranks are no reason for scores to stand still.
begin
    if repair then
        perform builder_score.repair_score_counts();
    else
        perform builder_score.compact_score_counts();
    end if;
    return true;
exception when others then
    raise warning 'builder_score: score_counts could not be %: % (%)', case when repair then 'repaired' else 'summed up' end, sqlerrm, sqlstate
        using hint = 'SELECT builder_score.repair_score_counts();';
    return false;
end
$function$;

comment on function builder_score.tidy_score_counts(boolean) is
    'For the worker, now and then: sums score_counts up, or repairs it. An error is a warning, and false.';

create function builder_score.claim_repair_of_score_counts() returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: host
-- writes: host
begin
    -- What has failed, for somebody held a lock for a moment, is soon tried again, but not with every round.
    -- From the future: the clock was set back.
    if (select h.counted_at between clock_timestamp() - interval '1 day' and clock_timestamp()
            or h.count_tried_at between clock_timestamp() - interval '10 seconds' and clock_timestamp()
        from builder_score.host as h) then
        return false;
    end if;
    -- Not waiting for whoever attaches.
    update builder_score.host as h
    set count_tried_at = clock_timestamp()
    where h.one_row = any(array(select k.one_row from builder_score.host as k for update skip locked));
    return found;
end
$function$;

comment on function builder_score.claim_repair_of_score_counts() is
    'Whether score_counts is to be compared with score_state now: once a day, after attach(), and ten seconds after that has failed. '
    'Says so to one worker alone.';

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

-- The one column that we keep.
-- reads: pg_catalog          writes: nothing; the statements it returns do
-- locks on host tables: none by itself

create function builder_score.missing_column_statements() returns setof text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: pg_catalog
-- writes: nothing
begin
    if builder_score.host_column_type('users', 'builder_score') is null then
        -- a constant default: no row is rewritten
        return next format('alter table %s add column builder_score integer default 0', builder_score.host_table('users'));
        return next format('comment on column %s.builder_score is %L', builder_score.host_table('users'),
            'Reputation, 0 to 100, kept by the schema builder_score.');
    end if;
end
$function$;

comment on function builder_score.missing_column_statements() is
    'The statements that add users.builder_score. None where the host has it.';

-- The indexes on the host's tables that the score needs and the host may lack.
-- reads: pg_catalog, host_additions          writes: nothing; the statements it returns do
-- locks on host tables: none by itself

create function builder_score.needed_indexes()
returns table (table_name name, index_name name, key_columns name[], key_definition text, comment text)
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
    values
        ('users'::name, 'idx_users_builder_score'::name, array['builder_score', 'id']::name[], '(builder_score desc, id desc)',
         'Leaderboards: keyset pages by (builder_score, id).'),
        ('projects', 'idx_projects_owner_id', array['owner_id'], '(owner_id)', 'The projects of one owner.'),
        ('project_collaborators', 'idx_project_collaborators_project_id', array['project_id'], '(project_id)', 'The collaborators of one project.'),
        ('project_collaborators', 'idx_project_collaborators_user_id', array['user_id'], '(user_id)', 'The collaborations of one user.');
$function$;

comment on function builder_score.needed_indexes() is 'What we need an index on, and its name where the host has none.';

create function builder_score.usable_index(host_table regclass, key_columns name[]) returns regclass
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
    -- valid, whole, a btree that begins with these columns, each under its own collation (else no plan takes it), all in
    -- one direction and in the order that ORDER BY means
    select i.indexrelid::regclass
    from pg_index as i
    join pg_class as c on c.oid = i.indexrelid
    join pg_am as m on m.oid = c.relam and m.amname = 'btree'
    where i.indrelid = usable_index.host_table
      and i.indisvalid
      and i.indpred is null
      and i.indnkeyatts >= cardinality(key_columns)
      and key_columns = array(
          select a.attname
          from generate_series(0, cardinality(key_columns) - 1) as k(place)
          join pg_attribute as a on a.attrelid = i.indrelid and a.attnum = i.indkey[k.place] and a.attcollation = i.indcollation[k.place]
          order by k.place)
      and (cardinality(key_columns) = 1
           or (select count(distinct i.indoption[k.place]) = 1 and bool_and(i.indoption[k.place] in (0, 3)) and bool_and(o.opcdefault)
               from generate_series(0, cardinality(key_columns) - 1) as k(place)
               join pg_opclass as o on o.oid = i.indclass[k.place]))
    order by i.indnkeyatts, c.relname
    limit 1;
$function$;

comment on function builder_score.usable_index(regclass, name[]) is
    'The index of a table that begins with these columns, under whatever name and in whatever direction; null where there is none.';

create function builder_score.has_index(host_table regclass, key_columns name[]) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
    select builder_score.usable_index(host_table, key_columns) is not null;
$function$;

comment on function builder_score.has_index(regclass, name[]) is 'Whether the table has a usable index that begins with these columns, under whatever name.';

create function builder_score.under_lock(table_name name, lock_mode text, statements text[]) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $function$
    select format(E'do $locked$\nbegin\n    perform builder_score.lock_host_tables(array[%L]::name[], %L);\n    %s;\nend\n$locked$',
        under_lock.table_name, under_lock.lock_mode, array_to_string(under_lock.statements, E';\n    '));
$function$;

comment on function builder_score.under_lock(name, text, text[]) is
    'One statement that locks a host table as lock_host_tables() does, and then runs the given ones.';

create function builder_score.missing_index_statements() returns setof text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: pg_catalog, host_additions
-- writes: nothing
-- Each statement is to be run on its own, outside a transaction block; a run that was interrupted is
-- completed by asking again. What we add is noted before it is made, so that uninstall always finds it.
declare
    v_index record;
    v_part record;
    v_name text;
    v_ours boolean;
    v_made regclass;
    v_shells text[];
    v_leaves text[];
    v_joins text[];
begin
    for v_index in
        select n.*, builder_score.host_table(n.table_name) as host_table, h.host_schema, c.relkind
        from builder_score.needed_indexes() as n
        cross join builder_score.host as h
        join pg_class as c on c.oid = builder_score.host_table(n.table_name)
    loop
        v_name := format('%I.%I', v_index.host_schema, v_index.index_name);
        v_ours := exists (
            select from builder_score.host_additions as a
            where a.kind = 'index' and a.schema_name = v_index.host_schema and a.object_name = v_index.index_name
        );
        if builder_score.has_index(v_index.host_table, v_index.key_columns) then
            if v_ours and obj_description(to_regclass(v_name), 'pg_class') is null then
                return next format('comment on index %s is %L', v_name, v_index.comment);
            end if;
            continue;
        end if;
        if to_regclass(v_name) is not null and not v_ours then
            raise exception 'the name % is taken', v_name
                using errcode = 'duplicate_table',
                      detail = format('An index on %s %s is needed, and what has this name is not a usable one.', v_index.host_table, v_index.key_definition),
                      hint = 'Rename or drop it (an INVALID index is left by an interrupted CREATE INDEX CONCURRENTLY), then migrate again.';
        end if;
        return next format('insert into builder_score.host_additions (kind, schema_name, table_name, object_name) values (%L, %L, %L, %L) on conflict do nothing',
            'index', v_index.host_schema, v_index.table_name, v_index.index_name);

        if v_index.relkind <> 'p' then
            if to_regclass(v_name) is not null then
                return next format('drop index concurrently %s', v_name);
            end if;
            return next format('create index concurrently %I on %s %s', v_index.index_name, v_index.host_table, v_index.key_definition);
        else
            -- Empty shells, all at once; the partitions' indexes concurrently; then joined, all at once. What cannot be
            -- done concurrently is a statement that takes its locks as lock_host_tables() does.
            v_shells := case when to_regclass(v_name) is null
                then array[format('create index %I on only %s %s', v_index.index_name, v_index.host_table, v_index.key_definition)]
                else array[]::text[] end;
            v_leaves := array[]::text[];
            v_joins := array[]::text[];
            for v_part in
                select t.relid::regclass as part, t.isleaf, n.nspname,
                       left(v_index.index_name, 50) || '_' || t.relid::oid as index_name,
                       case when t.level = 1 then v_index.index_name::text else left(v_index.index_name, 50) || '_' || t.parentrelid::oid end as parent_index,
                       pn.nspname as parent_schema
                from pg_partition_tree(v_index.host_table) as t
                join pg_class as c on c.oid = t.relid
                join pg_namespace as n on n.oid = c.relnamespace
                join pg_class as pc on pc.oid = t.parentrelid
                join pg_namespace as pn on pn.oid = pc.relnamespace
                where t.level > 0
                order by t.level desc, t.relid
            loop
                v_made := to_regclass(format('%I.%I', v_part.nspname, v_part.index_name));
                if not v_part.isleaf then
                    if v_made is null then
                        v_shells := array_append(v_shells, format('create index %I on only %s %s', v_part.index_name, v_part.part, v_index.key_definition));
                    end if;
                else
                    if exists (select from pg_index as i where i.indexrelid = v_made and not i.indisvalid) then
                        v_leaves := array_append(v_leaves, format('drop index concurrently %I.%I', v_part.nspname, v_part.index_name));
                        v_made := null;
                    end if;
                    if v_made is null then
                        v_leaves := array_append(v_leaves, format('create index concurrently %I on %s %s', v_part.index_name, v_part.part, v_index.key_definition));
                    end if;
                end if;
                v_joins := array_append(v_joins, format('alter index %I.%I attach partition %I.%I', v_part.parent_schema, v_part.parent_index, v_part.nspname, v_part.index_name));
            end loop;
            if cardinality(v_shells) > 0 then
                return next builder_score.under_lock(v_index.table_name, 'share', v_shells);
            end if;
            return query select leaf from unnest(v_leaves) as leaf;
            if cardinality(v_joins) > 0 then
                return next builder_score.under_lock(v_index.table_name, 'access exclusive', v_joins);
            end if;
        end if;
        return next format('comment on index %s is %L', v_name, v_index.comment);
    end loop;
end
$function$;

comment on function builder_score.missing_index_statements() is
    'The statements that build, concurrently, the indexes the host lacks. None when all are there.';

create function builder_score.added_index_drops() returns setof text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: pg_catalog, host_additions
-- writes: nothing
-- Each statement is to be run on its own, outside a transaction block.
declare
    v_index record;
begin
    for v_index in
        select a.table_name, format('%I.%I', a.schema_name, a.object_name) as name, c.relkind
        from builder_score.host_additions as a
        join pg_class as c on c.oid = to_regclass(format('%I.%I', a.schema_name, a.object_name))
        where a.kind = 'index'
        order by a.table_name, a.object_name
    loop
        if v_index.relkind = 'I' then   -- a partitioned index cannot be dropped concurrently
            return next builder_score.under_lock(v_index.table_name, 'access exclusive', array['drop index ' || v_index.name]);
        else
            return next 'drop index concurrently ' || v_index.name;
        end if;
    end loop;
    return next 'delete from builder_score.host_additions where kind = ''index''';
end
$function$;

comment on function builder_score.added_index_drops() is 'The statements that drop, concurrently, the indexes that we added.';

-- The pg_cron jobs. SECURITY INVOKER: a job runs as whoever schedules it, unless a superuser says otherwise.
-- Where pg_cron works in another database, pyscore schedule --cron-dsn connects to both.
-- reads: pg_catalog, cron.job          writes: cron.job, host_additions, scheduled_jobs

create function builder_score.note_job(cron_database name, job_name text, run_as name, job_id bigint) returns void
language sql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: pg_database
-- writes: scheduled_jobs
    insert into builder_score.scheduled_jobs (cron_database, job_name, run_as, job_id, database_oid)
    select note_job.cron_database, note_job.job_name, note_job.run_as, note_job.job_id, d.oid
    from pg_database as d
    where d.datname = current_database()
    on conflict on constraint scheduled_jobs_pkey do update
    set job_id = excluded.job_id, database_oid = excluded.database_oid, scheduled_at = now();
$function$;

comment on function builder_score.note_job(name, text, name, bigint) is 'Part of scheduling: remembers a job.';

create function builder_score.wanted_jobs() returns table (job_name text, schedule text, command text)
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: settings
-- writes: nothing
    select concat_ws('-', 'builder-score-worker', nullif(k.number, 1)), '* * * * *',
           format('call builder_score.run_worker(%s)', case when k.number > 1 then 'null, ' || k.number end)
    from builder_score.settings as s
    cross join lateral generate_series(1, s.workers) as k(number)
    union all
    -- After a crash the minute's tick may be a minute away; this one comes with the server, and does alone what is to be
    -- done until the others follow.
    select 'builder-score-worker-at-start', '@reboot', 'call builder_score.run_worker()';
$function$;

comment on function builder_score.wanted_jobs() is 'The pg_cron jobs that there are to be: one for each of settings.workers, and one that starts with the server.';

create function builder_score.schedule(run_as name default null) returns setof text
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: pg_extension, pg_settings
-- writes: cron.job, host_additions, scheduled_jobs
declare
    -- pg_settings hides what the caller may not see, where current_setting() raises; null: cannot know, so try
    v_preloaded constant boolean := (select s.setting ~ '\mpg_cron\M' from pg_settings as s where s.name = 'shared_preload_libraries');
    v_database constant text := (select s.setting from pg_settings as s where s.name = 'cron.database_name');
    v_run_as constant name := coalesce(schedule.run_as, current_user);
    v_why text;
    v_job record;
begin
    if not exists (select from pg_extension where extname = 'pg_cron') then
        if not exists (select from pg_available_extensions where name = 'pg_cron') then
            v_why := 'pg_cron is not installed on this server';
        elsif not v_preloaded then
            v_why := 'pg_cron is installed, but shared_preload_libraries does not name it';
        elsif v_database <> current_database() then
            v_why := format('pg_cron works in database "%s" (cron.database_name), not in "%s": pyscore schedule --cron-dsn ADDRESS, with the address of that one',
                v_database, current_database());
        else
            begin
                create extension pg_cron;
                insert into builder_score.host_additions (kind, schema_name, table_name, object_name)
                values ('extension', 'pg_catalog', 'pg_cron', 'pg_cron');
                return next 'extension pg_cron';
            exception
                when insufficient_privilege then
                    v_why := format('%s may not create the extension pg_cron (a superuser, in the database that cron.database_name names: '
                                    'CREATE EXTENSION pg_cron; GRANT USAGE ON SCHEMA cron TO %I; '
                                    'if that is not "%s": pyscore schedule --cron-dsn ADDRESS, with the address of that one)',
                                    current_user, current_user, current_database());
                when others then
                    v_why := format('the extension pg_cron could not be created (%s)', sqlerrm);
            end;
        end if;
    end if;

    v_why := coalesce(v_why, (
        select format('pg_cron is %s in this database, and 1.4 is the oldest that serves (ALTER EXTENSION pg_cron UPDATE;)', e.extversion)
        from pg_extension as e
        where e.extname = 'pg_cron' and string_to_array(substring(e.extversion from '^[0-9.]+'), '.')::integer[] < array[1, 4]));

    if v_why is null then
        begin
            if v_run_as <> current_user and not has_function_privilege(v_run_as, 'builder_score.run_worker(interval, integer)', 'execute') then
                raise exception 'role % may not run the worker', v_run_as
                    using errcode = 'insufficient_privilege',
                          detail = 'The job would fail each minute.',
                          hint = format('GRANT builder_score_operator TO %I;', v_run_as);
            end if;
            for v_job in
                select w.job_name, w.schedule, w.command from builder_score.wanted_jobs() as w
            loop
                -- With a name it is idempotent for one role.
                if v_run_as = current_user then
                    execute 'select builder_score.note_job(current_database(), $1, $4, cron.schedule($1, $2, $3))'
                    using v_job.job_name, v_job.schedule, v_job.command, v_run_as;
                else
                    execute 'select builder_score.note_job(current_database(), $1, $4, cron.schedule_in_database($1, $2, $3, current_database(), $4))'
                    using v_job.job_name, v_job.schedule, v_job.command, v_run_as;
                end if;
            end loop;
            return query select * from builder_score.remove_jobs(v_run_as);
            return next (
                select case s.workers when 1 then format('pg_cron job builder-score-worker, as %s', v_run_as)
                       else format('pg_cron jobs builder-score-worker to builder-score-worker-%s, as %s', s.workers, v_run_as) end
                from builder_score.settings as s);
            if v_run_as = current_user and current_setting('statement_timeout')::interval > interval '0 seconds' then
                raise warning 'statement_timeout is % for %: the worker leaves before it strikes, and pauses until the next minute', current_setting('statement_timeout'), current_user
                    using hint = format('ALTER ROLE %I IN DATABASE %I SET statement_timeout = 0;', current_user, current_database());
            end if;
            return;
        exception when insufficient_privilege then
            if v_run_as <> current_user then
                raise;
            end if;
            v_why := format('%s may not use pg_cron (a superuser: GRANT USAGE ON SCHEMA cron TO %I;)', current_user, current_user);
        end;
    end if;

    return next format('no pg_cron job: %s; keep `pyscore worker` running instead, or put it right and SELECT * FROM builder_score.schedule();', v_why);
end
$function$;

comment on function builder_score.schedule(name) is
    'Creates the pg_cron job builder-score-worker, and one more for each further one of settings.workers, or says why it cannot and '
    'what runs instead. Idempotent. The jobs run as the caller; only a superuser may name another role.';

create function builder_score.remove_jobs(but_of name default null) returns setof text
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: cron.job, settings
-- writes: cron.job, cron.job_run_details, scheduled_jobs
declare
    v_job record;
begin
    -- By id: another role's job cannot be named, not even by a superuser.
    for v_job in execute
        'select jobid, jobname, username from cron.job'
        ' where jobname ~ ''^builder-score-worker(-[0-9]{1,2})?(-at-start)?(@|$)'' and database = current_database()'
        '   and (username is distinct from $1'
        '        or substring(jobname from ''^builder-score-worker-([0-9]{1,2})\M'')::integer > (select s.workers from builder_score.settings as s))'
        using remove_jobs.but_of
    loop
        execute 'select cron.unschedule($1::bigint)' using v_job.jobid;
        execute 'delete from cron.job_run_details where jobid = $1' using v_job.jobid;
        delete from builder_score.scheduled_jobs as j where j.cron_database = current_database() and j.job_id = v_job.jobid;
        return next format('pg_cron job %s, as %s, removed', v_job.jobname, v_job.username);
    end loop;
    -- Notes of jobs that somebody else has removed, of those that the caller would see.
    execute
        'delete from builder_score.scheduled_jobs as j'
        ' where j.cron_database = current_database() and not exists (select from cron.job as c where c.jobid = j.job_id)'
        '   and (j.run_as = current_user or (select r.rolsuper or r.rolbypassrls from pg_roles as r where r.rolname = current_user))';
end
$function$;

comment on function builder_score.remove_jobs(name) is
    'Part of schedule() and unschedule(): removes those of our pg_cron jobs in this database that the caller may see, but for one role''s '
    'that settings.workers has use for.';

create function builder_score.left_jobs() returns setof text
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: scheduled_jobs
-- writes: nothing
    select format('in database "%s", as role %I or a superuser: %s', j.cron_database, j.run_as,
                  string_agg(format('SELECT cron.unschedule(%s);', j.job_id), ' ' order by j.job_id))
    from builder_score.known_jobs() as j
    group by j.cron_database, j.run_as
    order by j.cron_database, j.run_as;
$function$;

comment on function builder_score.left_jobs() is
    'What removes the jobs that this database still has: where, as whom, and the statements. Once the schema is gone they fail, and do nothing else.';

create function builder_score.unschedule() returns setof text
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: cron.job, host_additions, scheduled_jobs
-- writes: cron.job, host_additions, scheduled_jobs
declare
    v_others boolean;
    v_left text;
begin
    -- Without the privilege no job of the caller's can be there: scheduling takes the same one.
    if exists (select from pg_extension where extname = 'pg_cron') and has_schema_privilege('cron', 'usage') then
        return query select * from builder_score.remove_jobs();

        if exists (select from builder_score.host_additions where kind = 'extension' and object_name = 'pg_cron') then
            execute 'select exists (select from cron.job)' into v_others;
            if v_others then
                return next 'extension pg_cron is kept: it has other jobs';
            else
                drop extension pg_cron;
                return next 'extension pg_cron removed';
            end if;
            delete from builder_score.host_additions where kind = 'extension' and object_name = 'pg_cron';
        end if;
    end if;

    if not exists (select from pg_extension where extname = 'pg_cron') then
        delete from builder_score.scheduled_jobs where cron_database = current_database();
    end if;
    for v_left in select l.statements from builder_score.left_jobs() as l(statements) loop
        raise warning 'builder_score: its pg_cron jobs stay: %', v_left;
    end loop;
end
$function$;

comment on function builder_score.unschedule() is
    'Removes our pg_cron jobs in this database, and the extension if we created it and nobody else uses it; warns of those that stay, because '
    'they are another role''s or in another database. A running worker stops by its own flag.';

-- Nothing is for everyone. The operator may look, recompute, pause and retry.
-- reads: pg_roles          writes: privileges in this schema

revoke all on all routines in schema builder_score from public;
revoke usage on domain builder_score.user_id from public;
revoke usage on domain builder_score.project_id from public;
revoke usage on type builder_score.run_memory from public;

do $grants$
begin
    if (select nspowner::regrole::text from pg_namespace where nspname = 'builder_score') <> 'builder_score_owner' then
        return;     -- the installer could not create roles
    end if;
    grant usage on schema builder_score to builder_score_operator;
    grant usage on domain builder_score.user_id, builder_score.project_id to builder_score_operator;
    grant select on
        builder_score.backfill,
        builder_score.health,
        builder_score.host,
        builder_score.host_additions,
        builder_score.impact_keys,
        builder_score.queue_by_priority,
        builder_score.scheduled_jobs,
        builder_score.score_counts,
        builder_score.score_dead_letter,
        builder_score.score_recalc_queue,
        builder_score.score_state,
        builder_score.settings,
        builder_score.signals,
        builder_score.statuses,
        builder_score.worker_status
    to builder_score_operator;
    grant update (paused, paused_reason) on builder_score.settings to builder_score_operator;
    grant delete on builder_score.score_dead_letter to builder_score_operator;
    grant execute on function
        builder_score.enqueue(builder_score.user_id, integer, text),
        builder_score.enqueue_everyone(text),
        builder_score.recalculate(builder_score.user_id),
        builder_score.explain(builder_score.user_id),
        builder_score.verify(builder_score.user_id[]),
        builder_score.find_user(text),
        builder_score.pending(builder_score.user_id),
        builder_score.is_pending(builder_score.user_id),
        builder_score.standing(builder_score.user_id),
        builder_score.distribution(),
        builder_score.verify_score_counts(),
        builder_score.repair_score_counts(),
        builder_score.retry_dead_letters(builder_score.user_id[]),
        builder_score.unknown_user(builder_score.user_id),
        builder_score.column_decimals(),
        builder_score.known_jobs(),
        builder_score.scheduler(),
        builder_score.job_runs(integer),
        builder_score.recent_rate(timestamptz, bigint, bigint),
        builder_score.run_by(),
        builder_score.worker_name(integer),
        builder_score.worker_lock(integer),
        builder_score.is_wanted(text),
        builder_score.begin_run(text, text),
        builder_score.is_alive(text),
        builder_score.may_go_on(),
        builder_score.run_batch(text, builder_score.run_memory),
        builder_score.run_round(text, integer, timestamptz, builder_score.run_memory),
        builder_score.beat(text, interval),
        builder_score.nap_seconds(integer, timestamptz),
        builder_score.run_deadline(interval),
        builder_score.housekeeping(),
        builder_score.purge_job_runs(interval)
    to builder_score_operator;
    grant execute on procedure builder_score.drain(), builder_score.run_worker(interval, integer) to builder_score_operator;
end
$grants$;

-- The schema's owner has made everything; what follows is the installer's again.
do $become_installer$
begin
    perform set_config('role', current_setting('builder_score.installer'), true);
end
$become_installer$;

-- Of what the installer has made himself, default privileges meant for the application's tables gave something away.
do $take_back$
declare
    v_given record;
begin
    perform builder_score.take_back(c.oid)
    from pg_class as c
    where c.relnamespace = 'builder_score'::regnamespace and c.relkind in ('r', 'v', 'S')
      and pg_has_role(c.relowner, 'usage');
    for v_given in
        select p.oid::regprocedure as routine, quote_ident(pg_get_userbyid(a.grantee)) as grantee
        from pg_proc as p
        cross join lateral aclexplode(p.proacl) as a
        where p.pronamespace = 'builder_score'::regnamespace and p.proowner <> a.grantee
          and pg_get_userbyid(a.grantee) not in ('builder_score_owner', 'builder_score_operator')
    loop
        execute format('revoke all on routine %s from %s', v_given.routine, v_given.grantee);
    end loop;
end
$take_back$;

do $version_table$
begin
    -- Alembic's, so the installer's; the command line asks it which version this is.
    if to_regclass('builder_score.alembic_version') is not null and to_regrole('builder_score_operator') is not null
       and (select nspowner::regrole::text from pg_namespace where nspname = 'builder_score') = 'builder_score_owner' then
        grant select on builder_score.alembic_version to builder_score_operator;
    end if;
end
$version_table$;

-- What later migrations would refuse is said now, while nothing of the host's has been touched.
-- reads: pg_catalog          writes: nothing
-- locks on host tables: none

do $rehearsal$
declare
    v_schema constant name := (select h.host_schema from builder_score.host as h);
begin
    perform builder_score.require_host_types();
    if exists (select from builder_score.missing_index_statements()) and not has_schema_privilege(current_user, v_schema, 'create') then
        raise exception 'role % may create no index in schema "%"', current_user, v_schema
            using errcode = 'insufficient_privilege',
                  detail = 'The application''s tables lack an index that we need; PostgreSQL puts it into the schema of its table.',
                  hint = format('GRANT CREATE ON SCHEMA %I TO %I; which may be revoked once we are installed.', v_schema, current_user);
    end if;
    perform from builder_score.needed_access();
end
$rehearsal$;
