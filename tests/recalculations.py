"""Every recalculation, written down by somebody else than us, in the reference database.

note_recalculations(db)
...
db.execute("select user_id, computed_at from recalculations order by number")
"""

from typing import Any

from psycopg import Connection

_NOTE = """
    -- without a key: whoever counts what a batch reads does not count this
    create table recalculations (
        number bigint generated always as identity,
        user_id uuid not null,
        computed_at timestamptz not null,
        score numeric,
        batch xid8 not null default pg_current_xact_id(),
        pid integer not null default pg_backend_pid()
    );
    create function note_recalculation() returns trigger
    language plpgsql security definer set search_path = public, pg_temp as $$
    begin
        insert into recalculations (user_id, computed_at, score)
        values (new.user_id, new.computed_at, new.score);
        return null;
    end $$;
    create trigger note after insert or update of computed_at on builder_score.score_state
        for each row execute function note_recalculation();
"""


def note_recalculations(db: Connection[Any]) -> None:
    """Have each one from here on leave a row in the table recalculations, if it is committed."""
    db.execute(_NOTE)
