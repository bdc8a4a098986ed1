-- The loops around a batch. Procedures that commit cannot pin a search_path, so every name here is qualified
-- and everything that uses an operator is a function that can.
-- reads: settings, host          writes: worker_status, and what run_batch() writes

create function builder_score.run_by() returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: pg_stat_activity
-- writes: nothing
-- SECURITY INVOKER: what kind a backend is is shown to its own role. Over a connection pg_cron has that name.
    select case when a.backend_type = 'pg_cron' then a.backend_type else current_setting('application_name') end
    from pg_stat_activity as a
    where a.pid = pg_backend_pid();
$function$;

comment on function builder_score.run_by() is 'What this session belongs to: pg_cron, or its application_name.';

create function builder_score.worker_name(number integer) returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: nothing
begin
    if number is null or number not between 1 and 16 then
        raise exception 'there is no worker number %', coalesce(number::text, 'null')
            using errcode = 'invalid_parameter_value',
                  detail = 'Expected 1 to 16: as many as settings.workers says run side by side.',
                  hint = 'CALL builder_score.run_worker(null, 2);';
    end if;
    return case number when 1 then 'resident' else 'resident-' || number end;
end
$function$;

comment on function builder_score.worker_name(integer) is 'The row of worker_status of a resident worker.';

create function builder_score.worker_lock(number integer) returns integer
language sql immutable parallel safe
return case number when 1 then 0 else 200 + number end;

comment on function builder_score.worker_lock(integer) is 'Second key of the advisory lock that keeps runs of one worker apart; the first is 1651271539.';

create function builder_score.is_wanted(worker text) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: settings
-- writes: nothing
begin
    return coalesce(builder_score.worker_number(worker) <= (select s.workers from builder_score.settings as s), true);
end
$function$;

comment on function builder_score.is_wanted(text) is 'Whether settings.workers has room for a worker; for drain() it always has.';

create function builder_score.begin_run(worker text, run_by text default null) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: settings, what clock_was_set_back() reads
-- writes: worker_status, host
-- returns: false when paused, or where settings.workers has no room for it
begin
    if (select s.paused from builder_score.settings as s) then
        raise notice 'builder_score is paused: nothing is processed'
            using detail = coalesce((select 'Reason: ' || s.paused_reason from builder_score.settings as s), 'No reason was given.'),
                  hint = 'UPDATE builder_score.settings SET paused = false;';
        return false;
    end if;
    perform set_config('synchronous_commit', 'off', true);
    if not builder_score.is_wanted(begin_run.worker) then
        raise notice 'builder_score has fewer workers: % has nothing to do', begin_run.worker
            using hint = 'UPDATE builder_score.settings SET workers = ...; or SELECT * FROM builder_score.schedule(); to be rid of its job.';
        return false;
    end if;
    perform builder_score.clock_was_set_back();     -- before the heartbeat that tells it is written anew
    -- while a restore is under way there is no key yet that it could conflict with
    insert into builder_score.worker_status (worker)
    select begin_run.worker
    where not exists (select from builder_score.worker_status as w where w.worker = begin_run.worker)
    on conflict do nothing;
    -- not waiting, here and below, for a transaction of somebody's that is open
    update builder_score.worker_status as w
    set backend_pid = pg_backend_pid(), started_at = clock_timestamp(), heartbeat_at = clock_timestamp(), run_by = begin_run.run_by
    where w.worker = any(array(select k.worker from builder_score.worker_status as k where k.worker = begin_run.worker for update skip locked));
    return true;
end
$function$;

comment on function builder_score.begin_run(text, text) is 'Notes that a worker starts, and what called it. False when paused, or above settings.workers.';

