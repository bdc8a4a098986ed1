-- Where a user stands among all, how scores are distributed, and whether the counts that this rests on are right.
-- reads: score_counts, score_state, host_users          writes: score_counts, in repair_score_counts() alone

create function builder_score.distribution() returns table (score numeric, people bigint)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $function$
-- reads: score_counts
-- writes: nothing
-- A generic plan: making one looks at both ends of an index, where there may be many deleted rows.
begin
    return query
    select r.score, sum(r.people)::bigint
    from builder_score.live_score_counts as c
    cross join lateral unnest(c.scores, c.people) as r(score, people)
    group by r.score
    having sum(r.people) <> 0
    order by r.score desc;
end
$function$;

comment on function builder_score.distribution() is
    'How many people have each score, the highest first, as of the last batch. Who has no score yet is not in it.';

create function builder_score.standing(
    user_id builder_score.user_id,
    out score numeric,
    out rank bigint,
    out people bigint,
    out percentile double precision
) returns record
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $function$
-- reads: host_users, score_state, score_counts
-- writes: nothing
-- A generic plan, as in distribution(). Statement by statement, each with what the one before it found, for these few
-- look-ups take no longer than the executor takes to begin with a plan that holds them all.
declare
    v_is_there boolean;
    v_sum record;
    v_higher bigint;
    v_lower bigint;
begin
    if (select h.attached_at is null from builder_score.host as h) then     -- nearly never: a call is spared
        perform builder_score.require_attached();
    end if;
    select true, s.score into v_is_there, score
    from builder_score.host_users as u
    left join builder_score.score_state as s on s.user_id = standing.user_id
    where u.id = standing.user_id;
    if v_is_there is null then
        perform builder_score.unknown_user(standing.user_id);
    end if;

    select n.genuine, n.first_later, n.unfinished,
           coalesce(n.people_up_to[cardinality(n.people_up_to)], 0) as people,
           coalesce(n.people_up_to[p.place], 0) as at_most,
           coalesce(n.people_up_to[case when n.scores[p.place] = standing.score then p.place - 1 else p.place end], 0) as lower
    into v_sum
    from builder_score.newest_score_sum as n
    cross join lateral (select width_bucket(standing.score, n.scores) as place offset 0) as p;
    if v_sum.genuine then
        select v_sum.people + coalesce(sum(r.people), 0),
               v_sum.people - v_sum.at_most + coalesce(sum(r.people) filter (where r.score > standing.score), 0),
               v_sum.lower + coalesce(sum(r.people) filter (where r.score < standing.score), 0)
        into people, v_higher, v_lower
        from builder_score.counts_since(v_sum.first_later, v_sum.unfinished) as c
        cross join lateral unnest(c.scores, c.people) as r(score, people);
    else
        select coalesce(sum(r.people), 0),
               coalesce(sum(r.people) filter (where r.score > standing.score), 0),
               coalesce(sum(r.people) filter (where r.score < standing.score), 0)
        into people, v_higher, v_lower
        from builder_score.score_counts as c
        cross join lateral unnest(c.scores, c.people) as r(score, people);
    end if;
    if score is not null then
        rank := v_higher + 1;
        percentile := 100 * v_lower::double precision / greatest(people - 1, 1);
    end if;
end
$function$;

comment on function builder_score.standing(builder_score.user_id) is
    'Where a user stands as of the last batch. rank: 1 + the number of people with a higher score, so that equal scores share it; '
    'people: how many have a score; percentile: 100 * (people with a lower score) / (people - 1), as percent_rank() has it, 0 for '
    'somebody who is alone. Null while the user has no score. Exact, and counts nobody: it takes no longer among millions.';

create function builder_score.verify_score_counts() returns table (score numeric, counted bigint, people bigint)
language sql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $function$
-- reads: score_counts, score_state
-- writes: nothing
-- A transaction changes both tables or neither, so they agree in any snapshot. What is counted is looked up both ways, for a row
-- that came from another server may be where only one of them leads.
    with counted as (
        select r.score, sum(r.people * c.live) as live, sum(r.people * (1 - c.live)) as there
        from (
            select l.scores, l.people, 1 as live from builder_score.live_score_counts as l
            union all
            select c.scores, c.people, 0 from builder_score.score_counts as c
        ) as c
        cross join lateral unnest(c.scores, c.people) as r(score, people)
        group by r.score
    ),
    actual as (
        select s.score, count(*) as people from builder_score.score_state as s where s.score is not null group by s.score
    )
    select score,
           (case when coalesce(c.live, 0) <> coalesce(a.people, 0) then coalesce(c.live, 0) else c.there end)::bigint,
           coalesce(a.people, 0)
    from counted as c
    full join actual as a using (score)
    where coalesce(c.live, 0) <> coalesce(a.people, 0) or coalesce(c.there, 0) <> coalesce(a.people, 0)
    order by score desc;
