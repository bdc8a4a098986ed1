-- Why a score is what it is.
-- reads: what compute() reads          writes: nothing

create function builder_score.unknown_user(user_id builder_score.user_id) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
begin
    raise exception 'user "%" does not exist', unknown_user.user_id
        using errcode = 'no_data_found',
              detail = 'There is no row with this id in the host''s users table.',
              hint = 'Check the id; ids are those of users.id.';
end
$function$;

comment on function builder_score.unknown_user(builder_score.user_id) is 'Raises the one error for a user who does not exist.';

create function builder_score.require_attached() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: host
-- writes: nothing
begin
    if (select h.attached_at is null from builder_score.host as h) then
        raise exception 'builder_score is detached from the host''s tables'
            using errcode = 'object_not_in_prerequisite_state',
                  detail = 'Its views and triggers were removed by detach(); scores stay as they were.',
                  hint = 'SELECT * FROM builder_score.attach();';
    end if;
end
$function$;

comment on function builder_score.require_attached() is 'Raises the one error for a schema that is detached.';

create function builder_score.explain(user_id builder_score.user_id)
returns table (signal text, raw numeric, points double precision, max_points double precision)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: host_users, host_projects, host_collaborations, signals, statuses, impact_keys
-- writes: nothing
#variable_conflict use_column
begin
    perform builder_score.require_attached();
    return query
    select v.signal, v.raw, v.points, coalesce(s.max_points, 0)
    from builder_score.compute(array[explain.user_id], array[clock_timestamp()]) as c
    cross join lateral (values
        (1, 'shipped', c.shipped, c.shipped_points),
        (2, 'vouches', c.vouches, c.vouches_points),
        (3, 'impact', c.impact, c.impact_points),
        (4, 'profile', c.profile, c.profile_points),
        (5, 'age', c.age, c.age_points)
    ) as v(place, signal, raw, points)
    left join builder_score.signals as s on s.signal = v.signal
    order by v.place;
    if not found then
        perform builder_score.unknown_user(explain.user_id);
    end if;
end
$function$;

comment on function builder_score.explain(builder_score.user_id) is
    'What the score would be now, and why: one row per signal. The points add up to the score before it is rounded.';