create function builder_score.beat(worker text, every interval default '5 seconds') returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: worker_status
-- writes: worker_status
begin
    if exists (
        select from builder_score.worker_status as w
        where w.worker = beat.worker
          -- one from the future is from before the clock was set back, here and wherever it is looked at
          and w.heartbeat_at > clock_timestamp() - beat.every and w.heartbeat_at <= clock_timestamp()
    ) then
        return;     -- an idle worker writes now and then, not at every look
    end if;
    perform set_config('synchronous_commit', 'off', true);
    update builder_score.worker_status as w
    set heartbeat_at = clock_timestamp(), backend_pid = pg_backend_pid()
    where w.worker = any(array(select k.worker from builder_score.worker_status as k where k.worker = beat.worker for update skip locked));
end
$function$;

comment on function builder_score.beat(text, interval) is 'Heartbeat of a worker that found nothing to do.';

create function builder_score.is_alive(worker text) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: worker_status
-- writes: nothing
begin
    return exists (
        select from builder_score.worker_status as w
        where w.worker = is_alive.worker
          and w.heartbeat_at > clock_timestamp() - interval '30 seconds' and w.heartbeat_at <= clock_timestamp()
    );
end
$function$;

comment on function builder_score.is_alive(text) is 'Whether a worker was heard of in the last 30 seconds; an idle one beats every 5.';

create function builder_score.may_go_on() returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: settings, host
-- writes: nothing
begin
    return (select not s.paused from builder_score.settings as s)
       and (select h.attached_at is not null from builder_score.host as h);
exception when undefined_table or insufficient_privilege then
    return false;   -- uninstalled while we waited for the lock of whoever does it
end
$function$;

comment on function builder_score.may_go_on() is 'The stop flag that a running worker looks at each round: paused, or detached.';

create function builder_score.nap_seconds(idle_rounds integer, resume_at timestamptz) returns double precision
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: settings
-- writes: nothing
-- 20 ms after work, then half as long again each round, up to poll_interval (a second at most: a sleeping
-- backend holds back vacuum). A throttled backfill is woken for.
begin
    return (
        select greatest(0.001, least(
            extract(epoch from s.poll_interval),
            0.02 * power(1.5, least(idle_rounds, 20)),
            case when resume_at is not null then greatest(0, extract(epoch from resume_at - clock_timestamp())) end
        ))
        from builder_score.settings as s
    );
end
$function$;

comment on function builder_score.nap_seconds(integer, timestamptz) is 'How long a worker that found nothing sleeps.';

create function builder_score.run_deadline(max_runtime interval) returns timestamptz
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: nothing
declare
    v_now constant timestamptz := clock_timestamp();
    v_deadline timestamptz;
    v_timeout constant interval := current_setting('statement_timeout')::interval;
begin
    if max_runtime < interval '0 seconds' then
        raise exception 'max_runtime % is negative', max_runtime
            using errcode = 'invalid_parameter_value',
                  detail = 'Expected an interval of zero or more, or null for "until the next minute".',
                  hint = 'CALL builder_score.run_worker(''55 seconds'');';
    end if;
    -- A scheduler that starts a run each minute queues the next tick while this run is still going and starts
    -- it the moment this one ends. Ending just before the tick would leave a gap of seconds.
    v_deadline := coalesce(
        v_now + max_runtime,
        date_trunc('minute', v_now) + interval '1 minute 0.2 seconds'
    );
    -- statement_timeout covers the whole CALL, whatever it commits: leave before it strikes.
    if v_timeout > interval '0 seconds' then
        v_deadline := least(v_deadline, v_now + v_timeout * 0.8);
    end if;
    return v_deadline;
end
$function$;

comment on function builder_score.run_deadline(interval) is
    'When a run ends: after max_runtime, or, when that is null, 0.2 s into the next minute, but before statement_timeout.';

create function builder_score.housekeeping() returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: host
-- writes: host, backfill, score_counts
begin
    perform builder_score.tidy_score_counts();
    -- or in the future, when the clock was set back: what was computed meanwhile has too great an age
    if (select h.refreshed_at < clock_timestamp() - interval '1 day' or h.refreshed_at > clock_timestamp() from builder_score.host as h) then
        perform builder_score.refresh_ages();
    end if;
    if builder_score.claim_repair_of_score_counts() and builder_score.tidy_score_counts(repair => true) then
        update builder_score.host set counted_at = clock_timestamp(), count_tried_at = null;
    end if;
