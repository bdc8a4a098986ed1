"""Users whose scores fail: for whom a trigger of the host's objects, or whom compute raises for.

poison(db)                                  # a trigger that objects to people called eve
install_ailments(db)                        # then, for any user who owns a project:
ail(db, user, "compute", "22012")           # fails with this SQLSTATE, wherever it is to
cure(db, user)
light_fuse(db, 12)                          # the twelfth write from here on ends its backend
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from psycopg import Connection

STAGES = ("compute", "write", "commit")
"""Where an ailment strikes: in compute, in a trigger, in one that waits for the COMMIT."""

_AILMENTS = """
    create table ailments (user_id uuid primary key, stage text not null, errcode text not null);
    create sequence writes;
    create table fuse (burns_until bigint not null);

    create function suffer(sufferer uuid, stage text) returns integer
    language plpgsql stable security definer set search_path = public, pg_temp as $$
    declare
        found text := (select a.errcode from ailments as a
                       where a.user_id = sufferer and a.stage = suffer.stage);
    begin
        if found is not null then
            raise exception '% ails', sufferer using errcode = found;
        end if;
        return 0;
    end $$;

    create function suffer_written() returns trigger
    language plpgsql security definer set search_path = public, pg_temp as $$
    begin
        perform suffer(new.id, tg_argv[0]);
        if tg_when = 'BEFORE' and nextval('writes') = (select f.burns_until from fuse as f) then
            perform pg_terminate_backend(pg_backend_pid());
        end if;
        return new;
    end $$;
    create trigger suffer_write before update of builder_score on users
        for each row when (current_user <> session_user) execute function suffer_written('write');
    create constraint trigger suffer_commit after update on users deferrable initially deferred
        for each row when (current_user <> session_user) execute function suffer_written('commit');

    create or replace view builder_score.host_projects as
    select p.id, p.owner_id, p.status::text as status,
           (builder_score.count_of(p.github_stars::numeric)
            + suffer(p.owner_id, 'compute'))::numeric as github_stars,
           p.impact_metrics::jsonb as impact_metrics
    from projects as p;
"""


def poison(db: Connection[Any]) -> None:
    db.execute("""
        create function poison() returns trigger language plpgsql as
        $$ begin raise exception 'will not have %', new.username; end $$;
        create trigger poison before update of builder_score on users
            for each row when (new.username = 'eve') execute function poison();
    """)


def install_ailments(db: Connection[Any]) -> None:
    """Let the scores of single users fail, on the reference tables."""
    db.execute(_AILMENTS)


def ail(db: Connection[Any], user: UUID, stage: str, errcode: str) -> None:
    db.execute(
        "insert into ailments values (%s, %s, %s) on conflict (user_id) do update"
        " set stage = excluded.stage, errcode = excluded.errcode",
        [user, stage, errcode],
    )


def cure(db: Connection[Any], users: Sequence[UUID]) -> None:
    db.execute("delete from ailments where user_id = any(%s)", [list(users)])


def light_fuse(db: Connection[Any], writes: int) -> None:
    """Have the backend end itself that makes this write of a score, counted from now."""
    db.execute("truncate fuse")
    db.execute(
        "insert into fuse select last_value + is_called::integer - 1 + %s from writes", [writes]
    )
