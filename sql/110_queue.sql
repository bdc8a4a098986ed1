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
