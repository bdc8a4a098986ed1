-- The order of a batch, on which rests that no update is lost and no score is stale.
-- reads: everything          writes: users.builder_score and our own tables

create function builder_score.read_again(
    user_ids builder_score.user_id[],
    locked builder_score.user_id[],
    debounce_window interval,
    place integer,
    places integer,
    out ready builder_score.user_id[],
    out ready_states tid[],
    out ready_rows bigint[],
    out ready_row_users builder_score.user_id[],
    out early_rows bigint[],
    out early_row_users builder_score.user_id[],
    out early_due timestamptz[],
    out gone builder_score.user_id[],
    out gone_rows bigint[],
    out blocked builder_score.user_id[]
) returns record
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_bitmapscan = off
set enable_seqscan = off
as $function$
-- reads: score_recalc_queue, score_state, host_users
-- writes: nothing
-- A snapshot later than every lock: hence volatile. The rows are all that can be seen of these users, due or not.
declare
    v_all_ready boolean;
    v_fates text[];
    v_due timestamptz[];
begin
    with seen as materialized (
        -- one probe each, here and below: a plain join may scan the whole table for a batch
        select u.user_id, r.id, r.not_before, r.priority
        from unnest(read_again.user_ids) as u(user_id)
        cross join lateral (
            select q.id, q.not_before, q.priority
            from builder_score.score_recalc_queue as q
            where q.user_id = u.user_id
            offset 0
        ) as r
    ),
    candidate as (
        select s.user_id, min(s.not_before) as not_before, min(s.priority) = 0 as forced
        from seen as s
        group by s.user_id
        order by s.user_id      -- neighbours in the indexes one after the other, here and in compute()
    ),
    fate as materialized (
        select c.user_id, s.place, d.due,
               case when not coalesce(p.present, l.user_id is not null) then 'gone'
                    when l.user_id is null then 'blocked'
                    when d.due > clock_timestamp() then 'early'
                    else 'ready' end as fate
        from candidate as c
        left join unnest(read_again.locked) as l(user_id) on l.user_id = c.user_id
        left join lateral (
            select x.ctid as place, x.computed_at, x.retry_at from builder_score.score_state as x where x.user_id = c.user_id limit 1
        ) as s on true
        left join lateral (
            -- who is locked is there
            select true as present from builder_score.host_users as u where u.id = c.user_id and l.user_id is null limit 1
        ) as p on true
        cross join lateral (
            select greatest(
                c.not_before,
                -- a window that opened in the future: the clock was set back
                case when not c.forced and s.computed_at <= clock_timestamp() then s.computed_at + read_again.debounce_window end,
                s.retry_at
            ) as due
        ) as d
    )
    select r.row_ids, r.row_users, f.users, f.states, f.fates, f.due, f.all_ready
    into ready_rows, ready_row_users, ready, ready_states, v_fates, v_due, v_all_ready
    from (
        select coalesce(array_agg(s.id), '{}') as row_ids, coalesce(array_agg(s.user_id), '{}') as row_users
        from seen as s
    ) as r
    cross join (
        select coalesce(array_agg(f.user_id), '{}') as users, coalesce(array_agg(coalesce(f.place, '(0,0)')), '{}') as states,
               coalesce(array_agg(f.fate), '{}') as fates, coalesce(array_agg(f.due), '{}') as due,
               coalesce(bool_and(f.fate = 'ready'), true) as all_ready
        from fate as f
    ) as f;

    early_rows := '{}';
    early_row_users := '{}';
    early_due := '{}';
    gone := '{}';
    gone_rows := '{}';
    blocked := '{}';
    if v_all_ready then     -- as a rule
        return;
    end if;
    with fate as materialized (
        select f.user_id, f.place, f.fate, f.due
        from unnest(read_again.ready, read_again.ready_states, v_fates, v_due) as f(user_id, place, fate, due)
    ),
    rows_of as (
        select coalesce(array_agg(r.id) filter (where f.fate = 'ready'), '{}') as ready_rows,
               coalesce(array_agg(r.user_id) filter (where f.fate = 'ready'), '{}') as ready_row_users,
               coalesce(array_agg(r.id) filter (where f.fate = 'early'), '{}') as early_rows,
               coalesce(array_agg(r.user_id) filter (where f.fate = 'early'), '{}') as early_row_users,
               coalesce(array_agg(f.due) filter (where f.fate = 'early'), '{}') as early_due,
               coalesce(array_agg(r.id) filter (where f.fate = 'gone'), '{}') as gone_rows
        from unnest(read_again.ready_rows, read_again.ready_row_users) as r(id, user_id)
        join fate as f on f.user_id = r.user_id
    ),
    users_of as (
        select coalesce(array_agg(f.user_id) filter (where f.fate = 'ready'), '{}') as ready,
               coalesce(array_agg(f.place) filter (where f.fate = 'ready'), '{}') as ready_states,
               coalesce(array_agg(f.user_id) filter (where f.fate = 'gone'), '{}') as gone,
               -- one of another worker's share is that one's to put off, if it is not the one who holds it
               coalesce(array_agg(f.user_id) filter (
                   where f.fate = 'blocked' and builder_score.is_share(f.user_id, read_again.place, read_again.places)
               ), '{}') as blocked
        from fate as f
    )
    select r.*, u.*
    into ready_rows, ready_row_users, early_rows, early_row_users, early_due, gone_rows,
         ready, ready_states, gone, blocked
    from rows_of as r
    cross join users_of as u;
