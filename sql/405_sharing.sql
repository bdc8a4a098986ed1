-- Workers side by side: which of the due users each prefers. A preference only: what keeps them right are the row locks.
-- reads: nothing          writes: advisory locks

create function builder_score.take_place(out place integer, out places integer) returns record
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: nothing
-- writes: advisory locks
-- A place is a lock that ends with the batch's transaction, whatever becomes of it: who naps, has crashed or was killed
-- leaves the share to the others at once. place: how many of the others are before ours.
declare
    v_ours integer;
begin
    place := 0;
    places := 1;
    for i in 101..124 loop
        if v_ours is null and pg_try_advisory_xact_lock(1651271539, i) then
            v_ours := i;
        elsif pg_try_advisory_lock_shared(1651271539, i) then
            perform pg_advisory_unlock_shared(1651271539, i);
        else
            place := place + (v_ours is null)::integer;
            places := places + 1;
        end if;
    end loop;
    if v_ours is null then      -- a crowd: alone, as far as we know
        place := 0;
        places := 1;
    end if;
end
$function$;

comment on function builder_score.take_place() is
    'Takes one of the places of those who are in a batch, until the transaction ends. Of how many it is which.';

create function builder_score.is_share(user_id builder_score.user_id, place integer, places integer) returns boolean
language sql immutable parallel safe
return places = 1 or (hashtext(user_id::text) & 2147483647) % places = place;

comment on function builder_score.is_share(builder_score.user_id, integer, integer) is
    'Whether the worker at that place takes the user before the others do.';
