-- What a DBA may turn. One row; every limit is a constraint whose name says what is expected.
-- reads: nothing          writes: settings

create table builder_score.settings (
    one_row boolean primary key default true,
    debounce_window interval not null default '5 minutes',
    batch_size integer not null default 500,
    batch_target interval not null default '0.05 seconds',
    workers integer not null default 1,
    poll_interval interval not null default '0.1 seconds',
    max_attempts integer not null default 5,
    retry_base interval not null default '10 seconds',
    retry_cap interval not null default '1 hour',
    refresh_after interval not null default '7 days',
    backfill_per_second integer not null default 5000,
    notify_max_ids integer not null default 2000,
    lock_timeout interval not null default '0.1 seconds',
    paused boolean not null default false,
    paused_reason text,
    constraint "settings has exactly one row" check (one_row),
    constraint "debounce_window must be between 0 and 1 day"
        check (debounce_window >= '0 seconds' and debounce_window <= '1 day'),
    constraint "batch_size must be between 1 and 10000" check (batch_size between 1 and 10000),
    constraint "workers must be between 1 and 16" check (workers between 1 and 16),
    constraint "batch_target must be between 1 ms and 10 seconds"
        check (batch_target >= '0.001 seconds' and batch_target <= '10 seconds'),
    constraint "poll_interval must be between 20 ms and 1 second"
        check (poll_interval >= '0.02 seconds' and poll_interval <= '1 second'),
    constraint "max_attempts must be between 1 and 100" check (max_attempts between 1 and 100),
    constraint "retry_base must be between 10 ms and 1 hour"
        check (retry_base >= '0.01 seconds' and retry_base <= '1 hour'),
    constraint "retry_cap must be between retry_base and 7 days"
        check (retry_cap >= retry_base and retry_cap <= '7 days'),
    constraint "refresh_after must be between 1 day and 365 days"
        check (refresh_after >= '1 day' and refresh_after <= '365 days'),
    constraint "backfill_per_second must be between 1 and 1000000"
        check (backfill_per_second between 1 and 1000000),
    constraint "notify_max_ids must be between 0 and 5000" check (notify_max_ids between 0 and 5000),
    constraint "lock_timeout must be between 1 ms and 10 seconds"
        check (lock_timeout >= '0.001 seconds' and lock_timeout <= '10 seconds')
);

comment on table builder_score.settings is 'What a DBA may turn: one row. A change takes effect with the next batch.';
comment on column builder_score.settings.one_row is 'Always true: keeps the table at one row.';
comment on column builder_score.settings.debounce_window is 'Least time between two unforced recalculations of a user; 0 is off.';
comment on column builder_score.settings.batch_size is 'Users that a worker takes in one transaction, at most.';
comment on column builder_score.settings.batch_target is 'How long a transaction of a worker''s is to take: it takes fewer users when it takes longer.';
comment on column builder_score.settings.workers is 'Resident workers side by side, one connection each; after a change SELECT * FROM builder_score.schedule() again.';
comment on column builder_score.settings.poll_interval is 'Longest nap of an idle worker: the first score after a pause is a little further away.';
comment on column builder_score.settings.max_attempts is 'Failures in a row after which a user goes to score_dead_letter.';
comment on column builder_score.settings.retry_base is 'Wait after the first failure; doubles with every further one.';
comment on column builder_score.settings.retry_cap is 'Longest wait between two attempts.';
comment on column builder_score.settings.refresh_after is 'Age at which the score of a still ageing account is computed anew.';
comment on column builder_score.settings.backfill_per_second is 'Users a second that a backfill puts into the queue.';
comment on column builder_score.settings.notify_max_ids is 'Changed users above which one NOTIFY says "all" instead of naming them.';
comment on column builder_score.settings.lock_timeout is 'How long a batch may wait for a lock (a host trigger''s, another worker''s): at most half of deadlock_timeout, else it is the application that a deadlock ends.';
comment on column builder_score.settings.paused is 'True: workers leave at once and start nothing.';
comment on column builder_score.settings.paused_reason is 'Why, for the next person who looks.';

insert into builder_score.settings default values;

create function builder_score.keep_settings_row() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
begin
    raise exception 'the row of builder_score.settings cannot be removed'
        using errcode = 'restrict_violation',
              detail = 'Every worker reads its settings from this one row.',
              hint = 'UPDATE the columns that should change.';
end
$function$;

comment on function builder_score.keep_settings_row() is 'Trigger: refuses to remove the one row of settings.';

create trigger keep_settings_row before delete on builder_score.settings
    for each row execute function builder_score.keep_settings_row();
create trigger keep_settings_row_on_truncate before truncate on builder_score.settings
    for each statement execute function builder_score.keep_settings_row();

comment on trigger keep_settings_row on builder_score.settings is 'Refuses to delete the one row.';
comment on trigger keep_settings_row_on_truncate on builder_score.settings is 'Refuses to truncate the one row away.';
