-- From rows that name a project, or everyone, to rows that name a user.
-- reads: the host views          writes: score_recalc_queue, backfill

create function builder_score.expand_projects(
    max_rows integer,
    since timestamptz default null,
    out taken bigint,
    out mark timestamptz
) returns record
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_bitmapscan = off
set enable_seqscan = off
as $function$
-- reads: score_recalc_queue, host_projects, host_collaborations, statuses
-- writes: score_recalc_queue
-- since: where to begin looking (null: with the oldest); mark: where the next look may begin
-- In the index's order, as choose_due().
declare
    v_now constant timestamptz := clock_timestamp();     -- a function in its place could not use the index
begin
    -- As an array, here and wherever rows are chosen with SKIP LOCKED: chosen once, where the subquery of an IN may
    -- be run again for every row that it is compared with.
    -- One statement, so one snapshot: whoever sees the queue row sees the owner and the collaborators of
    -- that same moment. A transfer that commits later has a queue row of its own.
    with taken as (
        delete from builder_score.score_recalc_queue as q
        where q.id = any(array(
            select c.id from builder_score.score_recalc_queue as c
            where c.project_id is not null and c.not_before <= v_now
              and c.not_before >= coalesce(expand_projects.since, '-infinity')
            order by c.not_before
            limit expand_projects.max_rows
            for update skip locked
        ))
        returning q.project_id, q.priority, q.reason, q.enqueued_at, q.not_before
    ),
    project as (
        select t.project_id, min(t.priority) as priority, min(t.reason) as reason, min(t.enqueued_at) as enqueued_at
        from taken as t
        group by t.project_id
    ),
    appended as (
        insert into builder_score.score_recalc_queue (user_id, priority, reason, enqueued_at)
        select c.user_id, min(p.priority), min(p.reason), min(p.enqueued_at)
        from project as p
        cross join lateral (
            select h.owner_id as user_id from builder_score.host_projects as h where h.id = p.project_id
            union all
            select k.user_id from builder_score.host_collaborations as k
            where k.project_id = p.project_id
              and k.status in (select s.status from builder_score.statuses as s where s.meaning = 'confirmed')
        ) as c
        where c.user_id is not null
        group by c.user_id
    )
    -- as choose_due() marks: what was taken may come back
    select count(*), coalesce(min(t.not_before), v_now - interval '1 second') into taken, mark from taken as t;
end
$function$;

comment on function builder_score.expand_projects(integer, timestamptz) is
    'Turns due queue rows that name a project into rows for its owner and its confirmed collaborators. Returns how many it took.';

create function builder_score.start_backfill(reason text, only_ageing boolean) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: pg_catalog
-- writes: backfill, turns (a lock)
begin
    -- Beside a worker that is about to begin one the insert would wait for its batch.
    if not builder_score.is_our_turn('begin a walk') then
        return false;
    end if;
    insert into builder_score.backfill (reason, only_ageing, estimated_total)
    select start_backfill.reason, start_backfill.only_ageing, coalesce(sum(greatest(c.reltuples, 0)), 0)
    from builder_score.host as h
    join pg_namespace as n on n.nspname = h.host_schema
    join pg_class as r on r.relnamespace = n.oid and r.relname = 'users'
    cross join lateral (
        select r.oid where r.relkind <> 'p'
        union all
        select t.relid from pg_partition_tree(r.oid) as t where r.relkind = 'p' and t.isleaf
    ) as leaf
    join pg_class as c on c.oid = leaf.oid
    on conflict (one_row) do nothing;
    return found;
end
$function$;

comment on function builder_score.start_backfill(text, boolean) is
    'Begins a walk over everyone, or over those whose age still counts. False when one is under way.';

create function builder_score.advance_backfill() returns timestamptz
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $function$
-- reads: score_recalc_queue, backfill, host, host_users, score_state, score_dead_letter, signals, settings
-- writes: score_recalc_queue, backfill, host
-- returns: when the walk may go on; null when none is under way
-- Rows for everyone look common to the planner where many rows have no user and many no project: it would scan the
-- whole queue for one, with every batch.
declare
    v_backfill builder_score.backfill;
    v_settings builder_score.settings;
    v_chunk integer;
    v_ids builder_score.user_id[];
    v_now timestamptz := clock_timestamp();
    v_enqueued bigint;