end
$function$;

comment on function builder_score.housekeeping() is
    'Sum score_counts up; once a day begin the walk that refreshes ageing accounts, and compare score_counts with score_state.';

create function builder_score.purge_job_runs(keep interval default '7 days') returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: cron.job (pg_cron, where it is)
-- writes: cron.job_run_details: our own job's rows only
-- The caller is the job's role: pg_cron shows each role its own jobs.
declare
    v_count bigint;
begin
    if not exists (select from pg_extension where extname = 'pg_cron') or not has_schema_privilege('cron', 'usage') then
        return 0;
    end if;
    execute $purge$
        delete from cron.job_run_details as d
        using cron.job as j
        where d.jobid = j.jobid
          and j.jobname ~ '^builder-score-worker(-[0-9]{1,2})?(-at-start)?(@|$)'
          and j.database = current_database()
          and d.end_time < clock_timestamp() - $1
    $purge$ using keep;
    get diagnostics v_count = row_count;
    return v_count;
end
$function$;

comment on function builder_score.purge_job_runs(interval) is
    'pg_cron keeps a row of every run for ever: removes those of our own job that are older than keep.';

create function builder_score.seems_idle(memory builder_score.run_memory) returns boolean
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_bitmapscan = off
set enable_seqscan = off
as $function$
-- reads: score_recalc_queue, backfill
-- writes: nothing
-- A tenth of a whole round's cost, so that an idle worker can look often. From the start, too, unless that took long.
declare
    v_now constant timestamptz := clock_timestamp();
    v_since timestamptz[];
begin
    if (v_now between memory.round_at - interval '1 second' and memory.round_at) is not true then
        return false;
    end if;
    if v_now between memory.looked_at and memory.full_look_at then
        v_since := memory.marks;
    elsif memory.full_look_at > memory.looked_at + interval '0.1 seconds' then
        return false;
    end if;
    return not exists (
            select
            from (values (0::smallint, v_since[1]), (10::smallint, v_since[2]), (20::smallint, v_since[3])) as p(priority, since)
            cross join lateral (
                select from builder_score.score_recalc_queue as q
                where q.priority = p.priority
                  and q.not_before <= v_now
                  and q.not_before >= coalesce(p.since, '-infinity')
                  and q.user_id is not null
                limit 1
            ) as due)
       and not exists (
            select from builder_score.score_recalc_queue as q
            where q.project_id is not null and q.not_before <= v_now and q.not_before >= coalesce(v_since[4], '-infinity'))
       and not exists (
            select from builder_score.score_recalc_queue as q
            where q.user_id is null and q.project_id is null and q.not_before <= v_now)
       and not exists (select from builder_score.backfill);
end
$function$;

comment on function builder_score.seems_idle(builder_score.run_memory) is
    'Whether a look at where work arrives finds none. Never for longer than a second: whatever else a round does is done then.';

create function builder_score.run_round(
    worker text,
    idle_rounds integer,
    deadline timestamptz,
    inout memory builder_score.run_memory default null,
    out chosen integer,
    out resume_at timestamptz,
    out trouble text,
    out exhausted boolean,
    out in_full boolean,
    out nap double precision
) returns record
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set row_security = on
as $function$
-- reads: what run_batch() reads
-- writes: what run_batch() writes, and backfill
-- row_security: switched off for the role that calls, it would be an error to read through our policies.
declare
    v_batch record;
