-- For services and operators: one score now, whether stored scores are right, and how everything is.
-- reads: host views and our own tables          writes: users.builder_score, and what score_users() writes

create function builder_score.recalculate(user_id builder_score.user_id) returns numeric
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: host views, score_recalc_queue
-- writes: users.builder_score, score_state, score_dead_letter, score_recalc_queue, NOTIFY
#variable_conflict use_column
declare
    v_row_ids bigint[];
begin
    if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
        raise exception 'recalculate() cannot run at isolation level %', current_setting('transaction_isolation')
            using errcode = 'active_sql_transaction',
                  detail = 'Expected read committed: under an older snapshot the score could be written from data that is no longer true.',
                  hint = format('SELECT builder_score.enqueue(%L, 0); the worker then computes it at once, past the debounce.', recalculate.user_id);
    end if;
    perform builder_score.require_attached();
    perform from builder_score.host_users as u where u.id = recalculate.user_id for no key update;
    if not found then
        perform builder_score.unknown_user(recalculate.user_id);
    end if;
    -- in a new statement, later than the lock: exactly these rows are answered by this recalculation
    select coalesce(array_agg(q.id), '{}') into v_row_ids
    from builder_score.score_recalc_queue as q
    where q.user_id = recalculate.user_id;
    perform builder_score.score_users(array[recalculate.user_id], v_row_ids);
    return (select s.score from builder_score.score_state as s where s.user_id = recalculate.user_id);
end
$function$;

comment on function builder_score.recalculate(builder_score.user_id) is
    'Compute and write one score now, past the debounce, and open a new window. Returns the score. '
    'May wait for whoever holds the user''s row. Needs read committed.';

create function builder_score.find_user(name text) returns builder_score.user_id
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: host_users
-- writes: nothing
declare
    v_id builder_score.user_id;
begin
    perform builder_score.require_attached();
    begin
        select u.id into v_id from builder_score.host_users as u where u.id = find_user.name::builder_score.user_id;
    exception when data_exception or check_violation then
        v_id := null;   -- not of the form of an id
    end;
    if v_id is null then
        select u.id into v_id from builder_score.host_users as u where u.username = find_user.name order by u.id limit 1;
    end if;
    return v_id;
end
$function$;

comment on function builder_score.find_user(text) is 'The user with this id, else with this username; null where there is none.';

create function builder_score.concerning_projects(user_id builder_score.user_id)
returns table (project_id builder_score.project_id)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: host_projects, host_collaborations, statuses
-- writes: nothing
-- The same people as expand_projects() finds.
    select p.id from builder_score.host_projects as p where p.owner_id = concerning_projects.user_id
    union all
    select c.project_id
    from builder_score.host_collaborations as c
    where c.user_id = concerning_projects.user_id
      and c.status in (select s.status from builder_score.statuses as s where s.meaning = 'confirmed');
$function$;

comment on function builder_score.concerning_projects(builder_score.user_id) is
    'Projects whose queue rows will have this user recalculated: those they own, and those they are a confirmed collaborator of.';

create function builder_score.pending(user_id builder_score.user_id)
returns table (
    stands_for text,
    priority smallint,
    reason text,
    enqueued_at timestamptz,
    due_at timestamptz
)
language sql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $function$
-- reads: score_recalc_queue, backfill, host, score_state, settings, host_projects, host_collaborations, statuses
-- writes: nothing
    with waiting as (
        select 'user' as stands_for, q.priority, q.reason, q.enqueued_at, q.not_before
        from builder_score.score_recalc_queue as q
        where q.user_id = pending.user_id
        union all
        -- from the user's projects to the queue, which may hold any number of others; offset 0 keeps it that way round
        select 'project', q.priority, q.reason, q.enqueued_at, q.not_before
        from builder_score.concerning_projects(pending.user_id) as c
        cross join lateral (
            select r.* from builder_score.score_recalc_queue as r
            where r.project_id = c.project_id and r.project_id is not null
            offset 0
        ) as q
        union all
        select 'everyone', q.priority, q.reason, q.enqueued_at, q.not_before
        from builder_score.score_recalc_queue as q
        where q.user_id is null and q.project_id is null
        union all
        -- whom the walk has passed has a row of their own
        select 'everyone', 20::smallint, b.reason, b.started_at, b.started_at
        from builder_score.backfill as b
        where not b.only_ageing and (b.after_user_id is null or b.after_user_id < pending.user_id)
        union all
        -- a second walk, which advance_backfill() begins when the transactions that were open have ended
        select 'everyone', 20::smallint, 'formula: statuses, for transactions that were open', now(), now()
        from builder_score.host as h
        where h.walk_again_after is not null
    )
    select w.stands_for, w.priority, w.reason, w.enqueued_at,
           greatest(
               w.not_before,
               case when not w.forced then t.window_end end,
               t.retry_at
           )
    from (select waiting.*, min(waiting.priority) over () = 0 as forced from waiting) as w
    left join (
        -- as run_batch() takes it
        select s.retry_at,
               case when s.computed_at <= clock_timestamp()
                    then s.computed_at + make_interval(secs => extract(epoch from g.debounce_window)::double precision) end as window_end
        from builder_score.score_state as s
        cross join builder_score.settings as g
        where s.user_id = pending.user_id
    ) as t on true
    order by w.priority, w.enqueued_at;
