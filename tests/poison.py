"""A trigger of the host's that objects to scores of people called eve."""

from typing import Any

from psycopg import Connection


def poison(db: Connection[Any]) -> None:
    db.execute("""
        create function poison() returns trigger language plpgsql as
        $$ begin raise exception 'will not have %', new.username; end $$;
        create trigger poison before update of builder_score on users
            for each row when (new.username = 'eve') execute function poison();
    """)
