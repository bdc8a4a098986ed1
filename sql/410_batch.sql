-- One batch: choose, lock, re-read, compute, write, delete. Each part a function; run_batch() is the order.
-- reads: everything          writes: users.builder_score and our own tables

create function builder_score.choose_due(
    batch_size integer,
    batch_number bigint,
    passed_over builder_score.user_id[],
    since timestamptz[] default null,
    place integer default 0,
    places integer default 1,
    out user_ids builder_score.user_id[],
    out first_of_them builder_score.user_id,
    out all_of_them boolean,
    out marks timestamptz[],
    out priority smallint
) returns record
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_bitmapscan = off
set enable_seqscan = off
as $function$
-- reads: score_recalc_queue
-- writes: nothing
-- since: where to begin looking, by priority (null: with the oldest)
-- all_of_them: whether no due row behind that was left out
-- marks: where the next look may begin, by priority
-- priority: of all who are not taken for their age alone; null where it is not the same
-- In the index's order, up to the limit: without statistics the planner would fetch the whole backlog, and sort it.
-- Beside other workers half as much again as all of them take, and of that first our share. Who is ahead of the others
-- takes of theirs what they would come to last.
declare
    v_now constant timestamptz := clock_timestamp();
    -- Every tenth place goes to the oldest due row of any priority, and every hundredth to that of any worker's share.
    -- Counted over batches, so that it also holds when a batch has fewer than ten places.
    v_oldest constant integer := div((batch_number + 1) * batch_size, 10) - div(batch_number * batch_size, 10);
    v_window constant integer := case places when 1 then batch_size else (places * batch_size * 3 + 1) / 2 end;
begin
    with due as (
        select q.*, builder_score.is_share(q.user_id, place, places) as ours
        from (values (0::smallint, since[1]), (10::smallint, since[2]), (20::smallint, since[3])) as p(priority, since)
        cross join lateral (
            select q.id, q.user_id, q.priority, q.not_before
            from builder_score.score_recalc_queue as q
            where q.priority = p.priority
              and q.not_before <= v_now
              and q.not_before >= coalesce(p.since, '-infinity')
              and q.user_id is not null
              and q.user_id not in (select p.id from unnest(passed_over) as p(id))     -- hashed, which <> all() is not
            order by q.not_before
            limit v_window
        ) as q
    ),
    chosen as (
        select d.user_id, d.priority, d.not_before, d.among_oldest
        from (
            select due.*,
                   row_number() over (order by due.ours or batch_number % 10 = 9 desc, due.not_before) <= v_oldest as among_oldest
            from due
        ) as d
        order by d.among_oldest desc, d.priority, d.ours desc, case when d.ours then d.not_before end, d.not_before desc
        limit batch_size
    )
    select coalesce(array_agg(distinct c.user_id), '{}'),
           -- by turns the oldest of the best priority and the oldest of all, so that neither keeps the other waiting
           (select f.user_id from chosen as f order by case when batch_number % 2 = 0 then f.priority end, f.not_before limit 1),
           count(*) < batch_size,
           -- Before the first that is there all is dead. Where there is none, a second is left to transactions that have
           -- appended and not yet committed; longer ones are found by the next look at everything.
           (select array_agg(coalesce(m.first, v_now - interval '1 second') order by m.priority)
            from (select p.priority, min(d.not_before) as first
                  from (values (0), (10), (20)) as p(priority) left join due as d on d.priority = p.priority
                  group by p.priority) as m),
           case when min(c.priority) filter (where not c.among_oldest) = max(c.priority) filter (where not c.among_oldest)
                then max(c.priority) filter (where not c.among_oldest) end
    into user_ids, first_of_them, all_of_them, marks, priority
    from chosen as c;
end
$function$;

comment on function builder_score.choose_due(integer, bigint, builder_score.user_id[], timestamptz[], integer, integer) is
    'The due users a batch looks at, but those passed over: by priority, then our share, then age, with every tenth place for the oldest '
    'of any priority.';

