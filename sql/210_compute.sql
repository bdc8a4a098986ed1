-- The score: one set-based query over the three host views.
-- reads: host_users, host_projects, host_collaborations, signals, statuses, impact_keys, score_state
-- writes: nothing

create function builder_score.log10_of_one_plus(n numeric) returns double precision
language sql immutable parallel safe
-- double precision ends at 1e308
return case when n < 1e300 then log10(1 + n::double precision) else log(n)::double precision end;

comment on function builder_score.log10_of_one_plus(numeric) is 'log10(1 + n), for n up to 10^131071.';

create function builder_score.count_many(
    user_id builder_score.user_id,
    shipped_statuses text[],
    confirmed_statuses text[],
    impact_keys text[],
    out shipped double precision,
    out impact numeric,
    out people double precision,
    out rows_read bigint
) returns record
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set plan_cache_mode = force_custom_plan
set enable_bitmapscan = on
set enable_seqscan = on
set max_parallel_workers_per_gather = 0
as $function$
-- reads: host_projects, host_collaborations
-- writes: nothing
-- As compute() does it, but planned for this one user: for somebody with very many rows that is no probe for each.
-- Callers have forbidden the planner what it is to choose here. The application's processors are not taken for it.
begin
    select count(*) filter (where p.status = any(count_many.shipped_statuses)),
           coalesce(sum(p.github_stars + m.impact), 0), count(*)
    into shipped, impact, rows_read
    from builder_score.host_projects as p
    cross join lateral (
        select coalesce(sum(builder_score.count_of(p.impact_metrics -> k.key)), 0) as impact
        from unnest(count_many.impact_keys) as k(key)
    ) as m
    where p.owner_id = count_many.user_id;

    select count(distinct v.person) filter (where v.person <> count_many.user_id), count_many.rows_read + count(*)
    into people, rows_read
    from (
        select c.user_id as person
        from builder_score.host_projects as p
        join builder_score.host_collaborations as c on c.project_id = p.id
        where p.owner_id = count_many.user_id and c.status = any(count_many.confirmed_statuses)
        union all
        select p.owner_id
        from builder_score.host_collaborations as c
        join builder_score.host_projects as p on p.id = c.project_id
        where c.user_id = count_many.user_id and c.status = any(count_many.confirmed_statuses)
    ) as v;
end
$function$;

comment on function builder_score.count_many(builder_score.user_id, text[], text[], text[]) is
    'What compute() counts of a user''s projects and collaborations, where there are more than a thousand of either.';

create function builder_score.compute(
    user_ids builder_score.user_id[],
    as_of timestamptz[],
    max_rows bigint default null,
    until timestamptz default null,
    out user_id builder_score.user_id,
    out shipped numeric,
    out shipped_points double precision,
    out vouches numeric,
    out vouches_points double precision,
    out impact numeric,
    out impact_points double precision,
    out profile numeric,
    out profile_points double precision,
    out age numeric,
    out age_points double precision,
    out score numeric,
    out stored numeric,
    out rows_read bigint,
    out place integer
) returns setof record
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_bitmapscan = off
as $function$
-- reads: host_users, host_projects, host_collaborations, signals, statuses, impact_keys, score_state
-- writes: nothing
-- stored: users.builder_score
-- rows_read: of projects and collaborations. Who has more of them than max_rows is not read to the end, and has no score.
-- Without max_rows, who has more than a thousand of either is not read to the end here, but counted apart: at once, where
-- score_state says so of a user who is alone.
-- until: who comes later is left out, but the first fifty. place: that of the user in user_ids; they are done in their order.
-- An index scan a user: a bitmap is dearer to make than the few rows behind it.
#variable_conflict use_column
declare
    v_shipped constant text[] := array(select s.status from builder_score.statuses as s where s.meaning = 'shipped');
    v_confirmed constant text[] := array(select s.status from builder_score.statuses as s where s.meaning = 'confirmed');
    v_keys constant text[] := array(select k.key from builder_score.impact_keys as k);
    v_limit constant bigint := coalesce(max_rows, case
        when cardinality(user_ids) = 1
             and exists (select from builder_score.score_state as s where s.user_id = user_ids[1] and s.rows_read is not null) then 0
        else 1000 end);
    f record;
