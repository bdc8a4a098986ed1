-- What the worker remembers: of each user, of failures, of a running backfill, of itself, of the host.
-- reads: nothing          writes: nothing

create table builder_score.score_state (
    user_id builder_score.user_id primary key,
    score numeric,
    previous_score numeric,
    computed_at timestamptz,
    attempts integer not null default 0,
    retry_at timestamptz,
    first_failed_at timestamptz,
    formula_stamp text,
    rows_read bigint
) with (
    -- Who were first computed together share pages, and a walk over everyone updates all of a page in one transaction:
    -- with room for each once more that moves nobody to another page, and writes to no index.
    fillfactor = 50
);

create index score_state_retrying on builder_score.score_state (retry_at) where retry_at is not null;
create index score_state_heavy on builder_score.score_state (user_id) where rows_read is not null;

comment on index builder_score.score_state_retrying is 'Users in backoff, who are few.';
comment on index builder_score.score_state_heavy is 'Users who are recalculated alone, who are few.';
comment on table builder_score.score_state is 'Per user: the last recalculation and, while it fails, the backoff.';
comment on column builder_score.score_state.user_id is 'The user; no foreign key, so that the host''s DDL and deletes stay its own.';
comment on column builder_score.score_state.score is 'The score last computed, as written to users.builder_score; null before the first success.';
comment on column builder_score.score_state.previous_score is 'The score before the last change.';
comment on column builder_score.score_state.computed_at is 'When: opens the debounce window, and the moment at which the account''s age was taken.';
comment on column builder_score.score_state.attempts is 'Failures in a row.';
comment on column builder_score.score_state.retry_at is 'Not before this moment, whatever is enqueued meanwhile.';
comment on column builder_score.score_state.first_failed_at is 'First of the failures in a row.';
comment on column builder_score.score_state.formula_stamp is 'formula_stamp() it was computed with.';
comment on column builder_score.score_state.rows_read is
    'Projects and collaborations that were read, where those were more than a thousand: such a user has a batch of their own. Else null, '
    'so that a recalculation changes no column of an index.';

create table builder_score.score_dead_letter (
    user_id builder_score.user_id primary key,
    attempts integer not null,
    sqlstate text not null,
    message text not null,
    first_failed_at timestamptz not null,
    last_failed_at timestamptz not null
);

comment on table builder_score.score_dead_letter is 'Users whose computation failed settings.max_attempts times. A new event gives a fresh start.';
comment on column builder_score.score_dead_letter.user_id is 'The user.';
comment on column builder_score.score_dead_letter.attempts is 'Failures in a row when the user was given up.';
comment on column builder_score.score_dead_letter.sqlstate is 'SQLSTATE of the last failure.';
comment on column builder_score.score_dead_letter.message is 'Its message.';
comment on column builder_score.score_dead_letter.first_failed_at is 'First of those failures.';
comment on column builder_score.score_dead_letter.last_failed_at is 'Last of them.';

create table builder_score.backfill (
    one_row boolean primary key default true,
    reason text not null,
    only_ageing boolean not null,
    after_user_id builder_score.user_id,
    seen bigint not null default 0,
    estimated_total bigint not null,
    started_at timestamptz not null default clock_timestamp(),
    resume_at timestamptz not null default clock_timestamp(),
    constraint "one backfill runs at a time" check (one_row)
);

comment on table builder_score.backfill is 'The walk over everyone that is under way: one row, or none.';
comment on column builder_score.backfill.one_row is 'Always true: keeps the table at one row.';
comment on column builder_score.backfill.reason is 'Why everyone was enqueued.';
comment on column builder_score.backfill.only_ageing is 'True: only accounts that still gain points by age, and whose score is old.';
comment on column builder_score.backfill.after_user_id is 'The last user seen; the walk goes on behind it.';
comment on column builder_score.backfill.seen is 'Users seen so far.';
comment on column builder_score.backfill.estimated_total is 'How many there are, by the planner''s statistics.';
comment on column builder_score.backfill.started_at is 'When it began.';
comment on column builder_score.backfill.resume_at is 'When the throttle lets it go on.';

create function builder_score.worker_number(worker text) returns integer
language sql immutable parallel safe
return case when worker like 'resident%' then coalesce(nullif(substr(worker, 10), ''), '1')::integer end;

comment on function builder_score.worker_number(text) is 'The number of a resident worker, as in resident-2; null for drain.';

