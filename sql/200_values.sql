-- How one stored value is read. People type these values: nothing that a column can hold may raise.
-- Standard-conforming bodies, so that names are bound here and the planner can inline them.
-- reads: nothing          writes: nothing

create function builder_score.is_filled(value text) returns boolean
language sql immutable parallel safe
-- White space is Unicode's, not the locale's. A value of 20 MB is not searched (the regular expression
-- engine would need four times as much memory, and fails above 1 GB): it counts as filled.
return coalesce(
    octet_length(value) > 20000000
        or value >= '!' collate "C" and value < E'\x7f' collate "C"    -- it begins like most: no regular expression is run
        or value ~ '[^\s\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]',
    false
);

comment on function builder_score.is_filled(text) is 'True when the text holds more than white space.';

create function builder_score.is_filled(value jsonb) returns boolean
language sql immutable parallel safe
return coalesce(jsonb_typeof(value) = 'object' and value <> '{}'::jsonb, false);

comment on function builder_score.is_filled(jsonb) is 'True when the value is a JSON object with at least one key.';

create function builder_score.count_of(value numeric) returns numeric
language sql immutable parallel safe
-- 10^400 is far beyond any curve's maximum and keeps a sum of many inside numeric's range; 10^-20 is far below any
-- curve's least step and keeps the conversion to double precision from raising an underflow.
return case
    when value > 0 and value < 'Infinity'::numeric then trim_scale(round(least(value, 1e400), 20))
    else 0
end;

comment on function builder_score.count_of(numeric) is 'The value as a count: null, negative, NaN and infinite are 0; nothing is larger than 10^400.';

create function builder_score.count_of(value jsonb) returns numeric
language sql immutable parallel safe
return case jsonb_typeof(value)
    -- as above, and only once: inlined, each mention looks the key up again; there is no NaN and no Infinity in JSON
    when 'number' then trim_scale(round(least(greatest(value::numeric, 0), 1e400), 20))
    when 'string' then case
        when octet_length(value #>> '{}') > 20000000 or (value #>> '{}') !~ '^[0-9]+(\.[0-9]+)?$' then 0
        when length(ltrim(split_part(value #>> '{}', '.', 1), '0')) > 400 then 1e400
        else builder_score.count_of((
            right(split_part(value #>> '{}', '.', 1), 401) || '.' || left(split_part(value #>> '{}', '.', 2) || '0', 20)
        )::numeric)
    end
    else 0
end;

comment on function builder_score.count_of(jsonb) is
    'The value as a count: a JSON number, or text of the form 12 or 12.5; anything else is 0.';

create function builder_score.to_jsonb_or_null(value text) returns jsonb
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $function$
-- not parallel safe: the exception block is a subtransaction
begin
    return value::jsonb;
exception when others then
    return null;    -- not JSON, or JSON that jsonb cannot hold (\u0000)
end
$function$;

comment on function builder_score.to_jsonb_or_null(text) is 'For hosts that keep JSON in a json or text column: the value as jsonb, or null where it is none.';
