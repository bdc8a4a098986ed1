-- When a batch cannot take a user now, or cannot score one; and what waits by a clock that was set back.
-- reads: settings, score_recalc_queue, score_state, host, worker_status
-- writes: score_recalc_queue, score_state, score_dead_letter, host, worker_status

create function builder_score.is_users_fault(sqlstate text) returns boolean
language sql immutable parallel safe
-- 40 serialization and deadlock, 53 resources, 55 locks and object state, 57 operator intervention
return left(sqlstate, 2) not in ('40', '53', '55', '57');

comment on function builder_score.is_users_fault(text) is
    'Whether an error with this SQLSTATE counts as a failed attempt of the user it struck.';

create function builder_score.retry_delay(attempts integer) returns interval
language sql volatile
set search_path = pg_catalog, pg_temp
as $function$
-- reads: settings
-- writes: nothing
-- Doubling stops at 2^30, before interval arithmetic overflows. The jitter (0.8 to 1.2) is too small to make
-- a later delay shorter than an earlier one.
    select least(s.retry_cap, s.retry_base * power(2, least(retry_delay.attempts - 1, 30)) * (0.8 + 0.4 * random()))
    from builder_score.settings as s;
$function$;

comment on function builder_score.retry_delay(integer) is
    'Wait after that many failures in a row: exponential from settings.retry_base, jittered, capped by settings.retry_cap.';

create function builder_score.longest_delay() returns interval
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: settings
-- writes: nothing
-- plpgsql keeps its plans, where a function in SQL that is not inlined is planned at every call: here and below
-- whatever a worker calls with every look is in plpgsql.
begin
    -- in seconds, as run_batch() has the window: a day may be an hour shorter
    return (
        select make_interval(secs => extract(epoch from greatest(
            s.debounce_window,
            least(s.retry_cap, s.retry_base * power(2, least(s.max_attempts - 2, 30)) * 1.2),   -- retry_delay(), the jitter at its most
            interval '2 seconds'    -- others' locks, and errors that are nobody's fault
        ))::double precision)
        from builder_score.settings as s
    );
end
$function$;

comment on function builder_score.longest_delay() is
    'The longest that a row is ever put off: one that waits for longer is from before the clock was set back.';

create function builder_score.rows_beyond(until timestamptz, max_rows integer)
returns table (id bigint, enqueued_at timestamptz)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set jit = off
set enable_bitmapscan = off
set enable_seqscan = off
as $function$
-- reads: score_recalc_queue
-- writes: nothing
-- Five ends of indexes, where as a rule there is nothing.
#variable_conflict use_column
begin
    return query
    select r.id, r.enqueued_at
    from (values (0::smallint), (10::smallint), (20::smallint)) as p(priority)
    cross join lateral (
        select q.id, q.enqueued_at from builder_score.score_recalc_queue as q
        where q.priority = p.priority and q.not_before > rows_beyond.until and q.user_id is not null
        order by q.not_before desc
        limit rows_beyond.max_rows
    ) as r
    union all
    (select q.id, q.enqueued_at from builder_score.score_recalc_queue as q
     where q.project_id is not null and q.not_before > rows_beyond.until
     order by q.not_before desc
     limit rows_beyond.max_rows)
    union all
    (select q.id, q.enqueued_at from builder_score.score_recalc_queue as q
     where q.user_id is null and q.project_id is null and q.not_before > rows_beyond.until
     order by q.not_before desc
     limit rows_beyond.max_rows);
end
$function$;

comment on function builder_score.rows_beyond(timestamptz, integer) is
    'Queue rows that wait beyond a moment, those that wait for longest, some of each kind and priority.';

create function builder_score.note_clock_set_back() returns void
language sql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: host
-- Not waiting for whoever attaches.
    update builder_score.host as h
    set clock_set_back = true
    where h.one_row = any(array(select k.one_row from builder_score.host as k for update skip locked));
$function$;

comment on function builder_score.note_clock_set_back() is 'Has the next batch bring forward what waits by a clock that was set back.';

create function builder_score.clock_was_set_back() returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: host, worker_status, score_recalc_queue, settings
-- writes: host
-- A row that somebody has put off by hand is no evidence: a heartbeat from the future is, or a row that was appended
-- there. A second's slack, because clocks are corrected by little all the time, and then nothing waits for long.
declare
    v_now constant timestamptz := clock_timestamp() + interval '1 second';