begin
    if not builder_score.may_go_on() or not builder_score.is_wanted(worker) then
        -- raised, not returned: this function itself may have been dropped while it waited for the answer
        raise exception 'builder_score: paused, detached or fewer workers' using errcode = 'BS001';
    end if;
    if worker <> 'drain' and builder_score.seems_idle(memory) then
        chosen := 0;
        exhausted := true;
        in_full := false;
        nap := builder_score.nap_seconds(idle_rounds, deadline);
        return;
    end if;
    select b.* into v_batch from builder_score.run_batch(worker, memory) as b;
    memory := v_batch.memory;
    chosen := v_batch.chosen;
    resume_at := v_batch.resume_at;
    trouble := v_batch.trouble;
    exhausted := v_batch.exhausted;
    in_full := v_batch.in_full;
    if chosen = 0 and worker <> 'drain' then
        perform builder_score.beat(worker);
        if worker = 'resident' or not builder_score.is_alive('resident') then
            perform builder_score.housekeeping();
        end if;
        memory.round_at := clock_timestamp() + interval '1 second';
    end if;
    nap := builder_score.nap_seconds(idle_rounds, least(resume_at, deadline));
end
$function$;

comment on function builder_score.run_round(text, integer, timestamptz, builder_score.run_memory) is
    'One round of a worker''s loop: look at the stop flag (BS001: stop), run a batch, and when that found nothing beat and keep '
    'house. nap: seconds to sleep when nothing was found.';

create procedure builder_score.drain()
language plpgsql
as $procedure$
-- reads: what run_round() reads
-- writes: what run_round() writes
declare
    v_round record;
    v_memory builder_score.run_memory;
    v_looks integer := 0;
begin
    -- COMMIT directly before each SET TRANSACTION: even an IF takes a snapshot when it is first planned.
    -- The first one ends the transaction of the call itself, which may be at any isolation level; in a
    -- transaction block of the caller's it raises 2D000, before anything was done.
    commit;
    set transaction isolation level read committed, read write;
    if not builder_score.begin_run('drain') then
        return;
    end if;
    v_memory.batch_size := 50;      -- to begin with
    loop
        commit;
        set transaction isolation level read committed, read write;
        begin
            v_round := builder_score.run_round('drain', 20, null, v_memory);
        exception
            when sqlstate 'BS001' then
                exit;
            when undefined_table or undefined_function or invalid_schema_name or insufficient_privilege or internal_error then
                -- detached or uninstalled while we slept, or waited for the lock of whoever does it; else an error
                exit when pg_catalog.to_regprocedure('builder_score.may_go_on()') is null;
                exit when not builder_score.may_go_on();
                raise;
        end;
        commit;
        if v_round.trouble is not null then
            raise warning 'builder_score: nothing is processed: %', v_round.trouble
                using hint = 'Nothing is lost; CALL builder_score.drain() again.';
        end if;
        v_memory := v_round.memory;
        -- Not until nothing is due: on a busy host there is always something, if only to be put off. Two looks in a row
        -- that took in all there was have seen what was due at the start.
        v_looks := case when v_round.exhausted and v_round.in_full then v_looks operator(pg_catalog.+) 1 else 0 end;
        exit when v_round.resume_at is null and v_round.in_full
            and (v_round.chosen operator(pg_catalog.=) 0 or v_looks operator(pg_catalog.>=) 2);
        if v_round.resume_at is null and (v_round.exhausted or v_round.chosen operator(pg_catalog.=) 0) then
            v_memory.full_look_at := null;      -- it seems to be the end, and is to be seen
        elsif v_round.chosen operator(pg_catalog.=) 0 then
            perform pg_catalog.pg_sleep(v_round.nap);
        end if;
    end loop;
end
$procedure$;

comment on procedure builder_score.drain() is
    'Process what is due now, a backfill that is under way included, one commit a batch, and return. CALL it outside a transaction block.';

create procedure builder_score.run_worker(max_runtime interval default null, number integer default 1)
language plpgsql
as $procedure$
-- reads: what run_round() reads
-- writes: what run_round() writes
declare
    v_deadline timestamptz;
    v_before timestamptz;
    v_now timestamptz;
    v_round record;
    v_memory builder_score.run_memory;
    v_idle integer;
    v_tries integer;
    v_started boolean;
    v_worker text;
    v_lock integer;
    v_locked boolean := true;
    v_session_name constant text := pg_catalog.current_setting('application_name');