end
$function$;

comment on function builder_score.read_again(builder_score.user_id[], builder_score.user_id[], interval, integer, integer) is
    'After the users were locked: what is to become of each, and the queue rows that this settles. ready: to be computed now; '
    'early: not due yet; gone: no longer there; blocked: somebody else has them.';

create function builder_score.next_batch_size(size integer, took interval, target interval, more_is_due boolean, largest integer)
returns integer
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: nothing
begin
    return case
        when took > 1.5 * target then greatest(size / 2, 1)
        -- it doubles only where there was time for three
        when took < 0.75 * target and more_is_due then least(case when 3 * took < target then 2 * size else size + size / 4 + 1 end, largest)
        else size
    end;
end
$function$;

comment on function builder_score.next_batch_size(integer, interval, interval, boolean, integer) is
    'How many users the next batch is to have, where one of size took so long.';

create function builder_score.take_together(
    due builder_score.user_id[],
    first_of_them builder_score.user_id,
    turn_of_heavy boolean,
    nobody_else boolean,
    out user_ids builder_score.user_id[],
    out alone boolean,
    out heavy builder_score.user_id[]
) returns record
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: score_state
-- writes: nothing
-- Whoever takes as long as many others is alone in a batch, so that nobody is held with them. In their turn they come, and
-- then for as long it is the turn of the others, where there are any. user_ids: none where it is to be looked past heavy.
begin
    alone := false;
    user_ids := due;
    heavy := builder_score.heavy_users(due);
    if cardinality(heavy) = 0 then
        return;
    end if;
    user_ids := array(select d.id from unnest(due) as d(id) where d.id not in (select h.id from unnest(heavy) as h(id)));
    if first_of_them = any(heavy) and turn_of_heavy or cardinality(user_ids) = 0 and nobody_else then
        alone := true;
        user_ids := array[case when first_of_them = any(heavy) then first_of_them else heavy[1] end];
    end if;
end
$function$;

comment on function builder_score.take_together(builder_score.user_id[], builder_score.user_id, boolean, boolean) is
    'Which of the due users a batch takes: one who is heavy, alone, or those who are not.';