create table builder_score.worker_status (
    worker text primary key,
    backend_pid integer,
    started_at timestamptz,
    heartbeat_at timestamptz,
    batches bigint not null default 0,
    passes bigint not null default 0,
    recalculated bigint not null default 0,
    changed bigint not null default 0,
    failed bigint not null default 0,
    minute timestamptz,
    minute_recalculated bigint not null default 0,
    minute_before_recalculated bigint not null default 0,
    last_batch_at timestamptz,
    last_batch_seconds double precision,
    batch_seconds double precision not null default 0,
    last_error text,
    last_error_at timestamptz,
    run_by text,
    number integer generated always as (builder_score.worker_number(worker)) stored,
    constraint "worker must be resident, resident-2 to resident-16 or drain"
        check (worker ~ '^(resident(-([2-9]|1[0-6]))?|drain)$')
);

comment on table builder_score.worker_status is 'Heartbeat and totals: of each resident worker (run_worker) and of drain() called by hand.';
comment on column builder_score.worker_status.worker is 'resident, resident-2 and so on, or drain.';
comment on column builder_score.worker_status.backend_pid is 'Backend of the last run.';
comment on column builder_score.worker_status.started_at is 'When the last run began.';
comment on column builder_score.worker_status.heartbeat_at is 'When it last said that it is alive.';
comment on column builder_score.worker_status.batches is 'Batches so far.';
comment on column builder_score.worker_status.passes is 'Attempts to score a batch or a part of one; above batches when failures made it split.';
comment on column builder_score.worker_status.recalculated is 'Recalculations so far.';
comment on column builder_score.worker_status.changed is 'Of those, scores that changed.';
comment on column builder_score.worker_status.failed is 'Failures counted against a user so far.';
comment on column builder_score.worker_status.minute is 'The minute of the last batch that had work.';
comment on column builder_score.worker_status.minute_recalculated is 'Recalculations in that minute.';
comment on column builder_score.worker_status.minute_before_recalculated is 'Recalculations in the minute before it.';
comment on column builder_score.worker_status.last_batch_at is 'End of the last batch that had work.';
comment on column builder_score.worker_status.last_batch_seconds is 'How long it took.';
comment on column builder_score.worker_status.batch_seconds is 'How long all batches took so far.';
comment on column builder_score.worker_status.last_error is 'Last failure of a batch, with its SQLSTATE.';
comment on column builder_score.worker_status.last_error_at is 'When.';
comment on column builder_score.worker_status.run_by is 'What called it: pg_cron, or the application_name of its session.';
comment on column builder_score.worker_status.number is 'Of a resident worker; those above settings.workers have had their day.';

insert into builder_score.worker_status (worker) values ('resident'), ('drain');

create type builder_score.run_memory as (
    marks timestamptz[],
    looked_at timestamptz,
    full_look_at timestamptz,
    batch_size integer,
    round_at timestamptz,
    others_until timestamptz,
    swept_to builder_score.user_id,
    ahead builder_score.user_id[],
    ahead_since timestamptz,
    ahead_priority smallint
);

comment on type builder_score.run_memory is
    'What a run of a worker knows from one batch to the next; lost with the run. All null: look everywhere, take settings.batch_size.';
comment on column builder_score.run_memory.marks is
    'By priority (0, 10, 20), and of projects: the oldest not_before that the last look found, or a moment ago. Before it there are only '
    'dead rows, which stay for as long as somebody holds back vacuum, and what was committed late.';
comment on column builder_score.run_memory.looked_at is 'When all was looked at from the start.';
comment on column builder_score.run_memory.full_look_at is 'When that is done again: it may take a twentieth of the time.';
comment on column builder_score.run_memory.round_at is 'When an idle worker''s round is a whole one though nothing seems to be there.';
comment on column builder_score.run_memory.batch_size is 'Users in the next batch, by how long the last ones took; null: settings.batch_size, however long that takes.';
comment on column builder_score.run_memory.swept_to is 'While more is due than a batch takes: the last user who was taken; from there on, in the order of ids, the next ones are.';
comment on column builder_score.run_memory.ahead is 'Chosen for the batches that come next, in the order in which they are taken.';
comment on column builder_score.run_memory.ahead_since is 'When they were chosen.';
comment on column builder_score.run_memory.ahead_priority is 'Their priority: what comes with a better one does not wait for them.';
comment on column builder_score.run_memory.others_until is
    'After somebody had a batch of their own: for as long again it is the turn of those who need none.';

