"""Applications whose tables were there before us."""

from typing import Any, LiteralString, cast

from psycopg import Connection

KEYS = {
    "uuid": "uuid primary key default gen_random_uuid()",
    "integer": "integer generated always as identity primary key",
    "bigint": "bigint generated always as identity primary key",
    "varchar(26)": "varchar(26) primary key",
}
"""How applications declare their ids, by the ids' type."""

_TABLES = {
    "users": """
        create table users (
            id {declaration},
            username text not null unique,
            email text not null,
            bio text,
            created_at timestamptz not null default now()
            {score}
        )""",
    "projects": """
        create table projects (
            id {declaration},
            owner_id {key} not null references users (id) on delete cascade,
            title text not null,
            status text not null default 'in_progress',
            impact_metrics jsonb not null default '{{}}',
            github_stars integer not null default 0
        )""",
    "project_collaborators": """
        create table project_collaborators (
            id {declaration},
            project_id {key} not null references projects (id) on delete cascade,
            user_id {key} not null references users (id) on delete cascade,
            status text not null default 'pending'
        )""",
}


def create_application(
    db: Connection[Any], *, key: str = "uuid", score: str | None = None, tables: int = 3
) -> None:
    """Create an application's tables, with no index that we need.

    `score` is how it declares builder_score, None where it has no such column; `tables` how many of
    the three there are.
    """
    column = f", builder_score {score}" if score else ""
    for statement in list(_TABLES.values())[:tables]:
        text = statement.format(declaration=KEYS[key], key=key, score=column)
        db.execute(cast(LiteralString, text))