begin
    if (select h.clock_set_back from builder_score.host as h) then
        return true;
    end if;
    if exists (select from builder_score.worker_status as w where w.heartbeat_at > v_now)
       or exists (select from builder_score.rows_beyond(v_now + builder_score.longest_delay(), 10) as r where r.enqueued_at > v_now) then
        perform builder_score.note_clock_set_back();
        return true;
    end if;
    return false;
end
$function$;

comment on function builder_score.clock_was_set_back() is
    'Whether the clock was set back, and rows that wait by the old one may be left.';

create function builder_score.bring_forward(until timestamptz, max_rows integer) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: score_recalc_queue, score_state
-- writes: score_recalc_queue, score_state, host, worker_status
declare
    v_count bigint;
begin
    update builder_score.score_state as s
    set retry_at = clock_timestamp()
    where s.user_id = any(array(
        select c.user_id from builder_score.score_state as c
        where c.retry_at > bring_forward.until
        for update skip locked
    ));
    update builder_score.score_recalc_queue as q
    set not_before = clock_timestamp()
    where q.id = any(array(
        select c.id from builder_score.score_recalc_queue as c
        where c.id = any(array(select r.id from builder_score.rows_beyond(bring_forward.until, bring_forward.max_rows) as r))
        for update skip locked
    ));
    get diagnostics v_count = row_count;
    -- those in somebody's hands may come back as they were
    if not exists (select from builder_score.rows_beyond(bring_forward.until, 1)) then
        update builder_score.host set clock_set_back = false;
        update builder_score.worker_status as w set heartbeat_at = null where w.heartbeat_at > clock_timestamp();
    end if;
    return v_count;
end
$function$;

comment on function builder_score.bring_forward(timestamptz, integer) is
    'After the clock was set back: makes due what would wait for longer than anything is ever put off. Returns how many rows.';

create function builder_score.defer_held_rows(row_users builder_score.user_id[], due timestamptz[], row_ids bigint[])
returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: score_recalc_queue
-- The three arrays are parallel: a queue row, its user, and when that user is due. The caller holds the users' row locks.
-- One new row takes the place of all of a user's: somebody who is deleted and comes back under the same id may have been
-- seen as gone by another worker, which is about to delete the rows that it has seen, whoever's they are by then.
begin
    with seen as (
        select r.user_id, r.due, r.row_id
        from unnest(row_users, due, row_ids) as r(user_id, due, row_id)
    ),
    dropped as (
        delete from builder_score.score_recalc_queue as q
        using seen as s
        where q.id = s.row_id
        returning q.id, q.priority, q.reason, q.enqueued_at
    )
    insert into builder_score.score_recalc_queue (user_id, not_before, priority, reason, enqueued_at)
    select s.user_id, s.due, coalesce(min(d.priority), 10), coalesce((array_agg(d.reason order by d.id))[1], 'deferred'),
           coalesce(min(d.enqueued_at), clock_timestamp())
    from seen as s
    left join dropped as d on d.id = s.row_id
    group by s.user_id, s.due;
end
$function$;

comment on function builder_score.defer_held_rows(builder_score.user_id[], timestamptz[], bigint[]) is
    'Coalesces the queue rows of each user whom the caller has locked into one, due at the given moment.';

create function builder_score.defer_blocked_users(user_ids builder_score.user_id[]) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: score_recalc_queue
-- Somebody else holds these users. If it is a worker, it is about to delete rows that it has seen, by id:
-- so ids stay as they are, and rows that it already holds are skipped, not waited for.
declare
    v_count bigint;
begin
    update builder_score.score_recalc_queue as q
    set not_before = clock_timestamp() + interval '1 second'
    where q.id = any(array(
        select c.id
        from builder_score.score_recalc_queue as c
        where c.user_id = any(defer_blocked_users.user_ids)
          and c.not_before <= clock_timestamp()     -- else those that cannot be put off would have us do this for ever
        for update skip locked
    ));
    get diagnostics v_count = row_count;
    return v_count;
end
$function$;

comment on function builder_score.defer_blocked_users(builder_score.user_id[]) is
    'Puts the rows of users whom somebody else has locked off for a second, so that no loop spins on them. Returns how many.';