create table builder_score.scheduled_jobs (
    cron_database name not null,
    job_name text not null,
    run_as name not null,
    job_id bigint not null,
    database_oid oid not null,
    scheduled_at timestamptz not null default now(),
    primary key (cron_database, job_name, run_as)
);

comment on table builder_score.scheduled_jobs is
    'The pg_cron jobs that run our worker, as they were scheduled: pg_cron hides them from other roles, and from this database when '
    'it works in another one. Uninstall takes them out.';
comment on column builder_score.scheduled_jobs.cron_database is 'The database in which pg_cron keeps the job.';
comment on column builder_score.scheduled_jobs.job_name is 'cron.job.jobname.';
comment on column builder_score.scheduled_jobs.run_as is 'The role it runs as; who else is no superuser cannot see it.';
comment on column builder_score.scheduled_jobs.job_id is 'cron.job.jobid.';
comment on column builder_score.scheduled_jobs.database_oid is 'The database it was made for: a copy or a restore of that one has no job.';
comment on column builder_score.scheduled_jobs.scheduled_at is 'When it was last scheduled.';

create function builder_score.known_jobs()
returns table (cron_database name, job_name text, run_as name, job_id bigint, scheduled_at timestamptz)
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: scheduled_jobs, pg_database
-- writes: nothing
    select j.cron_database, j.job_name, j.run_as, j.job_id, j.scheduled_at
    from builder_score.scheduled_jobs as j
    join pg_database as d on d.oid = j.database_oid
    where d.datname = current_database();
$function$;

comment on function builder_score.known_jobs() is 'The rows of scheduled_jobs that are this database''s own.';

create function builder_score.recent_rate(
    minute timestamptz, minute_recalculated bigint, minute_before_recalculated bigint
) returns double precision
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: nothing
    select (case recent_rate.minute
                when m.this_minute then minute_recalculated + minute_before_recalculated
                when m.this_minute - interval '1 minute' then minute_recalculated
                else 0
            end / (60 + extract(epoch from clock_timestamp() - m.this_minute)))::double precision
    from (select date_trunc('minute', clock_timestamp())) as m(this_minute);
$function$;

comment on function builder_score.recent_rate(timestamptz, bigint, bigint) is
    'Recalculations a second, over this minute and the one before.';

create table builder_score.host (
    one_row boolean primary key default true,
    host_schema name not null,
    search_path text not null,
    score_decimals integer not null default 0,
    attached_at timestamptz,
    refreshed_at timestamptz not null default clock_timestamp(),
    walk_again_after xid8,
    clock_set_back boolean not null default false,
    counted_at timestamptz default clock_timestamp(),
    count_tried_at timestamptz,
    constraint "host has exactly one row" check (one_row)
);

comment on table builder_score.host is 'What attach() found: one row.';
comment on column builder_score.host.one_row is 'Always true: keeps the table at one row.';
comment on column builder_score.host.host_schema is 'Schema of users, projects and project_collaborators.';
comment on column builder_score.host.search_path is 'search_path for the one statement that writes users, for the host''s own triggers there.';
comment on column builder_score.host.score_decimals is 'Decimals that users.builder_score holds: 0 for whole numbers, else 1.';
comment on column builder_score.host.attached_at is 'When attach() last ran; null when detached.';
comment on column builder_score.host.refreshed_at is 'When ageing accounts were last enqueued.';
comment on column builder_score.host.walk_again_after is
    'After a change of statuses: everyone is walked again once the transactions before this one, which may have gone by the old list, have ended.';
comment on column builder_score.host.clock_set_back is 'The clock was set back: what waits by the old one is to be brought forward.';
comment on column builder_score.host.counted_at is 'When score_counts was last compared with score_state; null: it is to be done at once.';
comment on column builder_score.host.count_tried_at is 'When that was begun and not done, for want of a lock; null: it was done, or never begun.';

insert into builder_score.host (host_schema, search_path)
select s.name, format('%I, public', s.name)
from (select coalesce(nullif(current_setting('builder_score.host_schema', true), ''), 'public')) as s(name);

-- Autovacuum never looks at tables this small, and without statistics the planner takes a join of them for
-- millions of rows: too much for a health that is looked at every second.
analyze builder_score.settings, builder_score.signals, builder_score.statuses, builder_score.impact_keys,
    builder_score.backfill, builder_score.worker_status, builder_score.host;