begin
    commit;
    set transaction isolation level read committed, read write;
    v_worker := builder_score.worker_name(number);
    v_lock := builder_score.worker_lock(number);
    v_deadline := builder_score.run_deadline(max_runtime);

    -- One run of each worker at a time. The run that holds the lock may be about to end (it outlives the minute
    -- by 0.2 s), so two seconds' patience; then leave quietly.
    v_tries := 0;
    while not pg_catalog.pg_try_advisory_lock(1651271539, v_lock) loop
        v_tries := v_tries operator(pg_catalog.+) 1;
        if v_tries operator(pg_catalog.>) 40 then
            -- unless that run is long dead and only its session keeps the lock; two workers do no harm
            if not builder_score.is_alive(v_worker) then
                v_locked := false;
                exit;
            end if;
            return;
        end if;
        if pg_catalog.clock_timestamp() operator(pg_catalog.>=) v_deadline then
            return;
        end if;
        commit;
        perform pg_catalog.pg_sleep(0.05);
        commit;
        set transaction isolation level read committed, read write;
        if pg_catalog.to_regprocedure('builder_score.is_alive(text)') is null then
            return;     -- uninstalled meanwhile
        end if;
    end loop;

    begin
        v_started := builder_score.begin_run(v_worker, builder_score.run_by());
        if v_started then
            perform builder_score.housekeeping();
            perform builder_score.purge_job_runs();
        end if;
    exception
        when undefined_table or undefined_function or invalid_schema_name or insufficient_privilege or internal_error then
            -- as in the loop below: the run that we waited for may have ended because we are being uninstalled;
            -- a function that is dropped as it is looked up is an internal error
            if pg_catalog.to_regprocedure('builder_score.may_go_on()') is not null then
                if builder_score.may_go_on() then
                    raise;
                end if;
            end if;
            v_started := false;
    end;
    if not v_started then
        if v_locked then
            perform pg_catalog.pg_advisory_unlock(1651271539, v_lock);
        end if;
        return;
    end if;

    -- So that monitoring tells the one long statement that is to be seen here from those that are not.
    perform pg_catalog.set_config('application_name', 'builder-score-worker', false);

    v_memory.batch_size := 50;      -- to begin with
    -- Where nobody who is heavy can be done before statement_timeout ends the run, the others still are.
    v_memory.others_until := pg_catalog.clock_timestamp() operator(pg_catalog.+) '1 second'::pg_catalog.interval;
    v_idle := 0;
    v_before := pg_catalog.clock_timestamp();
    loop
        commit;
        set transaction isolation level read committed, read write;
        begin
            v_round := builder_score.run_round(v_worker, v_idle, v_deadline, v_memory);
        exception
            when sqlstate 'BS001' then
                exit;
            when undefined_table or undefined_function or invalid_schema_name or insufficient_privilege or internal_error then
                -- detached or uninstalled while we slept, or waited for the lock of whoever does it; else an error
                exit when pg_catalog.to_regprocedure('builder_score.may_go_on()') is null;
                exit when not builder_score.may_go_on();
                raise;
        end;
        commit;
        v_memory := v_round.memory;
        v_now := pg_catalog.clock_timestamp();
        if v_now operator(pg_catalog.<) v_before then
            v_deadline := builder_score.run_deadline(max_runtime);      -- the clock was set back
        end if;
        v_before := v_now;
        exit when v_now operator(pg_catalog.>=) v_deadline;
        if v_round.chosen operator(pg_catalog.>) 0 then
            v_idle := 0;
        else
            perform pg_catalog.pg_sleep(v_round.nap);
            v_idle := v_idle operator(pg_catalog.+) 1;
        end if;
    end loop;
    perform pg_catalog.set_config('application_name', v_session_name, false);
    if v_locked then
        perform pg_catalog.pg_advisory_unlock(1651271539, v_lock);
    end if;
end
$procedure$;

comment on procedure builder_score.run_worker(interval, integer) is
    'A resident worker, the first or another of settings.workers: drain, nap, drain again, until max_runtime (null: 0.2 s into the next minute, for pg_cron). '
    'Leaves quietly when another run of the same number goes on, above settings.workers, when paused, and when uninstalled.';