$function$;

comment on function builder_score.pending(builder_score.user_id) is
    'What is queued that will have this user recalculated: their own rows, their projects'', everyone''s. due_at: not before this '
    'moment, by the debounce window and the backoff.';

create function builder_score.is_pending(user_id builder_score.user_id) returns boolean
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $function$
-- reads: what pending() reads
-- writes: nothing
-- Says whether pending() has a row, and stops at the first: verify() asks for each of thousands of people. Rows for
-- everyone look common to the planner where many rows have no user and many no project: it would scan for one.
begin
    return exists (select from builder_score.score_recalc_queue as q where q.user_id = is_pending.user_id)
        or exists (select from builder_score.score_recalc_queue as q where q.user_id is null and q.project_id is null)
        or exists (select from builder_score.host as h where h.walk_again_after is not null)
        or exists (select from builder_score.backfill as b
                   where not b.only_ageing and (b.after_user_id is null or b.after_user_id < is_pending.user_id))
        or exists (
            select
            from builder_score.concerning_projects(is_pending.user_id) as c
            cross join lateral (
                select from builder_score.score_recalc_queue as q
                where q.project_id = c.project_id and q.project_id is not null
                limit 1
            ) as r
        );
end
$function$;

comment on function builder_score.is_pending(builder_score.user_id) is
    'Whether a visible queue row, by user, project or everyone, will have this user recalculated: whether pending() has a row.';

create function builder_score.verify(user_ids builder_score.user_id[] default null)
returns table (
    user_id builder_score.user_id,
    stored numeric,
    computed numeric,
    computed_at timestamptz,
    standing text
)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $function$
-- reads: host views, formula, score_state, score_recalc_queue, score_dead_letter, backfill, host
-- writes: nothing
#variable_conflict use_column
declare
    v_ids builder_score.user_id[] := verify.user_ids;
    v_after builder_score.user_id;
begin
    perform builder_score.require_attached();
    loop
        if verify.user_ids is null then
            -- everyone, a thousand at a time: memory stays small
            if v_after is null then
                v_ids := array(select u.id from builder_score.host_users as u order by u.id limit 1000);
            else
                v_ids := array(select u.id from builder_score.host_users as u where u.id > v_after order by u.id limit 1000);
            end if;
        end if;

        return query
        select c.user_id, c.stored, c.computed, c.computed_at,
               case when builder_score.is_pending(c.user_id) then 'pending'
                    when exists (select from builder_score.score_dead_letter as d where d.user_id = c.user_id) then 'dead letter'
                    else 'wrong' end
        from (
            select k.user_id, u.builder_score::numeric as stored, r.computed, s.computed_at
            from builder_score.compute(v_ids, array(
                select coalesce(s.computed_at, now())
                from unnest(v_ids) with ordinality as i(user_id, place)
                left join builder_score.score_state as s on s.user_id = i.user_id
                order by i.place
            )) as k
            cross join lateral (select round(k.score, h.score_decimals) as computed from builder_score.host as h) as r
            cross join lateral (select x.builder_score from builder_score.host_users as x where x.id = k.user_id limit 1) as u
            left join builder_score.score_state as s on s.user_id = k.user_id
        ) as c
        where c.stored is distinct from c.computed;

        exit when verify.user_ids is not null or cardinality(v_ids) < 1000;
        v_after := v_ids[1000];
    end loop;
end
$function$;

comment on function builder_score.verify(builder_score.user_id[]) is
    'The users (null: of all) whose stored score is not what compute says, age taken as of computed_at. standing: '
    'pending (something is queued that will mend it), dead letter, or wrong. Locks nothing; works on a standby.';

