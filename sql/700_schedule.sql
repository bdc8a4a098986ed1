-- The pg_cron job. SECURITY INVOKER: the job runs as whoever schedules it.
-- reads: pg_catalog, cron.job          writes: cron.job, host_additions

create function builder_score.schedule() returns setof text
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: pg_extension, pg_settings
-- writes: cron.job, host_additions
declare
    -- pg_settings hides what the caller may not see, where current_setting() raises; null: cannot know, so try
    v_preloaded constant boolean := (select s.setting ~ '\mpg_cron\M' from pg_settings as s where s.name = 'shared_preload_libraries');
    v_database constant text := (select s.setting from pg_settings as s where s.name = 'cron.database_name');
    v_why text;
begin
    if not exists (select from pg_extension where extname = 'pg_cron') then
        if not exists (select from pg_available_extensions where name = 'pg_cron') then
            v_why := 'pg_cron is not installed on this server';
        elsif not v_preloaded then
            v_why := 'pg_cron is installed, but shared_preload_libraries does not name it';
        elsif v_database <> current_database() then
            v_why := format('pg_cron works in database "%s" (cron.database_name), not in "%s"', v_database, current_database());
        else
            begin
                create extension pg_cron;
                insert into builder_score.host_additions (kind, schema_name, table_name, object_name)
                values ('extension', 'pg_catalog', 'pg_cron', 'pg_cron');
                return next 'extension pg_cron';
            exception when insufficient_privilege then
                v_why := format('%s may not create the extension pg_cron (a superuser: CREATE EXTENSION pg_cron; GRANT USAGE ON SCHEMA cron TO %I;)', current_user, current_user);
            end;
        end if;
    end if;

    if v_why is null then
        begin
            -- cron.schedule() with a name is idempotent for one role.
            execute 'select cron.schedule($1, $2, $3)' using 'builder-score-worker', '* * * * *', 'call builder_score.run_worker()';
            -- After a crash the minute's tick may be a minute away; this one comes with the server.
            execute 'select cron.schedule($1, $2, $3)' using 'builder-score-worker-at-start', '@reboot', 'call builder_score.run_worker()';
            return next format('pg_cron job builder-score-worker, as %s', current_user);
            if current_setting('statement_timeout')::interval > interval '0 seconds' then
                raise warning 'statement_timeout is % for %: the worker leaves before it strikes, and pauses until the next minute', current_setting('statement_timeout'), current_user
                    using hint = format('ALTER ROLE %I IN DATABASE %I SET statement_timeout = 0;', current_user, current_database());
            end if;
            return;
        exception when insufficient_privilege then
            v_why := format('%s may not use pg_cron (a superuser: GRANT USAGE ON SCHEMA cron TO %I;)', current_user, current_user);
        end;
    end if;

    return next format('no pg_cron job: %s; keep `pyscore worker` running instead, or put it right and SELECT * FROM builder_score.schedule();', v_why);
end
$function$;

comment on function builder_score.schedule() is
    'Creates the pg_cron job builder-score-worker, or says why it cannot and what runs instead. Idempotent. The job runs as the caller.';

create function builder_score.unschedule() returns setof text
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: cron.job, host_additions
-- writes: cron.job, host_additions
declare
    v_job record;
    v_others boolean;
begin
    if not exists (select from pg_extension where extname = 'pg_cron') or not has_schema_privilege('cron', 'usage') then
        return;     -- no job of ours can be there: scheduling takes the same privilege
    end if;
    -- By id: another role's job cannot be named, not even by a superuser.
    for v_job in execute
        'select jobid, jobname from cron.job where jobname like ''builder-score-worker%'' and database = current_database()'
    loop
        execute 'select cron.unschedule($1::bigint)' using v_job.jobid;
        return next format('pg_cron job %s removed', v_job.jobname);
    end loop;

    if exists (select from builder_score.host_additions where kind = 'extension' and object_name = 'pg_cron') then
        execute 'select exists (select from cron.job)' into v_others;
        if v_others then
            return next 'extension pg_cron is kept: it has other jobs';
        else
            drop extension pg_cron;
            return next 'extension pg_cron removed';
        end if;
        delete from builder_score.host_additions where kind = 'extension' and object_name = 'pg_cron';
    end if;
end
$function$;

comment on function builder_score.unschedule() is
    'Removes our pg_cron jobs in this database, and the extension if we created it and nobody else uses it. A running worker stops by its own flag.';