$function$;

comment on function builder_score.verify_score_counts() is
    'The scores that not so many people have as score_counts says: counted, and how many have them. Reads all of score_state, locks '
    'nothing, works on a standby. They part when rows are restored into tables that count already, or written with triggers disabled.';

create function builder_score.repair_score_counts() returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $function$
-- reads: score_counts, score_state
-- writes: score_counts, turns (a lock)
-- Later than the lock, which a compaction and another repair take too, one statement puts in the place of all rows that it
-- sees the counts of the score_state that it sees. What others change meanwhile they count in rows that it does not see.
declare
    v_differing bigint;
    v_written_by xid;
begin
    perform builder_score.wait_for_our_turn('sum score_counts up');
    select count(*) into v_differing from builder_score.verify_score_counts();
    if v_differing = 0 then
        return 0;
    end if;
    if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
        raise exception 'repair_score_counts() cannot run at isolation level %', current_setting('transaction_isolation')
            using errcode = 'active_sql_transaction',
                  detail = 'Expected read committed: what is seen must be later than the lock.',
                  hint = 'Call it in a transaction of its own.';
    end if;
    insert into builder_score.score_counts as c (scores, people) values ('{}', '{}') returning c.xmin into v_written_by;
    with gone as (
        delete from builder_score.score_counts
    ),
    actual as (
        select s.score, count(*) as people from builder_score.score_state as s where s.score is not null group by s.score
    )
    insert into builder_score.score_counts (scores, people, people_up_to, stands_for, written_by)
    select coalesce(array_agg(s.score order by s.score), '{}'), coalesce(array_agg(s.people order by s.score), '{}'),
           coalesce(array_agg(s.people_up_to order by s.score), '{}'), pg_current_snapshot(), v_written_by
    from (select a.*, sum(a.people) over (order by a.score)::bigint as people_up_to from actual as a) as s;
    return v_differing;
end
$function$;

comment on function builder_score.repair_score_counts() is
    'Where score_counts is not what score_state holds, counts anew. Returns how many scores differed. Waits for a compaction that is '
    'under way; keeps neither batches nor readers waiting. The worker calls it once a day, and after attach().';

create function builder_score.tidy_score_counts(repair boolean default false) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '0.1s'
as $function$
-- reads: what compact_score_counts() and repair_score_counts() read
-- writes: score_counts
-- Ranks are no reason for scores to stand still.
begin
    if repair then
        perform builder_score.repair_score_counts();
    else
        perform builder_score.compact_score_counts();
    end if;
    return true;
exception when others then
    raise warning 'builder_score: score_counts could not be %: % (%)', case when repair then 'repaired' else 'summed up' end, sqlerrm, sqlstate
        using hint = 'SELECT builder_score.repair_score_counts();';
    return false;
end
$function$;

comment on function builder_score.tidy_score_counts(boolean) is
    'For the worker, now and then: sums score_counts up, or repairs it. An error is a warning, and false.';

create function builder_score.claim_repair_of_score_counts() returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: host
-- writes: host
begin
    -- What has failed, for somebody held a lock for a moment, is soon tried again, but not with every round.
    -- From the future: the clock was set back.
    if (select h.counted_at between clock_timestamp() - interval '1 day' and clock_timestamp()
            or h.count_tried_at between clock_timestamp() - interval '10 seconds' and clock_timestamp()
        from builder_score.host as h) then
        return false;
    end if;
    -- Not waiting for whoever attaches.
    update builder_score.host as h
    set count_tried_at = clock_timestamp()
    where h.one_row = any(array(select k.one_row from builder_score.host as k for update skip locked));
    return found;
end
$function$;

comment on function builder_score.claim_repair_of_score_counts() is
    'Whether score_counts is to be compared with score_state now: once a day, after attach(), and ten seconds after that has failed. '
    'Says so to one worker alone.';
