-- What only one may do at a time. Whoever does it has its row locked until the transaction ends.
-- reads: nothing          writes: turns (locks)

-- Rows, and no advisory locks: those are anybody's to take who may connect, and these only their owner's.
create table builder_score.turns (
    turn text primary key
);

comment on table builder_score.turns is 'What only one may do at a time: whoever does it has its row locked until the transaction ends.';
comment on column builder_score.turns.turn is 'What it is.';

insert into builder_score.turns (turn) values ('catch ids up'), ('change statuses'), ('sum score_counts up'), ('begin a walk');

create function builder_score.is_our_turn(turn text) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: turns
-- writes: turns (a lock)
begin
    perform from builder_score.turns as t where t.turn = is_our_turn.turn for update skip locked;
    return found;
end
$function$;

comment on function builder_score.is_our_turn(text) is
    'Whether nobody else does it, and until the transaction ends nobody else will. Waits for nobody.';

create function builder_score.wait_for_our_turn(turn text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: turns
-- writes: turns (a lock)
begin
    perform from builder_score.turns as t where t.turn = wait_for_our_turn.turn for update;
end
$function$;

comment on function builder_score.wait_for_our_turn(text) is 'Returns when nobody else does it, and until the transaction ends nobody else will.';