create function builder_score.forget_users(user_ids builder_score.user_id[], seen_at timestamptz) returns void
language sql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: score_state, score_dead_letter
-- Nobody can lock a user who is gone, so another worker may be doing the same: skip what it holds. And who was gone at
-- seen_at may have come back under the same id, and have been computed or have failed since (what is later than now is
-- from before the clock was set back).
    delete from builder_score.score_state as s
    where s.user_id = any(array(
        select c.user_id from builder_score.score_state as c
        where c.user_id = any(forget_users.user_ids)
          and not coalesce(greatest(c.computed_at, c.first_failed_at), '-infinity') between forget_users.seen_at and clock_timestamp() for update skip locked
    ));
    delete from builder_score.score_dead_letter as d
    where d.user_id = any(array(
        select c.user_id from builder_score.score_dead_letter as c
        where c.user_id = any(forget_users.user_ids) and not c.last_failed_at between forget_users.seen_at and clock_timestamp() for update skip locked
    ));
$function$;

comment on function builder_score.forget_users(builder_score.user_id[], timestamptz) is 'Removes what we remember of users who no longer existed at that moment.';

create function builder_score.delete_queue_rows(row_ids bigint[]) returns void
language sql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: score_recalc_queue
    delete from builder_score.score_recalc_queue as q
    where q.id = any(array(
        select c.id from builder_score.score_recalc_queue as c
        where c.id = any(delete_queue_rows.row_ids) for update skip locked
    ));
$function$;

comment on function builder_score.delete_queue_rows(bigint[]) is
    'Deletes those of the rows that nobody else holds: for users no lock protects, because they are gone.';

create function builder_score.record_failure(
    user_id builder_score.user_id, row_ids bigint[], error_code text, message text
) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: settings
-- writes: score_state, score_dead_letter, score_recalc_queue
#variable_conflict use_column
declare
    v_now constant timestamptz := clock_timestamp();
    v_state builder_score.score_state;
    v_due timestamptz;
begin
    if not builder_score.is_users_fault(error_code) then
        -- at least a second, and not everybody at once
        v_due := v_now + make_interval(secs => 1 + random());
    else
        insert into builder_score.score_state as s (user_id, attempts, first_failed_at)
        values (record_failure.user_id, 1, v_now)
        on conflict (user_id) do update
        set attempts = s.attempts + 1,
            first_failed_at = coalesce(s.first_failed_at, v_now)
        returning s.* into v_state;

        if v_state.attempts >= (select s.max_attempts from builder_score.settings as s) then
            insert into builder_score.score_dead_letter as d
                (user_id, attempts, sqlstate, message, first_failed_at, last_failed_at)
            values (record_failure.user_id, v_state.attempts, error_code, record_failure.message, v_state.first_failed_at, v_now)
            on conflict (user_id) do update
            set attempts = excluded.attempts,
                sqlstate = excluded.sqlstate,
                message = excluded.message,
                first_failed_at = least(d.first_failed_at, excluded.first_failed_at),
                last_failed_at = excluded.last_failed_at;
            update builder_score.score_state as s
            set attempts = 0, retry_at = null, first_failed_at = null
            where s.user_id = record_failure.user_id;
            delete from builder_score.score_recalc_queue as q where q.id = any(record_failure.row_ids);
            return;
        end if;

        v_due := v_now + builder_score.retry_delay(v_state.attempts);
        update builder_score.score_state as s set retry_at = v_due where s.user_id = record_failure.user_id;
    end if;

    perform builder_score.defer_held_rows(
        array_fill(record_failure.user_id, array[cardinality(row_ids)]),
        array_fill(v_due, array[cardinality(row_ids)]),
        row_ids
    );
end
$function$;

comment on function builder_score.record_failure(builder_score.user_id, bigint[], text, text) is
    'After a failure of one user, whom the caller has locked: counts the attempt and backs off, or gives the user up '
    'as a dead letter. Errors that are not the user''s only put the rows off.';

create function builder_score.score_or_split(
    user_ids builder_score.user_id[],
    row_ids bigint[],
    row_users builder_score.user_id[],
    split_until timestamptz,
    known_code text default null,
    until timestamptz default null,
    state_places tid[] default null,
    fire_deferred boolean default false,
    out recalculated integer,
    out changed integer,
    out put_off integer,
    out failed integer,
    out passes integer,
    out last_error text
) returns record
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: what score_users() reads
-- writes: what score_users() and record_failure() write
-- row_ids and row_users are parallel: the queue rows seen, and whose they are.
-- until, state_places: for a whole batch, as score_users() has them; its parts, after a failure, have none.
-- fire_deferred: only where the transaction has nobody else's triggers to fire
-- known_code: how more users than these have failed, of whom the others are fine: these are not tried together again.
declare
    v_code text := known_code;
    v_message text;
    v_half integer;
    v_users builder_score.user_id[];
    v_rows bigint[];
    v_row_users builder_score.user_id[];
    v_part record;
    v_other_is_fine boolean := false;
