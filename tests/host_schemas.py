"""Applications' schemas as they are found in the field: what we are installed beside.

Each is created by its owner; the application's own role may read and write rows and no more.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from secrets import choice

from pyscore.locations import SQL

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def ulid() -> str:
    """A new id, as applications make them: 26 characters."""
    return "".join(choice(_CROCKFORD) for _ in range(26))


@dataclass(frozen=True)
class HostSchema:
    """An application's schema.

    Attributes:
        tables: The statements that create it; {role} stands for the application's own.
        schema: Where its three tables are.
        new_id: Makes an id; None where the database does.
        texts: Other columns of a table that have to be filled, each with a text of its own.
        is_partitioned: Whether users and projects are.
    """

    tables: str
    schema: str = "public"
    new_id: Callable[[], str] | None = None
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    is_partitioned: bool = False


# As they are where migrate made them once and they have become the application's own.
_REFERENCE_TABLES = re.findall(
    r"^ *((?:create table|create index|comment on table|comment on column) (?!builder_score).*?;)$",
    (SQL / "010_reference_tables.sql").read_text(),
    re.DOTALL | re.MULTILINE,
)

REFERENCE = HostSchema(
    "\n".join(_REFERENCE_TABLES), texts={"users": ("email",), "projects": ("title",)}
)

BIGINT_CHECKED = HostSchema("""
create table users (
    id bigint generated always as identity primary key,
    username text not null unique,
    bio text,
    created_at timestamp not null default now());
create table projects (
    id bigint generated always as identity primary key,
    owner_id bigint not null references users on delete cascade,
    status text not null default 'in_progress' check (status in ('in_progress', 'shipped')),
    github_stars integer not null default 0);
create table project_collaborators (
    id bigint generated always as identity primary key,
    project_id bigint not null references projects on delete cascade,
    user_id bigint not null references users on delete cascade,
    status text not null default 'pending' check (status in ('pending', 'confirmed')));
""")

ULID_ENUM = HostSchema(
    """
create table alembic_version (version_num varchar(32) primary key);
insert into alembic_version values ('77ab12cd34ef');
create type project_status as enum ('in_progress', 'shipped');
create type collaboration_status as enum ('pending', 'confirmed');
create table audit_log (at timestamptz not null default now(), what text not null);
revoke all on audit_log from public;
create table users (
    username varchar(40) not null unique,
    builder_score double precision not null default 0,
    id varchar(26) primary key,
    bio text,
    contact_links jsonb default '{}',
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now());
create table projects (
    owner_id varchar(26) not null references users on delete cascade,
    id varchar(26) primary key,
    status project_status not null default 'in_progress',
    github_stars integer not null default 0,
    impact_metrics jsonb);
create table project_collaborators (
    project_id varchar(26) references projects on delete cascade,
    user_id varchar(26) references users on delete cascade,
    status collaboration_status not null default 'pending',
    primary key (project_id, user_id));
create function audit() returns trigger language plpgsql as
    'begin insert into audit_log (what) values (new.username); return new; end';
create function moment() returns timestamptz language sql as 'select now()';
create function touch() returns trigger language plpgsql as
    'begin new.updated_at := moment(); return new; end';
create function tidy() returns trigger language plpgsql as
    'begin new.github_stars := greatest(new.github_stars, 0); return new; end';
create trigger audit after update on users for each row execute function audit();
create trigger touch before update on users for each row execute function touch();
create trigger tidy before insert or update on projects for each row execute function tidy();
insert into users (id, username, builder_score, contact_links) values
    ('01ARZ3NDEKTSV4RRFFQ69G5FA0', 'old_one', 41.7, '["a list"]'),
    ('01ARZ3NDEKTSV4RRFFQ69G5FA1', 'old_two', 99, '"a string"'),
    ('01ARZ3NDEKTSV4RRFFQ69G5FA2', 'old_three', 12.5, 'null'),
    ('01ARZ3NDEKTSV4RRFFQ69G5FA3', 'old_four', 0, '{"site": "x"}'),
    ('01ARZ3NDEKTSV4RRFFQ69G5FA4', 'old_five', 7, null);
""",
    new_id=ulid,
)

BARE = HostSchema("""
create table users (id uuid primary key default gen_random_uuid(), username text not null);
create table projects (
    id uuid primary key default gen_random_uuid(),
    owner_id uuid not null references users on delete cascade, status text);
create table project_collaborators (
    project_id uuid not null references projects on delete cascade,
    user_id uuid not null references users on delete cascade, status text);
""")

OTHER_SCHEMA = HostSchema(
    """
create table users (name text);
create table projects (id text, number integer);
create table project_collaborators (whatever jsonb);
insert into users values ('somebody else''s');
create schema app;
create table app.users (
    id uuid primary key default gen_random_uuid(), username text not null, bio text,
    created_at timestamptz default now());
create table app.projects (
    id uuid primary key default gen_random_uuid(),
    owner_id uuid not null references app.users on delete cascade,
    status text, github_stars integer default 0, impact_metrics json);
create table app.project_collaborators (
    id uuid primary key default gen_random_uuid(),
    project_id uuid not null references app.projects on delete cascade,
    user_id uuid not null references app.users on delete cascade, status text);
""",
    schema="app",
)

ROW_SECURITY = HostSchema(
    BIGINT_CHECKED.tables
    + """
alter table users enable row level security, force row level security;
alter table projects enable row level security, force row level security;
alter table project_collaborators enable row level security, force row level security;
create policy everything on users to {role} using (true) with check (true);
create policy everything on projects to {role} using (true) with check (true);
create policy everything on project_collaborators to {role} using (true) with check (true);
"""
)

PARTITIONED = HostSchema(
    """
create table users (
    id bigint generated by default as identity primary key,
    username text not null, bio text, created_at timestamptz not null default now()
) partition by hash (id);
create table users_0 partition of users for values with (modulus 2, remainder 0);
create table users_1 partition of users for values with (modulus 2, remainder 1);
create table projects (
    id bigint generated by default as identity primary key,
    owner_id bigint not null references users on delete cascade,
    status text not null default 'in_progress', github_stars integer not null default 0
) partition by hash (id);
create table projects_0 partition of projects for values with (modulus 2, remainder 0);
create table projects_1 partition of projects for values with (modulus 2, remainder 1);
create table project_collaborators (
    id bigint generated always as identity primary key,
    project_id bigint not null references projects on delete cascade,
    user_id bigint not null references users on delete cascade,
    status text not null default 'pending');
""",
    is_partitioned=True,
)

HOSTS = {
    "reference": REFERENCE,
    "bigint ids and checked statuses": BIGINT_CHECKED,
    "ulid ids, enums, triggers and scores of its own": ULID_ENUM,
    "bare": BARE,
    "another schema": OTHER_SCHEMA,
    "row level security": ROW_SECURITY,
    "partitioned": PARTITIONED,
}