create function builder_score.run_batch(
    worker text default 'drain',
    inout memory builder_score.run_memory default null,
    out chosen integer,
    out recalculated integer,
    out changed integer,
    out failed integer,
    out resume_at timestamptz,
    out trouble text,
    out exhausted boolean,
    out in_full boolean
) returns record
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $function$
-- reads: settings, score_recalc_queue, score_state, host, host views
-- writes: users.builder_score, score_recalc_queue, score_state, score_dead_letter, backfill, host, worker_status, NOTIFY
-- For a batch of few people planning would take longer than all the rest. (write_scores() leaves the host's triggers
-- their plans.) What is planned while a table is empty is kept as it fills: so no scans.
-- chosen: how much it did something about (not: what is in the hands of another worker, which will finish it);
-- resume_at: when a throttled backfill goes on, null without one;
-- trouble: why it could do nothing at all
-- exhausted: whether it looked at all that was due, and not only at a batch's worth of it
-- in_full: whether that was without leaving out what memory says to be dead
-- memory: what the last batch of this run returned; null for the first one
declare
    v_began constant timestamptz := clock_timestamp();
    -- What the caller has written in this transaction may have deferred triggers of the caller's, which are not to run with
    -- our rights. Whoever has none yet has written nothing.
    v_own_transaction constant boolean := pg_current_xact_id_if_assigned() is null;
    v_settings builder_score.settings;
    v_window interval;
    v_number bigint;
    v_share record;
    v_since timestamptz[];
    v_marks constant timestamptz[] := memory.marks;
    v_looking interval := interval '0';
    v_look_began timestamptz;
    v_expanded record;
    v_chosen record;
    v_size integer;
    v_projects integer;
    v_until timestamptz;
    v_taken record;
    v_alone boolean;
    v_spared builder_score.user_id;     -- the first who was passed over for being heavy
    v_due builder_score.user_id[];
    v_locked builder_score.user_id[];
    v_passed_over builder_score.user_id[] := array[]::builder_score.user_id[];
    v_all boolean;
    v_unlocked builder_score.user_id[];
    v_held builder_score.user_id[] := array[]::builder_score.user_id[];     -- passed over beside people who are free
    v_seen record;
    v_seen_at timestamptz;
    v_scored record;
    v_error text;
    v_passes integer := 0;
    v_minute timestamptz;