begin
    -- A trigger in a transaction that was open when statuses changed went by the old list, and its queue row, or
    -- the lack of one, became visible after the walk had passed: so a second walk follows those transactions.
    -- An id that is yet to come is another server's, from a dump.
    if exists (select from builder_score.host as h
               where h.walk_again_after <= pg_snapshot_xmin(pg_current_snapshot())
                  or h.walk_again_after > pg_snapshot_xmax(pg_current_snapshot())) then
        perform builder_score.enqueue_everyone('formula: statuses, for transactions that were open');
        update builder_score.host set walk_again_after = null;
        v_now := clock_timestamp();     -- that row is due
    end if;

    -- A row that arrives while a walk is under way waits for the next walk: this one has already passed
    -- people whom the new row means.
    if exists (
           select from builder_score.score_recalc_queue as q
           where q.user_id is null and q.project_id is null and q.not_before <= v_now)
       and builder_score.start_backfill('everyone', false)
    then
        with taken as (
            delete from builder_score.score_recalc_queue as q
            where q.id = any(array(
                select c.id from builder_score.score_recalc_queue as c
                where c.user_id is null and c.project_id is null and c.not_before <= v_now
                for update skip locked
            ))
            returning q.reason
        )
        update builder_score.backfill as b
        set reason = coalesce((select string_agg(distinct t.reason, ', ') from taken as t), b.reason)
        returning b.* into v_backfill;
        if v_backfill.reason ~ '\mstatuses\M' and v_backfill.reason !~ 'that were open'
           and exists (select from pg_snapshot_xip(pg_current_snapshot())) then
            update builder_score.host set walk_again_after = pg_snapshot_xmax(pg_current_snapshot());
        end if;
    end if;

    select b.* into v_backfill from builder_score.backfill as b for update skip locked;
    if not found then
        return null;
    end if;
    v_now := clock_timestamp();
    -- A step puts it off by a second at most; more means that the clock was set back.
    if v_backfill.resume_at > v_now and v_backfill.resume_at <= v_now + interval '1 second' then
        return v_backfill.resume_at;
    end if;

    select s.* into v_settings from builder_score.settings as s;
    v_chunk := least(1000, v_settings.backfill_per_second);

    -- People of the host, and people whom only we still know (a truncate leaves no queue row a user).
    select array_agg(e.id order by e.id) into v_ids
    from (
        select k.id
        from (
            (select u.id from builder_score.host_users as u
             where u.id > v_backfill.after_user_id order by u.id limit v_chunk)
            union
            (select s.user_id from builder_score.score_state as s
             where s.user_id > v_backfill.after_user_id order by s.user_id limit v_chunk)
            union
            (select d.user_id from builder_score.score_dead_letter as d
             where d.user_id > v_backfill.after_user_id order by d.user_id limit v_chunk)
        ) as k(id)
        where v_backfill.after_user_id is not null
        union all
        select k.id
        from (
            (select u.id from builder_score.host_users as u order by u.id limit v_chunk)
            union
            (select s.user_id from builder_score.score_state as s order by s.user_id limit v_chunk)
            union
            (select d.user_id from builder_score.score_dead_letter as d order by d.user_id limit v_chunk)
        ) as k(id)
        where v_backfill.after_user_id is null
        order by id
        limit v_chunk
    ) as e;

    if v_ids is null then
        delete from builder_score.backfill;
        return v_now;   -- look again at once: another row may have waited for this walk to end
    end if;

    insert into builder_score.score_recalc_queue (user_id, priority, reason)
    select e.id, 20, v_backfill.reason
    from unnest(v_ids) as e(id)
    where not v_backfill.only_ageing
       or builder_score.is_ageing(e.id, v_now - v_settings.refresh_after);
    get diagnostics v_enqueued = row_count;

    update builder_score.backfill as b
    set after_user_id = v_ids[cardinality(v_ids)],
        seen = b.seen + cardinality(v_ids),
        -- looking at a user who needs nothing costs a tenth
        resume_at = v_now + make_interval(
            secs => greatest(v_enqueued, cardinality(v_ids) / 10.0)::double precision / v_settings.backfill_per_second)
    returning b.resume_at into v_now;
    return v_now;
end
$function$;

comment on function builder_score.advance_backfill() is
    'Starts a walk over everyone where a queue row asks for it, and takes one throttled step of the one under way.';

create function builder_score.is_ageing(user_id builder_score.user_id, computed_before timestamptz) returns boolean
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: host_users, score_state, signals
-- writes: nothing
    select exists (
        select
        from builder_score.host_users as u
        join builder_score.signals as g on g.signal = 'age'
        left join builder_score.score_state as s on s.user_id = u.id
        where u.id = is_ageing.user_id
          -- nothing is known of people who were loaded past the triggers; who is failing has a row
          -- a score from the future, and its age with it, is from before the clock was set back
          and (s.user_id is null or s.computed_at < is_ageing.computed_before or s.computed_at > clock_timestamp())
          and g.max_points > 0
          and g.scale > 0
          -- in seconds: a timestamp near the end of its range cannot be added to
          and extract(epoch from least(coalesce(s.computed_at, is_ageing.computed_before), clock_timestamp()))
              < extract(epoch from u.created_at) + (ceil(365 * g.max_points / g.scale) * 86400)::numeric
    );
$function$;

comment on function builder_score.is_ageing(builder_score.user_id, timestamptz) is
    'Whether the user''s age still gained points when the score was last computed, and that was before the given moment.';

create function builder_score.refresh_ages() returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $function$
-- reads: score_recalc_queue
-- writes: backfill, host
begin
    if exists (select from builder_score.score_recalc_queue as q where q.user_id is null and q.project_id is null)
       or not builder_score.start_backfill('age', true) then
        return false;
    end if;
    update builder_score.host set refreshed_at = clock_timestamp();
    return true;
end
$function$;

comment on function builder_score.refresh_ages() is
    'Begins the walk that enqueues, at low priority, accounts younger than the age cap whose score is older than '
    'settings.refresh_after. The worker calls it once a day. False when another walk is under way or waits.';
