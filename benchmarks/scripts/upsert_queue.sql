-- What many would write first: one row a user, so that the queue stays short.
create table upsert_queue (
    user_id uuid primary key,
    enqueued_at timestamptz not null
);

create function append_by_upsert() returns trigger language plpgsql as $function$
begin
    insert into upsert_queue (user_id, enqueued_at) values (new.owner_id, clock_timestamp())
    on conflict (user_id) do update set enqueued_at = excluded.enqueued_at;
    return null;
end
$function$;

create trigger append_by_upsert after update on projects for each row
when (old.status is distinct from new.status or old.github_stars is distinct from new.github_stars
      or old.impact_metrics is distinct from new.impact_metrics)
execute function append_by_upsert();