create function builder_score.choose_next(
    batch_size integer,
    batch_number bigint,
    passed_over builder_score.user_id[],
    since timestamptz[],
    place integer,
    places integer,
    batch_target interval,
    inout memory builder_score.run_memory,
    out user_ids builder_score.user_id[],
    out first_of_them builder_score.user_id,
    out all_of_them boolean,
    out marks timestamptz[]
) returns record
language plpgsql stable
set search_path = pg_catalog, pg_temp
set jit = off
set enable_bitmapscan = off
set enable_seqscan = off
as $function$
-- reads: score_recalc_queue
-- writes: nothing
-- While more of one priority is due than a batch takes, eight batches are chosen at once and taken in the order of ids: what each
-- of them reads and writes lies closer together then. The next eight go on where these ended, so that nobody's id keeps them
-- waiting; and when a better priority comes, or they took too long, it is chosen anew: nobody is lost, their rows are still there.
-- marks: null where nothing was looked for, because there were some ahead
declare
    v_now constant timestamptz := clock_timestamp();
    v_batches constant integer := 8;
    v_may_sweep constant boolean := cardinality(passed_over) = 0 and memory.batch_size is not null;
    v_chosen record;
begin
    if v_may_sweep and v_now between memory.ahead_since and memory.ahead_since + v_batches * batch_target and cardinality(memory.ahead) > 0
       and not exists (
           select
           from (values (0::smallint), (10::smallint)) as p(priority)
           cross join lateral (
               select from builder_score.score_recalc_queue as q
               where q.priority = p.priority
                 and q.not_before > memory.ahead_since
                 and q.not_before <= v_now
                 and q.user_id is not null
               limit 1
           ) as better
           where p.priority < memory.ahead_priority)
    then
        -- there may be more workers, or fewer, than when they were chosen
        user_ids := array(select u.id from unnest(memory.ahead[:batch_size]) as u(id) where builder_score.is_share(u.id, place, places) order by u.id);
        all_of_them := false;
        memory.swept_to := memory.ahead[least(batch_size, cardinality(memory.ahead))];
        memory.ahead := memory.ahead[batch_size + 1:];
        if cardinality(user_ids) > 0 then
            return;
        end if;
    end if;

    memory.ahead := null;
    if v_may_sweep and memory.swept_to is not null then
        select c.* into v_chosen
        from builder_score.choose_due(v_batches * batch_size, batch_number, passed_over, since, place, places) as c;
        -- our share alone, beside others: who sweeps through theirs would meet them all the way
        user_ids := array(
            select u.id
            from unnest(v_chosen.user_ids) as u(id)
            where builder_score.is_share(u.id, place, places)
            order by u.id <= memory.swept_to, u.id
        );
        if cardinality(user_ids) > batch_size and v_chosen.priority is not null then
            first_of_them := v_chosen.first_of_them;    -- whose turn it is, wherever they are
            user_ids := array_remove(user_ids, first_of_them);
            memory.ahead := user_ids[batch_size:];
            memory.ahead_since := v_now;
            memory.ahead_priority := v_chosen.priority;
            memory.swept_to := coalesce(user_ids[batch_size - 1], memory.swept_to);
            user_ids := user_ids[:batch_size - 1] || first_of_them;
            all_of_them := false;
            marks := v_chosen.marks;
            return;
        end if;
    end if;
    select c.* into v_chosen
    from builder_score.choose_due(batch_size, batch_number, passed_over, since, place, places) as c;
    user_ids := v_chosen.user_ids;
    first_of_them := v_chosen.first_of_them;
    all_of_them := v_chosen.all_of_them;
    marks := v_chosen.marks;
    if v_may_sweep then
        -- Not again directly after it came to nothing: with a better priority in every batch it would be chosen twice each time.
        memory.swept_to := case when not all_of_them and memory.swept_to is null then user_ids[cardinality(user_ids)] end;
    end if;
end
$function$;

comment on function builder_score.choose_next(integer, bigint, builder_score.user_id[], timestamptz[], integer, integer, interval, builder_score.run_memory) is
    'The due users a batch looks at: as choose_due() has them, and in a crowd by neighbours, of eight batches that were chosen at once.';

create function builder_score.lock_users(user_ids builder_score.user_id[]) returns builder_score.user_id[]
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $function$
-- reads: host_users
-- writes: row locks on the host's users
-- One probe a user: left alone, the planner prefers a scan of up to a hundred thousand users.
declare
    v_timeout constant text := current_setting('lock_timeout');
    v_locked builder_score.user_id[];
    v_tries integer := 0;
