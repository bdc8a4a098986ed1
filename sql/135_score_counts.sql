-- How many people have each score, so that a rank need not count people: the scores are few.
-- reads: score_state          writes: score_counts

create table builder_score.score_counts (
    appended_by xid8 not null default pg_current_xact_id(),
    id uuid not null default gen_random_uuid(),
    scores numeric[] not null,
    people bigint[] not null,
    people_up_to bigint[],
    stands_for pg_snapshot,
    written_by xid,
    constraint score_counts_pkey primary key (appended_by, id)
) with (
    -- Applications read it for a rank, and would wait for a vacuum that gives back the end of the file.
    vacuum_truncate = off,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 500
);

create index score_counts_sum on builder_score.score_counts (appended_by) where stands_for is not null;

-- Append-only, so that nobody waits: a row per statement that changed scores, by how many people each score became more
-- or less common. Now and then all rows are deleted and their sum is appended, in one statement: whatever snapshot looks
-- at the table, its rows add up to what score_state has in that snapshot.
comment on table builder_score.score_counts is 'How many people have each score: the sum over all rows. Kept by triggers on score_state.';
comment on column builder_score.score_counts.appended_by is 'The transaction that appended the row.';
comment on column builder_score.score_counts.id is 'Tells its rows apart.';
comment on column builder_score.score_counts.scores is 'Scores that became more or less common.';
comment on column builder_score.score_counts.people is 'By how many people; parallel to scores.';
comment on column builder_score.score_counts.people_up_to is
    'Of a sum, whose scores ascend: how many people have such a score or a lower one; parallel to scores. A rank is one place in it.';
comment on column builder_score.score_counts.stands_for is 'Of a sum: the snapshot whose rows it replaced; null: what one statement changed.';
comment on column builder_score.score_counts.written_by is
    'Of a sum: its own xmin, a subtransaction''s as a rule. Another one has a row that was restored, or replicated: its transactions are another server''s.';
comment on constraint score_counts_pkey on builder_score.score_counts is 'Random, so that it is unique without waiting, on a promoted subscriber too.';
comment on index builder_score.score_counts_sum is 'Sums, the newest last: one look past all that were deleted, while vacuum is held back.';

create function builder_score.counts_since(first_later xid8, unfinished xid8[])
returns table (place tid, scores numeric[], people bigint[])
language sql stable
begin atomic
    select r.ctid, r.scores, r.people
    from builder_score.score_counts as r
    where r.appended_by >= counts_since.first_later and r.stands_for is null
    union all
    select r.ctid, r.scores, r.people
    from builder_score.score_counts as r
    where r.appended_by = any(counts_since.unfinished) and r.appended_by < counts_since.first_later and r.stands_for is null;
end;

comment on function builder_score.counts_since(xid8, xid8[]) is
    'The rows that a sum does not hold: of transactions that were unfinished when it was made, and of those that began later. Inlined.';

create view builder_score.newest_score_sum as
select c.ctid as place, c.scores, c.people, c.people_up_to,
       pg_snapshot_xmax(c.stands_for) as first_later,
       array(select pg_snapshot_xip(c.stands_for)) || c.appended_by as unfinished,
       c.xmin = c.written_by as genuine
from builder_score.score_counts as c
where c.stands_for is not null
order by c.appended_by desc
limit 1;

comment on view builder_score.newest_score_sum is 'The last sum in score_counts, and what it does not hold.';
comment on column builder_score.newest_score_sum.place is 'ctid of the row.';
comment on column builder_score.newest_score_sum.scores is 'Scores, the lowest first.';
comment on column builder_score.newest_score_sum.people is 'How many people have each; parallel to scores.';
comment on column builder_score.newest_score_sum.people_up_to is 'How many have it or a lower one; parallel to scores.';
comment on column builder_score.newest_score_sum.first_later is 'It holds nothing of this transaction and those after it.';
comment on column builder_score.newest_score_sum.unfinished is 'Nor of these, which are earlier or its own.';
comment on column builder_score.newest_score_sum.genuine is 'False: it came from another server, whose transactions these are, and says nothing here.';

create view builder_score.live_score_counts as
with newest as materialized (
    select * from builder_score.newest_score_sum
)
select n.place, n.scores, n.people
from newest as n
where n.genuine
union all
select c.place, c.scores, c.people
from newest as n
cross join lateral builder_score.counts_since(n.first_later, n.unfinished) as c
where n.genuine
union all
select c.ctid, c.scores, c.people
from builder_score.score_counts as c
where not exists (select from newest as n where n.genuine);

-- The table may hold any number of deleted rows for as long as somebody holds back vacuum. So they are not waded through:
-- what the newest sum did not see was appended by transactions that had not ended by then, and is found by their ids.
comment on view builder_score.live_score_counts is
    'All rows of score_counts that can be seen, by a way that does not lead through those deleted before the newest sum.';
