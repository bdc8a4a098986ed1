-- The formula, as rows. Changing any of them enqueues everyone.
-- reads: nothing          writes: signals, statuses, impact_keys

create table builder_score.signals (
    signal text primary key,
    max_points double precision not null,
    scale double precision not null,
    description text not null,
    constraint "signal must be shipped, vouches, impact, profile or age"
        check (signal in ('shipped', 'vouches', 'impact', 'profile', 'age')),
    constraint "max_points must be between 0 and 100" check (max_points between 0 and 100),
    constraint "scale must be between 0 and 1000" check (scale between 0 and 1000)
);

comment on table builder_score.signals is 'The five signals. A signal with max_points 0 is off. A change enqueues everyone.';
comment on column builder_score.signals.signal is 'Its name.';
comment on column builder_score.signals.max_points is 'Points are cut off here.';
comment on column builder_score.signals.scale is 'Factor of the curve that description names.';
comment on column builder_score.signals.description is 'Raw value and curve, for people.';

insert into builder_score.signals (signal, max_points, scale, description) values
    ('shipped', 30, 10, 'projects owned with a shipped status: scale * log2(n + 1)'),
    ('vouches', 25, 8, 'distinct other people with a confirmed collaboration: scale * log2(n + 1)'),
    ('impact', 20, 4, 'stars and impact metrics over all projects owned: scale * log10(n + 1)'),
    ('profile', 15, 15, 'share of the profile fields filled: scale * share'),
    ('age', 10, 10, 'whole days since sign-up: scale * days / 365');

create table builder_score.statuses (
    meaning text not null,
    status text not null,
    primary key (meaning, status),
    constraint "meaning must be shipped or confirmed" check (meaning in ('shipped', 'confirmed'))
);

comment on table builder_score.statuses is 'Which of the host''s statuses mean shipped (projects) and confirmed (project_collaborators).';
comment on column builder_score.statuses.meaning is 'shipped or confirmed.';
comment on column builder_score.statuses.status is 'The host''s status, as text.';

insert into builder_score.statuses (meaning, status) values ('shipped', 'shipped'), ('confirmed', 'confirmed');

create table builder_score.impact_keys (
    key text primary key
);

comment on table builder_score.impact_keys is 'Keys of projects.impact_metrics whose values count as impact, beside github_stars.';
comment on column builder_score.impact_keys.key is 'A top-level key of the JSON object.';

insert into builder_score.impact_keys (key) values ('users');

create function builder_score.formula_stamp() returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: signals, statuses, impact_keys
-- writes: nothing
-- plpgsql keeps the plan: each batch asks for it.
begin
    return left(md5(
        (select string_agg(format('%s %s %s', signal, max_points, scale), ',' order by signal collate "C") from builder_score.signals)
        || ';' || coalesce((select string_agg(format('%s %s', meaning, status), ',' order by meaning collate "C", status collate "C") from builder_score.statuses), '')
        || ';' || coalesce((select string_agg(key, ',' order by key collate "C") from builder_score.impact_keys), '')
    ), 12);
end
$function$;

comment on function builder_score.formula_stamp() is
    'Names the formula in force: a hash of its rows, kept with every score, so that one computed with an older formula shows.';

create sequence builder_score.statuses_changed_by;

comment on sequence builder_score.statuses_changed_by is
    'The transaction that changed statuses last. A sequence, because it is read past the snapshot of whoever reads it.';

create function builder_score.statuses_have_changed() returns boolean
language sql volatile
set search_path = pg_catalog, pg_temp
as $function$
-- reads: statuses_changed_by
-- writes: nothing
    select current_setting('transaction_isolation') in ('repeatable read', 'serializable')
       and not pg_visible_in_snapshot((select c.last_value::text::xid8 from builder_score.statuses_changed_by as c), pg_current_snapshot());
$function$;

comment on function builder_score.statuses_have_changed() is
    'Whether statuses may have changed since this transaction took its snapshot: then what it sees as uncounted may count.';

create function builder_score.keep_statuses_change_past() returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: statuses_changed_by
-- writes: statuses_changed_by, turns (a lock)
-- Restored from a dump it may name a transaction of another server's that is yet to come here, and statuses would seem
-- to change all the time. Whoever changes them holds the lock to the end, so what we see under it has ended or is foreign.
begin
    if (select c.last_value::text::xid8 from builder_score.statuses_changed_by as c) >= pg_snapshot_xmax(pg_current_snapshot())
       and builder_score.is_our_turn('change statuses') then
        if (select c.last_value::text::xid8 from builder_score.statuses_changed_by as c) >= pg_snapshot_xmax(pg_current_snapshot()) then
            perform setval('builder_score.statuses_changed_by', pg_snapshot_xmax(pg_current_snapshot())::text::bigint);
        end if;
    end if;
end
$function$;

comment on function builder_score.keep_statuses_change_past() is
    'Where a restore has left statuses_changed_by ahead of this server''s transactions, brings it back to them. The worker calls it.';

create function builder_score.formula_changed() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: score_recalc_queue, statuses_changed_by, turns (a lock)
declare
    v_changed boolean := true;
begin
    if tg_op = 'INSERT' then
        v_changed := exists (select from new_rows);
    elsif tg_op = 'DELETE' then
        v_changed := exists (select from old_rows);
    elsif tg_op = 'UPDATE' then
        -- a description is for people
        v_changed := exists (
            select to_jsonb(n) - 'description' from new_rows as n
            except
            select to_jsonb(o) - 'description' from old_rows as o
        );
    end if;
    if v_changed then
        perform builder_score.enqueue_everyone(format('formula: %s', tg_table_name));
        if tg_table_name = 'statuses' then
            -- one after the other, so that the last id is that of the last to commit
            perform builder_score.wait_for_our_turn('change statuses');
            perform setval('builder_score.statuses_changed_by', pg_current_xact_id()::text::bigint);
        end if;
    end if;
    return null;
end
$function$;

comment on function builder_score.formula_changed() is 'Trigger: a statement that changed the formula concerns everyone.';

do $formula_triggers$
declare
    v_table name;
    v_event record;
begin
    foreach v_table in array array['signals', 'statuses', 'impact_keys']::name[] loop
        for v_event in
            select e.*
            from (values ('insert', 'referencing new table as new_rows'),
                         ('update', 'referencing old table as old_rows new table as new_rows'),
                         ('delete', 'referencing old table as old_rows'),
                         ('truncate', '')) as e(name, transition_tables)
        loop
            execute format('create trigger formula_%s after %s on builder_score.%I %s for each statement execute function builder_score.formula_changed()',
                v_event.name, v_event.name, v_table, v_event.transition_tables);
            execute format('comment on trigger formula_%s on builder_score.%I is %L', v_event.name, v_table, 'Enqueues everyone.');
        end loop;
    end loop;
end
$formula_triggers$;
