"""Where random histories are played: a database, its sessions, a clock that moves on, poison."""

from typing import NamedTuple, Self
from uuid import UUID

import psycopg

from tests.attacks import Attack
from tests.statements import run

USERS = ("ann", "bob", "cid", "dee", "eve")
PROJECTS = ("app", "bot", "cms", "dns")
IDS = {name: UUID(int=number) for number, name in enumerate((*USERS, *PROJECTS), 1)}
NAMES = {id: name for name, id in IDS.items()}

# The first commits each statement at once, the others have transactions.
SESSIONS = ("direct", "web", "api")

# A log of recalculations that a rollback takes back with them; users who cannot be scored; a clock
# that moves on: everything that we remember comes to be longer ago.
STAGE = """
    create schema history;
    create table history.log (
        id bigint generated always as identity,
        user_id uuid, at double precision, score numeric, previous_score numeric
    );
    create table history.poisoned (user_id uuid primary key, errcode text);
    create table history.signals as table builder_score.signals;

    -- vacuum would have locks of its own; clear() does it
    alter table users set (autovacuum_enabled = off);
    alter table projects set (autovacuum_enabled = off);
    alter table project_collaborators set (autovacuum_enabled = off);
    alter table builder_score.score_recalc_queue set (autovacuum_enabled = off);
    alter table builder_score.score_state set (autovacuum_enabled = off);

    create function history.note() returns trigger language plpgsql security definer as $$
    declare
        v_code text;
    begin
        if tg_op = 'DELETE' then
            insert into history.log (user_id) values (old.user_id);
        elsif new.computed_at is not null
              and (tg_op = 'INSERT' or new.computed_at is distinct from old.computed_at) then
            select errcode into v_code from history.poisoned where user_id = new.user_id;
            if found then
                raise exception 'cannot be scored' using errcode = v_code;
            end if;
            insert into history.log (user_id, at, score, previous_score)
            values (new.user_id, extract(epoch from new.computed_at),
                    new.score, new.previous_score);
        end if;
        return null;
    end $$;
    create trigger note after insert or delete or update of computed_at
        on builder_score.score_state for each row execute function history.note();

    create function history.pass(delta interval) returns void language sql
    set session_replication_role = replica as $$
        update builder_score.score_recalc_queue
        set not_before = not_before - delta, enqueued_at = enqueued_at - delta;
        update builder_score.score_state
        set computed_at = computed_at - delta, retry_at = retry_at - delta,
            first_failed_at = first_failed_at - delta;
        update builder_score.score_dead_letter
        set first_failed_at = first_failed_at - delta, last_failed_at = last_failed_at - delta;
        update builder_score.backfill
        set started_at = started_at - delta, resume_at = resume_at - delta;
        update builder_score.host set refreshed_at = refreshed_at - delta;
        update builder_score.worker_status
        set heartbeat_at = heartbeat_at - delta, started_at = started_at - delta;
    $$;

    -- apart: it waits for a transaction that truncates
    create function history.age(delta interval) returns void language sql
    set session_replication_role = replica as $$
        update public.users set created_at = created_at - delta;
    $$;

    create function history.begin() returns void language sql
    set session_replication_role = replica as $$
        delete from public.project_collaborators;
        delete from public.projects;
        delete from public.users;
        delete from builder_score.score_recalc_queue;
        delete from builder_score.score_state;
        delete from builder_score.score_dead_letter;
        delete from builder_score.backfill;
        delete from history.log;
        delete from history.poisoned;
        update builder_score.settings
        set debounce_window = '0', batch_size = 500, workers = 2, max_attempts = 3,
            lock_timeout = '10ms', batch_target = '10 s',
            retry_base = '5 minutes', retry_cap = '5 minutes', paused = false;
        update builder_score.signals as s set max_points = k.max_points
        from history.signals as k where k.signal = s.signal;
        delete from builder_score.statuses where status not in ('shipped', 'confirmed');
        delete from builder_score.impact_keys where key <> 'users';
        update builder_score.host
        set refreshed_at = clock_timestamp(), walk_again_after = null;
    $$;
"""

RESIDENTS = {"resident": 1, "resident-2": 2}
"""Sessions of numbered workers; the others drain."""

SOMETHING_DUE = """
    select exists (select from builder_score.backfill) or exists (
        select from builder_score.score_recalc_queue where not_before <= clock_timestamp())
"""


STANDING = """
    select u.id is not null, u.builder_score, s.user_id is not null, s.score,
           coalesce(s.attempts, 0), d.user_id is not null,
           q.priority, q.queued
    from unnest(%s::uuid[]) with ordinality as i(id, place)
    left join users as u on u.id = i.id
    left join builder_score.score_state as s on s.user_id = i.id
    left join builder_score.score_dead_letter as d on d.user_id = i.id
    cross join lateral (
        select min(priority) as priority, count(*) as queued
        from builder_score.score_recalc_queue where user_id = i.id
    ) as q
    order by i.place
"""
UNFINISHED = """
    select exists (select from builder_score.backfill) or exists (
               select from builder_score.score_recalc_queue where user_id is null),
           walk_again_after is not null
    from builder_score.host
"""


class Standing(NamedTuple):
    """What the database holds of a user."""

    there: bool
    builder_score: int | None
    remembered: bool
    score: int | None
    attempts: int
    given_up: bool
    priority: int | None
    """The highest of the user's queue rows; None when not queued."""
    queued: int

    @classmethod
    def of_nobody(cls) -> Self:
        return cls(False, None, False, None, 0, False, None, 0)


class Stage:
    """A database on which one history is played after the other, and its sessions."""

    def __init__(self, address: str, attack: Attack) -> None:
        self.attack = attack
        self._cleared = 0
        names = (*SESSIONS, "one", "two", *RESIDENTS, "batch", "us")
        self.sessions = {
            name: psycopg.connect(address, autocommit=True, application_name=name) for name in names
        }
        self.us = self.sessions["us"]
        run(self.us, STAGE)
        for name in SESSIONS:
            run(self.sessions[name], "set lock_timeout = '5ms'")
        for name in ("one", "two", *RESIDENTS, "batch", "us"):
            run(self.sessions[name], "set statement_timeout = '20s'")  # they come to an end

    def clear(self) -> None:
        for session in self.sessions.values():
            session.rollback()
        attached = "select attached_at is not null from builder_score.host"
        if run(self.us, attached) == [(False,)]:
            run(self.us, "select builder_score.attach()")
        run(self.us, "select history.begin()")
        self._cleared += 1
        if self._cleared % 50 == 0:
            run(self.us, "vacuum")

    def close(self) -> None:
        for session in self.sessions.values():
            session.close()
