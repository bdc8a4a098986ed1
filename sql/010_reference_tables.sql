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