create function builder_score.scheduler() returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: cron.job (pg_cron, where it is), worker_status, scheduled_jobs
-- writes: nothing
-- pg_cron shows each role its own jobs, and nothing of what it does for another database. So whoever runs the
-- worker now counts, and last what schedule() noted, unless the caller would see that job if it were there.
declare
    v_visible constant boolean := exists (select from pg_extension where extname = 'pg_cron') and has_schema_privilege('cron', 'usage');
    v_sees_all constant boolean := (select r.rolsuper or r.rolbypassrls from pg_roles as r where r.rolname = current_user);
    v_scheduled boolean := false;
    v_run_by text;
begin
    if v_visible then
        execute 'select exists (select from cron.job where jobname = ''builder-score-worker'' and active and database = current_database())'
        into v_scheduled;
    end if;
    if v_scheduled then
        return 'pg_cron';
    end if;
    select coalesce(w.run_by, '') into v_run_by
    from builder_score.worker_status as w
    where w.number is not null
      and w.heartbeat_at > clock_timestamp() - interval '1 minute' and w.heartbeat_at <= clock_timestamp()
    order by w.number
    limit 1;
    if v_run_by is not null then
        return case v_run_by when 'pg_cron' then 'pg_cron' else 'worker' end;
    end if;
    if exists (
        select from builder_score.known_jobs() as j
        where j.cron_database <> current_database()
           or (exists (select from pg_extension where extname = 'pg_cron')
               and not (v_visible and (v_sees_all or j.run_as = current_user)))
    ) then
        return 'pg_cron';
    end if;
    return 'none';
end
$function$;

comment on function builder_score.scheduler() is
    'What drives the worker: pg_cron (here or in another database), worker (somebody else keeps the heartbeat going) or none.';

