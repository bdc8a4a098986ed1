-- The pg_cron jobs. SECURITY INVOKER: a job runs as whoever schedules it, unless a superuser says otherwise.
-- Where pg_cron works in another database, pyscore schedule --cron-dsn connects to both.
-- reads: pg_catalog, cron.job          writes: cron.job, host_additions, scheduled_jobs

create function builder_score.note_job(cron_database name, job_name text, run_as name, job_id bigint) returns void
language sql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: pg_database
-- writes: scheduled_jobs
    insert into builder_score.scheduled_jobs (cron_database, job_name, run_as, job_id, database_oid)
    select note_job.cron_database, note_job.job_name, note_job.run_as, note_job.job_id, d.oid
    from pg_database as d
    where d.datname = current_database()
    on conflict on constraint scheduled_jobs_pkey do update
    set job_id = excluded.job_id, database_oid = excluded.database_oid, scheduled_at = now();
$function$;

comment on function builder_score.note_job(name, text, name, bigint) is 'Part of scheduling: remembers a job.';

create function builder_score.wanted_jobs() returns table (job_name text, schedule text, command text)
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: settings
-- writes: nothing
    select concat_ws('-', 'builder-score-worker', nullif(k.number, 1)), '* * * * *',
           format('call builder_score.run_worker(%s)', case when k.number > 1 then 'null, ' || k.number end)
    from builder_score.settings as s
    cross join lateral generate_series(1, s.workers) as k(number)
    union all
    -- After a crash the minute's tick may be a minute away; this one comes with the server, and does alone what is to be
    -- done until the others follow.
    select 'builder-score-worker-at-start', '@reboot', 'call builder_score.run_worker()';
$function$;

comment on function builder_score.wanted_jobs() is 'The pg_cron jobs that there are to be: one for each of settings.workers, and one that starts with the server.';

create function builder_score.schedule(run_as name default null) returns setof text
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: pg_extension, pg_settings
-- writes: cron.job, host_additions, scheduled_jobs
declare
    -- pg_settings hides what the caller may not see, where current_setting() raises; null: cannot know, so try
    v_preloaded constant boolean := (select s.setting ~ '\mpg_cron\M' from pg_settings as s where s.name = 'shared_preload_libraries');
    v_database constant text := (select s.setting from pg_settings as s where s.name = 'cron.database_name');
    v_run_as constant name := coalesce(schedule.run_as, current_user);
    v_why text;
    v_job record;
begin
    if not exists (select from pg_extension where extname = 'pg_cron') then
        if not exists (select from pg_available_extensions where name = 'pg_cron') then
            v_why := 'pg_cron is not installed on this server';
        elsif not v_preloaded then
            v_why := 'pg_cron is installed, but shared_preload_libraries does not name it';
        elsif v_database <> current_database() then
            v_why := format('pg_cron works in database "%s" (cron.database_name), not in "%s": pyscore schedule --cron-dsn ADDRESS, with the address of that one',
                v_database, current_database());
        else
            begin
                create extension pg_cron;
                insert into builder_score.host_additions (kind, schema_name, table_name, object_name)
                values ('extension', 'pg_catalog', 'pg_cron', 'pg_cron');
                return next 'extension pg_cron';
            exception
                when insufficient_privilege then
                    v_why := format('%s may not create the extension pg_cron (a superuser, in the database that cron.database_name names: '
                                    'CREATE EXTENSION pg_cron; GRANT USAGE ON SCHEMA cron TO %I; '
                                    'if that is not "%s": pyscore schedule --cron-dsn ADDRESS, with the address of that one)',
                                    current_user, current_user, current_database());
                when others then
                    v_why := format('the extension pg_cron could not be created (%s)', sqlerrm);
            end;
        end if;
    end if;

    v_why := coalesce(v_why, (
        select format('pg_cron is %s in this database, and 1.4 is the oldest that serves (ALTER EXTENSION pg_cron UPDATE;)', e.extversion)
        from pg_extension as e
        where e.extname = 'pg_cron' and string_to_array(substring(e.extversion from '^[0-9.]+'), '.')::integer[] < array[1, 4]));

    if v_why is null then
        begin
            if v_run_as <> current_user and not has_function_privilege(v_run_as, 'builder_score.run_worker(interval, integer)', 'execute') then
                raise exception 'role % may not run the worker', v_run_as
                    using errcode = 'insufficient_privilege',
                          detail = 'The job would fail each minute.',
                          hint = format('GRANT builder_score_operator TO %I;', v_run_as);
            end if;
            for v_job in
                select w.job_name, w.schedule, w.command from builder_score.wanted_jobs() as w
            loop
                -- With a name it is idempotent for one role.
                if v_run_as = current_user then
                    execute 'select builder_score.note_job(current_database(), $1, $4, cron.schedule($1, $2, $3))'
                    using v_job.job_name, v_job.schedule, v_job.command, v_run_as;
                else
                    execute 'select builder_score.note_job(current_database(), $1, $4, cron.schedule_in_database($1, $2, $3, current_database(), $4))'
                    using v_job.job_name, v_job.schedule, v_job.command, v_run_as;
                end if;
            end loop;
            return query select * from builder_score.remove_jobs(v_run_as);
            return next (
                select case s.workers when 1 then format('pg_cron job builder-score-worker, as %s', v_run_as)
                       else format('pg_cron jobs builder-score-worker to builder-score-worker-%s, as %s', s.workers, v_run_as) end
                from builder_score.settings as s);
            if v_run_as = current_user and current_setting('statement_timeout')::interval > interval '0 seconds' then
                raise warning 'statement_timeout is % for %: the worker leaves before it strikes, and pauses until the next minute', current_setting('statement_timeout'), current_user
                    using hint = format('ALTER ROLE %I IN DATABASE %I SET statement_timeout = 0;', current_user, current_database());
            end if;
            return;
        exception when insufficient_privilege then
            if v_run_as <> current_user then
                raise;
            end if;
            v_why := format('%s may not use pg_cron (a superuser: GRANT USAGE ON SCHEMA cron TO %I;)', current_user, current_user);
        end;
    end if;

    return next format('no pg_cron job: %s; keep `pyscore worker` running instead, or put it right and SELECT * FROM builder_score.schedule();', v_why);