begin
    select coalesce(max(s.max_points) filter (where s.signal = 'shipped'), 0) as shipped_max,
           coalesce(max(s.scale) filter (where s.signal = 'shipped'), 0) as shipped_scale,
           coalesce(max(s.max_points) filter (where s.signal = 'vouches'), 0) as vouches_max,
           coalesce(max(s.scale) filter (where s.signal = 'vouches'), 0) as vouches_scale,
           coalesce(max(s.max_points) filter (where s.signal = 'impact'), 0) as impact_max,
           coalesce(max(s.scale) filter (where s.signal = 'impact'), 0) as impact_scale,
           coalesce(max(s.max_points) filter (where s.signal = 'profile'), 0) as profile_max,
           coalesce(max(s.scale) filter (where s.signal = 'profile'), 0) as profile_scale,
           coalesce(max(s.max_points) filter (where s.signal = 'age'), 0) as age_max,
           coalesce(max(s.scale) filter (where s.signal = 'age'), 0) as age_scale
    into f
    from builder_score.signals as s;

    -- Each lateral part keeps to one user or one project (aggregate, limit, offset 0), so that the planner cannot
    -- turn the batch into a scan of a whole host table, whatever its statistics say or lack.
    return query
    select p.user_id,
           p.shipped, p.shipped_points,
           p.vouches, p.vouches_points,
           p.impact, p.impact_points,
           p.profile, p.profile_points,
           p.age, p.age_points,
           case when p.rows_read <= max_rows is not false then round(least(greatest(
               p.shipped_points + p.vouches_points + p.impact_points + p.profile_points + p.age_points,
               0), 100)::numeric, 6) end,
           p.stored, p.rows_read, p.place::integer
    from (
        select i.user_id,
               n.shipped::numeric as shipped,
               least(f.shipped_max, f.shipped_scale * ln(n.shipped + 1) / ln(2)) as shipped_points,
               n.people::numeric as vouches,
               least(f.vouches_max, f.vouches_scale * ln(n.people + 1) / ln(2)) as vouches_points,
               n.impact as impact,
               least(f.impact_max, f.impact_scale * builder_score.log10_of_one_plus(n.impact)) as impact_points,
               host.profile::numeric as profile,
               least(f.profile_max, f.profile_scale * host.profile) as profile_points,
               host.age_days::numeric as age,
               least(f.age_max, f.age_scale * host.age_days / 365) as age_points,
               host.stored,
               n.rows_read,
               i.place
        from (
            select o.user_id, o.as_of, o.place
            from unnest(user_ids, as_of) with ordinality as o(user_id, as_of, place)
            where compute.until is null or o.place <= 50 or clock_timestamp() <= compute.until
        ) as i
        cross join lateral (
            select u.profile_filled::double precision / greatest(u.profile_fields, 1) as profile,
                   case when isfinite(u.created_at)
                        then greatest(floor((extract(epoch from i.as_of) - extract(epoch from u.created_at)) / 86400), 0)
                        when u.created_at = '-infinity' then 1e6
                        else 0
                   end::double precision as age_days,
                   u.builder_score::numeric as stored
            from builder_score.host_users as u
            where u.id = i.user_id
            limit 1
        ) as host
        cross join lateral (
            select count(*) filter (where p.status = any(v_shipped))::double precision as shipped,
                   coalesce(sum(p.github_stars + m.impact), 0) as impact,
                   array_agg(p.id) as ids,
                   count(*) as rows_read
            from (
                select h.id, h.status, h.github_stars, h.impact_metrics
                from builder_score.host_projects as h
                where h.owner_id = i.user_id
                limit v_limit + 1
            ) as p
            cross join lateral (
                select coalesce(sum(builder_score.count_of(p.impact_metrics -> k.key)), 0) as impact
                from unnest(v_keys) as k(key)
            ) as m
        ) as owned
        cross join lateral (
            select count(distinct v.person) filter (where v.person <> i.user_id)::double precision as people,
                   count(*) as rows_read
            from (
                select c.user_id as person
                from unnest(case when owned.rows_read <= v_limit then owned.ids end) as p(id)
                cross join lateral (
                    select k.user_id from builder_score.host_collaborations as k
                    where k.project_id = p.id and k.status = any(v_confirmed)
                    offset 0
                ) as c
                union all
                select p.owner_id
                from builder_score.host_collaborations as c
                cross join lateral (
                    select h.owner_id from builder_score.host_projects as h where h.id = c.project_id offset 0
                ) as p
                where c.user_id = i.user_id and c.status = any(v_confirmed) and owned.rows_read <= v_limit
                limit v_limit + 1
            ) as v
        ) as vouched
        cross join lateral (
            select owned.shipped, owned.impact, vouched.people, owned.rows_read + vouched.rows_read as rows_read
            where max_rows is not null or greatest(owned.rows_read, vouched.rows_read) <= v_limit
            union all
            select m.shipped, m.impact, m.people, m.rows_read
            from builder_score.count_many(i.user_id, v_shipped, v_confirmed, v_keys) as m
            where max_rows is null and greatest(owned.rows_read, vouched.rows_read) > v_limit
        ) as n
    ) as p;
end
$function$;

comment on function builder_score.compute(builder_score.user_id[], timestamptz[], bigint, timestamptz) is
    'Raw value and points of every signal, and the score (0 to 100, 6 decimals), of each user that exists, '
    'with the account''s age taken as of the moment at the same place in as_of.';
