-- An application's tables, without indexes: its rows come first (rows.sql).
-- Words with a colon are put in by benchmarks/hosts.py.

-- Between 0 and 1, and always the same.
create function chance(n bigint, salt bigint) returns double precision
language sql immutable parallel safe
return (hashint8extended(n, salt) & 9223372036854775807) / 9223372036854775807.0::double precision;

create function person_id(n bigint) returns :key language sql immutable parallel safe return :person_id;
create function project_id(n bigint) returns :key language sql immutable parallel safe return :project_id;
create function collaboration_id(n bigint) returns :key language sql immutable parallel safe return :collaboration_id;

create table users (
    id :declaration,
    email text not null,
    username text not null,
    display_name text,
    avatar_url text,
    headline text,
    bio text,
    primary_role text,
    timezone text,
    contact_links jsonb not null default '{}',
    last_seen timestamptz,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create table projects (
    id :declaration,
    owner_id :key not null,
    title text not null,
    description text,
    status text not null default 'in_progress',
    tech_stack text[] not null default '{}',
    impact_metrics jsonb not null default '{}',
    github_stars integer not null default 0,
    views bigint not null default 0,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create table project_collaborators (
    id :declaration,
    project_id :key not null,
    user_id :key not null,
    role_description text,
    status text not null default 'pending',
    invited_at timestamptz not null default now(),
    confirmed_at timestamptz
);