begin
    perform from builder_score.host_users as u where false for no key update;   -- the table's own lock, as long as that takes
    -- SKIP LOCKED goes by the version of a row that it sees. Where that one's writer commits at this very moment it
    -- follows the row, and waits for whoever writes the next version: then we look again, at versions as they are now.
    perform set_config('lock_timeout', '1ms', true);
    loop
        begin
            select coalesce(array_agg(l.id), '{}') into v_locked
            from (
                select u.id::builder_score.user_id as id
                from builder_score.host_users as u
                where u.id = any(lock_users.user_ids)
                for no key update skip locked
            ) as l;
            exit;
        exception when lock_not_available then
            v_tries := v_tries + 1;
            if v_tries = 5 then
                raise;
            end if;
        end;
    end loop;
    perform set_config('lock_timeout', v_timeout, true);
    return v_locked;
end
$function$;

comment on function builder_score.lock_users(builder_score.user_id[]) is
    'Locks those of the users whom nobody else holds, and says whom. Waits for nobody; lets the host insert projects.';

create function builder_score.has_free_row(user_ids builder_score.user_id[]) returns boolean
language sql security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $function$
-- reads: score_recalc_queue
-- writes: a row lock on score_recalc_queue
-- One probe a user: for the first of any the planner would scan the whole queue.
    select exists (
        select
        from unnest(has_free_row.user_ids) as u(user_id)
        cross join lateral (
            select from builder_score.score_recalc_queue as q
            where q.user_id = u.user_id and q.not_before <= clock_timestamp()
            limit 1
            for update skip locked
        ) as r
    );
$function$;

comment on function builder_score.has_free_row(builder_score.user_id[]) is
    'Whether any due queue row of these users is in nobody''s hands. For whoever holds none of these users, and so is about to wait for nobody.';

create function builder_score.write_scores(user_ids builder_score.user_id[], scores numeric[]) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
set plan_cache_mode = auto
as $function$
-- reads: host
-- writes: users.builder_score
-- One probe a user, as in lock_users().
declare
    v_search_path constant text := current_setting('search_path');
    v_written bigint;
begin
    -- The host's own triggers on users may use unqualified names: they get the host's search_path, and this
    -- one statement, which is analysed under it, names even its operator's schema.
    -- Known to the trigger builder_score_overwritten. The depth tells our write from one that a trigger of the
    -- host's makes meanwhile.
    perform set_config('builder_score.writing', pg_trigger_depth()::text, true);
    perform set_config('search_path', (select h.search_path || ', pg_temp' from builder_score.host as h), true);
    update builder_score.host_users as u
    set builder_score = w.score
    from rows from (pg_catalog.unnest(user_ids), pg_catalog.unnest(scores)) as w(id, score)
    where u.id operator(pg_catalog.=) w.id;
    get diagnostics v_written = row_count;
    perform pg_catalog.set_config('search_path', v_search_path, true);
    perform set_config('builder_score.writing', '', true);

    if v_written <> cardinality(user_ids) then
        raise exception 'users.builder_score was not written for % of % users', cardinality(user_ids) - v_written, cardinality(user_ids)
            using errcode = 'triggered_action_exception',
                  detail = 'A trigger, rule or policy of the host''s on users discarded the write.',
                  hint = 'Let it pass updates of builder_score by the role that owns the schema builder_score.';
    end if;
end
$function$;

comment on function builder_score.write_scores(builder_score.user_id[], numeric[]) is
    'The one place that writes users.builder_score. The rows are locked by the caller.';

create function builder_score.fire_deferred_triggers() returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = auto
set enable_seqscan = on
as $function$
-- reads: host
-- writes: what the host's deferred triggers write
declare
    v_search_path constant text := current_setting('search_path');
begin
    perform set_config('search_path', (select h.search_path || ', pg_temp' from builder_score.host as h), true);
    set constraints all immediate;
    perform pg_catalog.set_config('search_path', v_search_path, true);
end
$function$;

comment on function builder_score.fire_deferred_triggers() is
    'Lets the host''s deferred triggers fire while a failure can still be told to its user, not at COMMIT where nothing catches it.';