begin
    passes := 0;
    failed := 0;
    if known_code is null or cardinality(user_ids) = 1 then
        passes := 1;
        begin
            select s.recalculated, s.changed, s.put_off into recalculated, changed, put_off
            from builder_score.score_users(user_ids, row_ids, row_users, until, state_places) as s;
            if fire_deferred then
                perform builder_score.fire_deferred_triggers();
            end if;
            return;
        exception when assert_failure or others then    -- others leaves out assert_failure, and query_canceled, which is to pass
            get stacked diagnostics v_code = returned_sqlstate, v_message = message_text;
        end;
        last_error := format('%s: %s', v_code, v_message);
    end if;

    recalculated := 0;
    changed := 0;
    put_off := 0;
    if cardinality(user_ids) = 1 then
        failed := builder_score.is_users_fault(v_code)::integer;
        perform builder_score.record_failure(user_ids[1], row_ids, v_code, v_message);
        return;
    end if;

    v_half := cardinality(user_ids) / 2;
    for v_users in
        select user_ids[:v_half] union all select user_ids[v_half + 1:]
    loop
        select coalesce(array_agg(r.row_id), '{}'), coalesce(array_agg(r.user_id), '{}')
        into v_rows, v_row_users
        from unnest(row_ids, row_users) as r(row_id, user_id)
        join unnest(v_users) as u(user_id) on u.user_id = r.user_id;

        -- A lock that somebody holds for long would strike every part alike, while we hold all these users.
        if not builder_score.is_users_fault(v_code) and clock_timestamp() > split_until then
            perform builder_score.defer_held_rows(
                v_row_users,
                array_fill(clock_timestamp() + make_interval(secs => 1 + random()), array[cardinality(v_rows)]),
                v_rows
            );
            continue;
        end if;

        select s.* into v_part
        from builder_score.score_or_split(v_users, v_rows, v_row_users, split_until, case when v_other_is_fine then v_code end, fire_deferred => fire_deferred) as s;
        v_other_is_fine := v_part.last_error is null and builder_score.is_users_fault(v_code);
        recalculated := recalculated + v_part.recalculated;
        changed := changed + v_part.changed;
        put_off := put_off + v_part.put_off;
        failed := failed + v_part.failed;
        passes := passes + v_part.passes;
        last_error := coalesce(v_part.last_error, last_error);
    end loop;
end
$function$;

comment on function builder_score.score_or_split(builder_score.user_id[], bigint[], builder_score.user_id[], timestamptz, text, timestamptz, tid[], boolean) is
    'Scores a batch; where it raises, halves it until the failing user is alone, so that everybody else''s score is written. '
    'After split_until, an error that is nobody''s fault puts the whole part off instead.';

create function builder_score.retry_dead_letters(user_ids builder_score.user_id[] default null) returns bigint
language sql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: score_dead_letter
-- writes: score_recalc_queue
-- The dead letter itself goes when the score has been computed: until then it says what was wrong.
    with enqueued as (
        insert into builder_score.score_recalc_queue (user_id, priority, reason)
        select d.user_id, 0, 'dead letter retried'
        from builder_score.score_dead_letter as d
        where retry_dead_letters.user_ids is null or d.user_id = any(retry_dead_letters.user_ids)
        returning id
    )
    select count(*) from enqueued;
$function$;

comment on function builder_score.retry_dead_letters(builder_score.user_id[]) is
    'Gives those of the users who are dead letters (null: all dead letters) a fresh start, past the debounce. Returns how many.';

create function builder_score.reconsider_deferred() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: score_recalc_queue
begin
    -- what a worker holds is being decided with the new window or deferred by the old one for the last time
    update builder_score.score_recalc_queue as q
    set not_before = clock_timestamp()
    where q.id = any(array(
        select c.id from builder_score.score_recalc_queue as c
        where c.not_before > clock_timestamp() for update skip locked
    ));
    return null;
end
$function$;

comment on function builder_score.reconsider_deferred() is
    'Trigger: a shorter debounce window also counts for rows that were put off by the longer one.';

create trigger reconsider_deferred after update on builder_score.settings
    for each row when (new.debounce_window < old.debounce_window)
    execute function builder_score.reconsider_deferred();

comment on trigger reconsider_deferred on builder_score.settings is 'Has the worker look again at rows put off by a longer window.';