comment on column builder_score.live_score_counts.place is 'ctid of the row.';
comment on column builder_score.live_score_counts.scores is 'Scores that became more or less common.';
comment on column builder_score.live_score_counts.people is 'By how many people; parallel to scores.';

create function builder_score.count_scores() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: the rows that the statement wrote
-- writes: score_counts
begin
    if tg_op = 'UPDATE' then
        insert into builder_score.score_counts (scores, people)
        select array_agg(g.score), array_agg(g.people)
        from (
            select c.score, sum(c.people)::bigint as people
            from (select o.score, -1 as people from old_states as o union all select n.score, 1 from new_states as n) as c
            where c.score is not null
            group by c.score
            having sum(c.people) <> 0
        ) as g
        having count(*) > 0;
    elsif tg_op = 'INSERT' then
        insert into builder_score.score_counts (scores, people)
        select array_agg(g.score), array_agg(g.people)
        from (select n.score, count(*) as people from new_states as n where n.score is not null group by n.score) as g
        having count(*) > 0;
    else
        insert into builder_score.score_counts (scores, people)
        select array_agg(g.score), array_agg(g.people)
        from (select o.score, -count(*) as people from old_states as o where o.score is not null group by o.score) as g
        having count(*) > 0;
    end if;
    return null;
end
$function$;

comment on function builder_score.count_scores() is 'Trigger: appends by how many people each score became more or less common.';

create function builder_score.truncate_score_counts() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: score_counts
-- As TRUNCATE itself, whatever the snapshot: nobody else has a change of score_state under way.
begin
    truncate builder_score.score_counts;
    return null;
end
$function$;

comment on function builder_score.truncate_score_counts() is 'Trigger: nobody has a score any more.';

create function builder_score.leave_out_score_counts() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: nothing
begin
    return null;
end
$function$;

comment on function builder_score.leave_out_score_counts() is 'Trigger: leaves a row out.';

-- Where a data-only restore fires triggers, those above count the rows of score_state; where it fires none, this one leaves none out.
create trigger leave_out_restored before insert on builder_score.score_counts
    for each row when (new.appended_by <> pg_current_xact_id()) execute function builder_score.leave_out_score_counts();

comment on trigger leave_out_restored on builder_score.score_counts is
    'What a restore brings is left out where triggers fire: they have counted it.';

create trigger count_inserted after insert on builder_score.score_state
    referencing new table as new_states for each statement execute function builder_score.count_scores();
create trigger count_updated after update on builder_score.score_state
    referencing old table as old_states new table as new_states for each statement execute function builder_score.count_scores();
create trigger count_deleted after delete on builder_score.score_state
    referencing old table as old_states for each statement execute function builder_score.count_scores();
create trigger count_truncated after truncate on builder_score.score_state
    for each statement execute function builder_score.truncate_score_counts();

comment on trigger count_inserted on builder_score.score_state is 'Keeps score_counts.';
comment on trigger count_updated on builder_score.score_state is 'Keeps score_counts.';
comment on trigger count_deleted on builder_score.score_state is 'Keeps score_counts.';
comment on trigger count_truncated on builder_score.score_state is 'Keeps score_counts.';

create function builder_score.compact_score_counts(at_least integer default 8) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $function$
-- reads: score_counts
-- writes: score_counts, turns (a lock)
-- One at a time; who comes second has nothing to do. In an older snapshot than the lock's the rows may be gone already.
declare
    v_written_by xid;
begin
    if (select count(*) from (select from builder_score.live_score_counts limit at_least) as l) < at_least
       or current_setting('transaction_isolation') not in ('read committed', 'read uncommitted')
       or not builder_score.is_our_turn('sum score_counts up') then
        return false;
    end if;
    insert into builder_score.score_counts as c (scores, people) values ('{}', '{}') returning c.xmin into v_written_by;
    with gone as (
        delete from builder_score.score_counts as c
        where c.ctid = any(array(select l.place from builder_score.live_score_counts as l))
        returning c.scores, c.people
    ),
    summed as (
        select r.score, sum(r.people)::bigint as people
        from gone as g
        cross join lateral unnest(g.scores, g.people) as r(score, people)
        group by r.score
        having sum(r.people) <> 0
    )
    insert into builder_score.score_counts (scores, people, people_up_to, stands_for, written_by)
    select coalesce(array_agg(s.score order by s.score), '{}'), coalesce(array_agg(s.people order by s.score), '{}'),
           coalesce(array_agg(s.people_up_to order by s.score), '{}'), pg_current_snapshot(), v_written_by
    from (select u.*, sum(u.people) over (order by u.score)::bigint as people_up_to from summed as u) as s;
    return true;
end
$function$;

comment on function builder_score.compact_score_counts(integer) is
    'Where there are so many rows in score_counts, puts their sum in their place. Waits for nobody, and makes nobody wait. Says whether it did.';