create function builder_score.notify_changed(user_ids builder_score.user_id[], max_ids integer) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: NOTIFY builder_score_changed
declare
    v_payload constant text := format('{"user_ids": %s}', array_to_json(user_ids::text[]));
    v_length constant integer := octet_length(v_payload);
    v_count constant integer := cardinality(user_ids);
    v_at_once integer;
begin
    -- A listener that hangs fills the server's queue, and then every COMMIT with a NOTIFY fails. Caches
    -- have a time to live for such days; scores go on.
    if pg_notification_queue_usage() > 0.9 then
        return;
    end if;
    -- A payload ends at 7,999 bytes, and an id may be longer.
    if v_count > max_ids or v_count = 1 and v_length > 7999 then
        perform pg_notify('builder_score_changed', '{"all": true}');
    elsif v_length <= 7999 then
        perform pg_notify('builder_score_changed', v_payload);
    else
        v_at_once := ceil(v_count / ceil(v_length / 7980.0));
        for i in 1..v_count by v_at_once loop
            perform builder_score.notify_changed(user_ids[i:i + v_at_once - 1], v_count);
        end loop;
    end if;
end
$function$;

comment on function builder_score.notify_changed(builder_score.user_id[], integer) is
    'Tells listeners whose scores changed: {"user_ids": ["..."]}, in as many messages as it takes, or {"all": true}.';