create function builder_score.job_runs(max_rows integer default 5)
returns table (job text, run_as text, started_at timestamptz, ended_at timestamptz, status text, message text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: cron.job, cron.job_run_details (pg_cron, where it is)
-- writes: nothing
-- The caller is who looks: pg_cron shows each role its own jobs.
begin
    if not exists (select from pg_extension where extname = 'pg_cron') or not has_schema_privilege('cron', 'usage') then
        return;
    end if;
    return query execute $runs$
        select j.jobname::text, j.username::text, d.start_time, d.end_time, d.status::text, d.return_message::text
        from cron.job_run_details as d
        join cron.job as j on j.jobid = d.jobid
        where j.jobname ~ '^builder-score-worker(-[0-9]{1,2})?(-at-start)?(@|$)'
          and j.database = current_database()
        order by d.runid desc
        limit $1
    $runs$ using max_rows;
end
$function$;

comment on function builder_score.job_runs(integer) is
    'The last runs of our pg_cron jobs, the newest first, as far as the caller may see them; empty without pg_cron.';

create view builder_score.queue_by_priority as
with moment as materialized (select clock_timestamp() as now)
select p.priority,
       coalesce(q.queue_depth, 0) as queue_depth,
       coalesce(q.due_now, 0) as due_now,
       (select m.now from moment as m) - q.oldest as oldest_due_age
from (values (0::smallint), (10::smallint), (20::smallint)) as p(priority)
left join (
    -- subqueries: looking at the clock for every row would take longer than reading it
    select r.priority,
           count(*) as queue_depth,
           count(*) filter (where r.not_before <= (select m.now from moment as m)) as due_now,
           min(r.not_before) filter (where r.not_before <= (select m.now from moment as m)) as oldest
    from builder_score.score_recalc_queue as r
    group by r.priority
) as q on q.priority = p.priority
order by p.priority;

comment on view builder_score.queue_by_priority is 'The queue by priority: three rows. Counts the queue, which takes a tenth of a second a million rows.';
comment on column builder_score.queue_by_priority.priority is '0 high, 10 medium, 20 low.';
comment on column builder_score.queue_by_priority.queue_depth is 'Rows in score_recalc_queue.';
comment on column builder_score.queue_by_priority.due_now is 'Of those, rows that could be taken now.';
comment on column builder_score.queue_by_priority.oldest_due_age is 'How long the oldest of these has been due.';

create view builder_score.health as
with moment as materialized (select clock_timestamp() as now)
select q.queue_depth,
       q.due_now,
       q.oldest_due_age,
       (select count(*) from builder_score.score_dead_letter) as dead_letters,
       (select count(*) from builder_score.score_state where retry_at is not null) as retrying,
       w.started_at as last_run_at,
       w.silent as heartbeat_age,
       s.workers,
       r.workers_heard,
       builder_score.scheduler() as scheduler,
       s.paused,
       s.paused_reason,
       h.attached_at is not null as attached,
       (select min(j.cron_database) from builder_score.known_jobs() as j where j.cron_database <> current_database()) as cron_database,
       b.seen as backfill_seen,
       b.estimated_total as backfill_total,
       t.batches,
       t.recalculated,
       t.changed,
       t.failed,
       t.recalculated_per_second,
       t.last_batch_at,
       e.last_error,
       e.last_error_at
from builder_score.settings as s
cross join builder_score.host as h
cross join (
    select count(*) as queue_depth,
           count(*) filter (where r.not_before <= (select m.now from moment as m)) as due_now,
           (select m.now from moment as m)
               - min(r.not_before) filter (where r.not_before <= (select m.now from moment as m)) as oldest_due_age
    from builder_score.score_recalc_queue as r
) as q
cross join (
    select sum(batches)::bigint as batches,
           sum(recalculated)::bigint as recalculated,
           sum(changed)::bigint as changed,
           sum(failed)::bigint as failed,
           sum(builder_score.recent_rate(minute, minute_recalculated, minute_before_recalculated)) as recalculated_per_second,
           max(last_batch_at) as last_batch_at
    from builder_score.worker_status
) as t
left join lateral (
    -- the one that was not heard of for longest
    select x.started_at, x.silent
    from (
        select k.started_at,
               -- one from the future, before the clock was set back, is no younger than one from as long ago
               greatest(clock_timestamp() - k.heartbeat_at, k.heartbeat_at - clock_timestamp()) as silent
        from builder_score.worker_status as k
        where k.number <= s.workers
    ) as x
    order by x.silent desc
    limit 1
) as w on true
cross join lateral (
    select count(*) as workers_heard
    from builder_score.worker_status as k
    where k.number <= s.workers
      and k.heartbeat_at > clock_timestamp() - interval '2 minutes' and k.heartbeat_at <= clock_timestamp()
) as r
left join lateral (
    select x.last_error, x.last_error_at
    from builder_score.worker_status as x
    where x.last_error_at is not null
    order by x.last_error_at desc
    limit 1
) as e on true
left join builder_score.backfill as b on true;

comment on view builder_score.health is 'How the queue and its worker are: one row. Counts the queue, which takes a tenth of a second a million rows.';
comment on column builder_score.health.queue_depth is 'Rows in score_recalc_queue.';
comment on column builder_score.health.due_now is 'Of those, rows that could be taken now.';
comment on column builder_score.health.oldest_due_age is 'How long the oldest of these has been due.';
comment on column builder_score.health.dead_letters is 'Users given up after settings.max_attempts failures.';
comment on column builder_score.health.retrying is 'Users in backoff.';
comment on column builder_score.health.last_run_at is 'When the last run of the worker began that was not heard of for longest; null where the first one never ran.';
comment on column builder_score.health.heartbeat_age is 'Time since it last said that it is alive; about 5 s when idle.';
comment on column builder_score.health.workers is 'How many there are to be: settings.workers.';
comment on column builder_score.health.workers_heard is 'Of these, how many were heard of in the last two minutes.';
comment on column builder_score.health.scheduler is 'pg_cron, worker or none.';
comment on column builder_score.health.paused is 'Whether workers are told to leave.';
comment on column builder_score.health.paused_reason is 'Why.';
comment on column builder_score.health.attached is 'Whether triggers and views are in place.';
comment on column builder_score.health.cron_database is 'The other database whose pg_cron was told to run the worker; null: this one, or none.';
comment on column builder_score.health.backfill_seen is 'Users that the walk over everyone has seen; null when none is under way.';
comment on column builder_score.health.backfill_total is 'How many there are, by the planner''s statistics.';
comment on column builder_score.health.batches is 'Batches so far.';
comment on column builder_score.health.recalculated is 'Recalculations so far.';
comment on column builder_score.health.changed is 'Of those, scores that changed.';
comment on column builder_score.health.failed is 'Failures counted against a user so far.';
comment on column builder_score.health.recalculated_per_second is 'Recalculations a second, over this minute and the one before.';
comment on column builder_score.health.last_batch_at is 'End of the last batch that had work.';
comment on column builder_score.health.last_error is 'Last failure of a batch, with its SQLSTATE.';
comment on column builder_score.health.last_error_at is 'When.';
