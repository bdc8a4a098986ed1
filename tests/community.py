"""What an application does, in few words: people, projects, collaborations."""

from decimal import Decimal
from typing import Any
from uuid import UUID

from psycopg import Connection, sql
from psycopg.types.json import Jsonb


def insert(db: Connection[Any], table: str, columns: dict[str, Any]) -> UUID:
    """Insert one row and return its id."""
    query = sql.SQL("insert into {} ({}) values ({}) returning id").format(
        sql.Identifier(table),
        sql.SQL(", ").join(map(sql.Identifier, columns)),
        sql.SQL(", ").join(sql.Placeholder() * len(columns)),
    )
    values = [
        Jsonb(value) if isinstance(value, dict | list) else value for value in columns.values()
    ]
    row = db.execute(query, values).fetchone()
    assert row is not None
    return row[0]


def add_user(db: Connection[Any], username: str, **columns: Any) -> UUID:
    return insert(db, "users", {"username": username, "email": f"{username}@example.org"} | columns)


def add_project(db: Connection[Any], owner: UUID, **columns: Any) -> UUID:
    return insert(db, "projects", {"owner_id": owner, "title": "a project"} | columns)


def add_collaborator(
    db: Connection[Any], project: UUID, user: UUID, status: str = "confirmed"
) -> UUID:
    columns = {"project_id": project, "user_id": user, "status": status}
    return insert(db, "project_collaborators", columns)


def configure(db: Connection[Any], **settings: Any) -> None:
    """Change settings, for instance debounce_window="0"."""
    for name, value in settings.items():
        query = sql.SQL("update builder_score.settings set {} = %s").format(sql.Identifier(name))
        db.execute(query, [value])


def drain(db: Connection[Any]) -> None:
    db.execute("call builder_score.drain()")


def score(db: Connection[Any], user: UUID) -> Decimal | int | None:
    """What the application reads."""
    row = db.execute("select builder_score from users where id = %s", [user]).fetchone()
    assert row is not None, "no such user"
    return row[0]


def queue(db: Connection[Any]) -> list[tuple[UUID | None, UUID | None, int, str]]:
    """The queue: user, project, priority, reason of each row, in order of arrival."""
    return db.execute(
        "select user_id, project_id, priority, reason"
        " from builder_score.score_recalc_queue order by id"
    ).fetchall()


def one(db: Connection[Any], query: str, *parameters: Any) -> Any:
    """The first value of the first row."""
    row = db.execute(query.encode(), parameters or None).fetchone()
    assert row is not None
    return row[0]