end
$function$;

comment on function builder_score.schedule(name) is
    'Creates the pg_cron job builder-score-worker, and one more for each further one of settings.workers, or says why it cannot and '
    'what runs instead. Idempotent. The jobs run as the caller; only a superuser may name another role.';

create function builder_score.remove_jobs(but_of name default null) returns setof text
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: cron.job, settings
-- writes: cron.job, cron.job_run_details, scheduled_jobs
declare
    v_job record;
begin
    -- By id: another role's job cannot be named, not even by a superuser.
    for v_job in execute
        'select jobid, jobname, username from cron.job'
        ' where jobname ~ ''^builder-score-worker(-[0-9]{1,2})?(-at-start)?(@|$)'' and database = current_database()'
        '   and (username is distinct from $1'
        '        or substring(jobname from ''^builder-score-worker-([0-9]{1,2})\M'')::integer > (select s.workers from builder_score.settings as s))'
        using remove_jobs.but_of
    loop
        execute 'select cron.unschedule($1::bigint)' using v_job.jobid;
        execute 'delete from cron.job_run_details where jobid = $1' using v_job.jobid;
        delete from builder_score.scheduled_jobs as j where j.cron_database = current_database() and j.job_id = v_job.jobid;
        return next format('pg_cron job %s, as %s, removed', v_job.jobname, v_job.username);
    end loop;
    -- Notes of jobs that somebody else has removed, of those that the caller would see.
    execute
        'delete from builder_score.scheduled_jobs as j'
        ' where j.cron_database = current_database() and not exists (select from cron.job as c where c.jobid = j.job_id)'
        '   and (j.run_as = current_user or (select r.rolsuper or r.rolbypassrls from pg_roles as r where r.rolname = current_user))';
end
$function$;

comment on function builder_score.remove_jobs(name) is
    'Part of schedule() and unschedule(): removes those of our pg_cron jobs in this database that the caller may see, but for one role''s '
    'that settings.workers has use for.';

create function builder_score.left_jobs() returns setof text
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: scheduled_jobs
-- writes: nothing
    select format('in database "%s", as role %I or a superuser: %s', j.cron_database, j.run_as,
                  string_agg(format('SELECT cron.unschedule(%s);', j.job_id), ' ' order by j.job_id))
    from builder_score.known_jobs() as j
    group by j.cron_database, j.run_as
    order by j.cron_database, j.run_as;
$function$;

comment on function builder_score.left_jobs() is
    'What removes the jobs that this database still has: where, as whom, and the statements. Once the schema is gone they fail, and do nothing else.';

create function builder_score.unschedule() returns setof text
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
-- reads: cron.job, host_additions, scheduled_jobs
-- writes: cron.job, host_additions, scheduled_jobs
declare
    v_others boolean;
    v_left text;
begin
    -- Without the privilege no job of the caller's can be there: scheduling takes the same one.
    if exists (select from pg_extension where extname = 'pg_cron') and has_schema_privilege('cron', 'usage') then
        return query select * from builder_score.remove_jobs();

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
    end if;

    if not exists (select from pg_extension where extname = 'pg_cron') then
        delete from builder_score.scheduled_jobs where cron_database = current_database();
    end if;
    for v_left in select l.statements from builder_score.left_jobs() as l(statements) loop
        raise warning 'builder_score: its pg_cron jobs stay: %', v_left;
    end loop;
end
$function$;

comment on function builder_score.unschedule() is
    'Removes our pg_cron jobs in this database, and the extension if we created it and nobody else uses it; warns of those that stay, because '
    'they are another role''s or in another database. A running worker stops by its own flag.';