create function builder_score.heavy_users(user_ids builder_score.user_id[]) returns builder_score.user_id[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $function$
-- reads: score_state
-- writes: nothing
begin
    return array(select s.user_id from builder_score.score_state as s where s.user_id = any(heavy_users.user_ids) and s.rows_read is not null);
end
$function$;

comment on function builder_score.heavy_users(builder_score.user_id[]) is
    'Those of the users who had so many projects and collaborations that a recalculation takes as long as that of many others.';

create function builder_score.write_states(
    user_ids builder_score.user_id[],
    scores numeric[],
    many_rows bigint[],
    computed_at timestamptz,
    stamp text,
    places tid[] default null
) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
as $function$
-- reads: nothing
-- writes: score_state
-- many_rows: null for most
-- places: where the users' rows were seen, (0,0) for who had none. They are written there, without a look at an index; where
-- one is there no more, all go the other way too, which changes nothing for those who are done.
#variable_conflict use_column
declare
    v_places constant integer := coalesce(cardinality(array_remove(places, '(0,0)')), 0);
    v_written bigint := 0;
begin
    if v_places > 0 then
        update builder_score.score_state as s
        set score = w.score,
            previous_score = case when s.score is distinct from w.score then s.score else s.previous_score end,
            computed_at = write_states.computed_at,
            formula_stamp = write_states.stamp,
            rows_read = w.many_rows,
            attempts = 0,
            retry_at = null,
            first_failed_at = null
        from unnest(user_ids, scores, many_rows, places) as w(user_id, score, many_rows, place)
        where s.ctid = w.place and s.user_id = w.user_id;
        get diagnostics v_written = row_count;
    end if;
    if v_written = cardinality(user_ids) then
        return;
    end if;
    -- An upsert, whatever a lock record costs: a join may be planned while the table is empty, and is kept as it fills.
    insert into builder_score.score_state as s (user_id, score, computed_at, formula_stamp, rows_read)
    select w.user_id, w.score, write_states.computed_at, write_states.stamp, w.many_rows
    from unnest(user_ids, scores, many_rows, places) as w(user_id, score, many_rows, place)
    where w.place = '(0,0)' or v_written < v_places or places is null
    on conflict (user_id) do update
    set score = excluded.score,
        previous_score = case when s.score is distinct from excluded.score then s.score else s.previous_score end,
        computed_at = excluded.computed_at,
        formula_stamp = excluded.formula_stamp,
        rows_read = excluded.rows_read,
        attempts = 0,
        retry_at = null,
        first_failed_at = null;
end
$function$;

comment on function builder_score.write_states(builder_score.user_id[], numeric[], bigint[], timestamptz, text, tid[]) is
    'Notes of each user that the score was computed, and whether that took many rows.';

create function builder_score.score_users(
    user_ids builder_score.user_id[],
    row_ids bigint[],
    row_users builder_score.user_id[] default null,
    until timestamptz default null,
    state_places tid[] default null,
    out recalculated integer,
    out changed integer,
    out put_off integer
) returns record
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $function$
-- reads: host views, formula, score_state, settings
-- writes: users.builder_score, score_state, score_dead_letter, score_recalc_queue, NOTIFY
-- The caller holds the users' row locks and has seen the queue rows in an earlier statement.
-- row_users: whose the rows are; needed where users may be put off, who are left as they are, and their rows: those who
-- are not computed when it is until, and those among others who turn out to need a batch of their own.
-- state_places: where the users' states were seen, parallel to user_ids; (0,0) for who has none.
-- One probe a row: left alone, the planner goes through tens of thousands of queue rows for those it is to delete.
#variable_conflict use_column
declare
    v_now constant timestamptz := clock_timestamp();
    v_stamp constant text := builder_score.formula_stamp();      -- before what it is to vouch for is read
    v_many constant bigint := 1000;
    v_limit constant bigint := case when cardinality(user_ids) > 1 and row_users is not null then v_many end;
    v_done integer;
    v_new record;
begin
    select coalesce(array_agg(c.user_id) filter (where c.score is not null), '{}') as ids,
           coalesce(array_agg(c.score) filter (where c.score is not null), '{}') as scores,
           coalesce(array_agg(c.many_rows) filter (where c.score is not null), '{}') as many_rows,
           array_agg(c.state_place) filter (where c.score is not null) as state_places,
           coalesce(array_agg(c.user_id) filter (where c.score is null), '{}') as heavy,
           coalesce(array_agg(c.user_id) filter (where c.score is not null and c.score is distinct from c.stored), '{}') as changed_ids,
           coalesce(array_agg(c.score) filter (where c.score is not null and c.score is distinct from c.stored), '{}') as changed_scores,
           max(c.place) as last_place
    into v_new
    from (
        select k.user_id, k.stored, round(k.score, h.score_decimals) as score, k.place, state_places[k.place] as state_place,
               case when k.rows_read > v_many then k.rows_read end as many_rows
        from builder_score.compute(
            user_ids, array_fill(v_now, array[cardinality(user_ids)]), v_limit,
            case when row_users is not null then score_users.until end) as k
        cross join builder_score.host as h
    ) as c;
    v_done := case when until is null or row_users is null then cardinality(user_ids)
                   else greatest(v_new.last_place, least(50, cardinality(user_ids))) end;     -- behind the last: nobody but who is gone
    recalculated := cardinality(v_new.ids);
    changed := cardinality(v_new.changed_ids);
    put_off := cardinality(user_ids) - v_done + cardinality(v_new.heavy);

    -- An unchanged score is never written: the index on it would make every write a non-HOT update.
    if changed > 0 then
        perform builder_score.write_scores(v_new.changed_ids, v_new.changed_scores);
        perform builder_score.notify_changed(v_new.changed_ids, (select s.notify_max_ids from builder_score.settings as s));
    end if;
    perform builder_score.write_states(
        v_new.ids, v_new.scores, v_new.many_rows, v_now, v_stamp,
        case when state_places is not null then v_new.state_places end);

    delete from builder_score.score_dead_letter as d where d.user_id = any(v_new.ids::builder_score.user_id[]);
    if put_off = 0 then
        delete from builder_score.score_recalc_queue as q where q.id = any(score_users.row_ids);
    else
        delete from builder_score.score_recalc_queue as q
        where q.id = any(array(
            select r.row_id
            from unnest(score_users.row_ids, score_users.row_users) as r(row_id, user_id)
            where r.user_id in (select d.user_id from unnest(user_ids[:v_done]) as d(user_id))
              and r.user_id not in (select h.user_id from unnest(v_new.heavy::builder_score.user_id[]) as h(user_id))
        ));
        insert into builder_score.score_state as s (user_id, rows_read)
        select h.user_id, v_many + 1 from unnest(v_new.heavy::builder_score.user_id[]) as h(user_id)
        on conflict (user_id) do update set rows_read = excluded.rows_read;
    end if;
end
$function$;

comment on function builder_score.score_users(builder_score.user_id[], bigint[], builder_score.user_id[], timestamptz, tid[]) is
    'Computes and writes the scores of users whose rows the caller has locked, and deletes exactly the given queue rows, '
    'but for those of users whom it puts off.';