begin
    select s.* into strict v_settings from builder_score.settings as s;
    -- in seconds: a window of a day is 24 hours also on the day that the clocks change
    v_window := make_interval(secs => extract(epoch from v_settings.debounce_window)::double precision);
    perform set_config('lock_timeout', format('%sms', greatest(1, floor(extract(epoch from v_settings.lock_timeout) * 1000))), true);
    -- Scores and queue rows are one transaction: what a crash takes back, it takes back whole, and it is done again.
    perform set_config('synchronous_commit', 'off', true);
    select w.batches into strict v_number from builder_score.worker_status as w where w.worker = run_batch.worker;

    select p.place, p.places into v_share from builder_score.take_place() as p;

    chosen := 0;
    recalculated := 0;
    changed := 0;
    failed := 0;
    exhausted := true;
    -- What is before the marks is looked at, too, as often as it takes no more than a twentieth of the time: with nothing
    -- dead in front of what is due, nearly always. Marks in the future are from before the clock was set back.
    if v_began < any(memory.marks) then
        memory.others_until := null;
    end if;
    in_full := coalesce(v_began not between memory.looked_at and memory.full_look_at or v_began < any(memory.marks), true);
    v_since := case when not in_full then memory.marks end;
    v_size := least(v_settings.batch_size, coalesce(memory.batch_size, v_settings.batch_size));
    v_projects := 20 * v_settings.batch_size;
    if memory.batch_size is not null then
        v_until := v_began + v_settings.batch_target;
        v_projects := 2 * v_size;
    end if;

    <<protected>>
    begin
        perform builder_score.keep_queue_ids_ahead();

        -- (a) choose: first all that stands for people, many at a time, so that one burst of events has become one
        -- set of users before any of them is computed
        perform builder_score.keep_statuses_change_past();
        if builder_score.clock_was_set_back() then
            chosen := builder_score.bring_forward(clock_timestamp() + builder_score.longest_delay(), 20 * v_settings.batch_size);
            -- A batch of its own, for it may hold rows that another worker is about to delete. What it could not take
            -- is in somebody's hands, and keeps nobody waiting.
            if chosen > 0 or not (select h.clock_set_back from builder_score.host as h) then
                chosen := chosen + 1;
                exhausted := false;
                exit protected;
            end if;
        end if;
        v_look_began := clock_timestamp();
        select e.* into v_expanded from builder_score.expand_projects(v_projects, v_since[4]) as e;
        v_looking := clock_timestamp() - v_look_began;
        if v_expanded.taken > 0 then    -- then most of it was no look: somebody's project may have many people
            v_looking := least(v_looking, v_settings.batch_target);
        end if;
        memory.marks := array[null, null, null, v_expanded.mark];
        chosen := chosen + v_expanded.taken;
        exhausted := v_expanded.taken < v_projects;
        -- Before anybody is locked, and every other time at most: projects may come as fast as they are taken.
        if clock_timestamp() > v_until and v_expanded.taken > 0 and v_number % 2 = 0 then
            exhausted := false;
            exit protected;
        end if;
        begin
            resume_at := builder_score.advance_backfill();
        exception when others then
            v_error := format('%s: %s', sqlstate, sqlerrm);    -- a walk that cannot go on does not keep events waiting
        end;
        loop
            v_look_began := clock_timestamp();
            select c.* into v_chosen
            from builder_score.choose_next(
                v_size, v_number, v_passed_over, v_since, v_share.place, v_share.places, v_settings.batch_target, memory) as c;
            memory := v_chosen.memory;
            if v_chosen.marks is null then
                in_full := false;
                memory.marks := v_marks[1:3] || memory.marks[4];
            elsif memory.marks[1] is null then      -- later looks pass people over
                memory.marks := v_chosen.marks || memory.marks[4];
                v_looking := v_looking + (clock_timestamp() - v_look_began);
                v_since := memory.marks[1:3] || v_since[4];     -- the dead rows were waded through
            end if;
            v_due := v_chosen.user_ids;
            v_all := v_chosen.all_of_them;
            exhausted := exhausted and v_all;
            if cardinality(v_due) = 0 then
                exit protected when v_spared is null;
                -- whole batches of those who are heavy, and nobody else: then it is their turn
                v_due := array[v_spared];
            end if;
            select t.* into v_taken
            from builder_score.take_together(
                v_due, v_chosen.first_of_them,
                v_began >= coalesce(memory.others_until, '-infinity'),
                v_all or cardinality(v_passed_over) >= 20 * v_settings.batch_size) as t;
            exhausted := exhausted and cardinality(v_taken.heavy) = 0;
            v_alone := v_taken.alone;
            if cardinality(v_taken.user_ids) = 0 then
                v_spared := coalesce(v_spared, v_taken.heavy[1]);
                v_passed_over := (v_passed_over || v_taken.heavy)::builder_score.user_id[];
                continue;
            end if;
            v_due := v_taken.user_ids;
            -- again: the project rows of a transaction that has committed since the first look, and whose people are chosen
            select e.* into v_expanded from builder_score.expand_projects(v_projects, v_since[4]) as e;
            memory.marks[4] := least(memory.marks[4], v_expanded.mark);
            chosen := chosen + v_expanded.taken;

            -- (b) lock, waiting for nobody
            v_locked := builder_score.lock_users(v_due);

            exit when v_all or cardinality(v_locked) = cardinality(v_due);
            -- A transaction of the application's that called recalculate() for a batch's worth of people, and is still
            -- open, holds them and their rows. They can be neither done nor put off, and are to keep nobody waiting;
            -- nor are they to leave the batch to the few beside them who are free. (Who is gone is held by nobody.)
            v_unlocked := array(
                select d.id
                from (select x.id from unnest(v_due) as x(id) except select l.id from unnest(v_locked) as l(id)) as d
                cross join lateral (select from builder_score.host_users as u where u.id = d.id limit 1) as present
            );
            exit when cardinality(v_unlocked) * 2 <= cardinality(v_due)
                or cardinality(v_held) >= 20 * v_settings.batch_size
                or cardinality(v_locked) = 0 and cardinality(v_held) = 0 and builder_score.has_free_row(
                    array(select d.id from unnest(v_due) as d(id) where builder_score.is_share(d.id, v_share.place, v_share.places)));
            if cardinality(v_locked) > 0 then
                v_held := (v_held || v_unlocked)::builder_score.user_id[];     -- what of theirs is free is put off below
            end if;
            v_passed_over := (v_passed_over || v_unlocked)::builder_score.user_id[];
        end loop;
        v_due := (v_due || v_held)::builder_score.user_id[];

        -- (c) re-read, in a new statement, whose snapshot is later than every lock
        v_seen_at := clock_timestamp();
        select r.* into v_seen
        from builder_score.read_again(v_due, v_locked, v_window, v_share.place, v_share.places) as r;

        -- (d) compute, (e) write, (f) delete exactly the rows seen in (c)
        if cardinality(v_seen.ready) > 0 then
            -- Where a trigger of the host's waits for an application that waits for one of our users, we let go before
            -- the application looks for a deadlock, which would be its end and not ours.
            select s.* into v_scored
            from builder_score.score_or_split(
                v_seen.ready, v_seen.ready_rows, v_seen.ready_row_users,
                clock_timestamp() + least(10 * v_settings.lock_timeout, current_setting('deadlock_timeout')::interval / 2),
                until => v_until, state_places => v_seen.ready_states, fire_deferred => v_own_transaction) as s;
            exhausted := exhausted and v_scored.put_off = 0;
            recalculated := v_scored.recalculated;
            changed := v_scored.changed;
            failed := v_scored.failed;
            v_passes := v_scored.passes;
            v_error := coalesce(v_scored.last_error, v_error);
        end if;

        -- (g) Who could not be taken. Rows of users whom we hold may make us wait for another worker that is
        -- putting them off; so what waits for nobody comes last, and no two workers wait for each other.
        if cardinality(v_seen.early_rows) > 0 then
            perform builder_score.defer_held_rows(v_seen.early_row_users, v_seen.early_due, v_seen.early_rows);
        end if;
        if cardinality(v_seen.gone) > 0 then
            perform builder_score.forget_users(v_seen.gone, v_seen_at);
            perform builder_score.delete_queue_rows(v_seen.gone_rows);
        end if;
        chosen := chosen + cardinality(v_seen.ready) + cardinality(v_seen.early_rows) + cardinality(v_seen.gone);
        if cardinality(v_seen.blocked) > 0 then
            chosen := chosen + builder_score.defer_blocked_users(v_seen.blocked);
        end if;
    exception when others then
        -- A lock on a whole table, a full disk: nobody's fault, nothing done; look again after a nap.
        if builder_score.is_users_fault(sqlstate) then
            raise;
        end if;
        chosen := 0;
        recalculated := 0;
        changed := 0;
        failed := 0;
        resume_at := null;
        trouble := format('%s: %s', sqlstate, sqlerrm);
        v_error := trouble;
    end protected;

    if v_alone and recalculated > 0 then
        memory.others_until := clock_timestamp() + (clock_timestamp() - v_began);
    elsif memory.batch_size is not null and recalculated > 0 then
        memory.batch_size := builder_score.next_batch_size(
            v_size, clock_timestamp() - v_began, v_settings.batch_target, not v_all, v_settings.batch_size);
    end if;
    if in_full then
        memory.looked_at := clock_timestamp();
        -- Ten seconds at most: that is how long something committed late may wait, whatever the clock did meanwhile.
        memory.full_look_at := memory.looked_at + least(20 * v_looking, interval '10 seconds');
    end if;
    if memory.marks[1] is null then
        memory.full_look_at := null;    -- it did not come to look
    end if;
    if clock_timestamp() < v_began then
        perform builder_score.note_clock_set_back();    -- meanwhile: what was put off above was put off by the old one
    end if;
    if chosen > 0 or v_error is not null then
        v_minute := date_trunc('minute', clock_timestamp());
        begin
            update builder_score.worker_status as w
            set backend_pid = pg_backend_pid(),
                heartbeat_at = clock_timestamp(),
                batches = w.batches + 1,
                passes = w.passes + v_passes,
                recalculated = w.recalculated + run_batch.recalculated,
                changed = w.changed + run_batch.changed,
                failed = w.failed + run_batch.failed,
                minute = v_minute,
                minute_recalculated = run_batch.recalculated + case when w.minute = v_minute then w.minute_recalculated else 0 end,
                minute_before_recalculated = case w.minute
                    when v_minute then w.minute_before_recalculated
                    when v_minute - interval '1 minute' then w.minute_recalculated
                    else 0 end,
                last_batch_at = clock_timestamp(),
                last_batch_seconds = extract(epoch from clock_timestamp() - v_began),
                -- it only grows, also when the clock was set back meanwhile
                batch_seconds = w.batch_seconds + greatest(extract(epoch from clock_timestamp() - v_began), 0),
                last_error = coalesce(v_error, w.last_error),
                last_error_at = case when v_error is null then w.last_error_at else clock_timestamp() end
            where w.worker = run_batch.worker;
        exception when lock_not_available then
            null;   -- somebody's open transaction has the row, longer than another drain() would: the scores are worth more than a note of them
        end;
    end if;
    if v_number % 8 = 0 then
        perform builder_score.tidy_score_counts();
    end if;
    -- COMMIT may queue behind another session's NOTIFY.
    perform set_config('lock_timeout', '1s', true);
end
$function$;

comment on function builder_score.run_batch(text, builder_score.run_memory) is
    'One batch: choose due users, lock, re-read, compute, write, delete the rows seen. The caller commits.';
