-- Nothing is for everyone. The operator may look, recompute, pause and retry.
-- reads: pg_roles          writes: privileges in this schema

revoke all on all routines in schema builder_score from public;
revoke usage on domain builder_score.user_id from public;
revoke usage on domain builder_score.project_id from public;
revoke usage on type builder_score.run_memory from public;

do $grants$
begin
    if (select nspowner::regrole::text from pg_namespace where nspname = 'builder_score') <> 'builder_score_owner' then
        return;     -- the installer could not create roles
    end if;
    grant usage on schema builder_score to builder_score_operator;
    grant usage on domain builder_score.user_id, builder_score.project_id to builder_score_operator;
    grant select on
        builder_score.backfill,
        builder_score.health,
        builder_score.host,
        builder_score.host_additions,
        builder_score.impact_keys,
        builder_score.queue_by_priority,
        builder_score.scheduled_jobs,
        builder_score.score_counts,
        builder_score.score_dead_letter,
        builder_score.score_recalc_queue,
        builder_score.score_state,
        builder_score.settings,
        builder_score.signals,
        builder_score.statuses,
        builder_score.worker_status
    to builder_score_operator;
    grant update (paused, paused_reason) on builder_score.settings to builder_score_operator;
    grant delete on builder_score.score_dead_letter to builder_score_operator;
    grant execute on function
        builder_score.enqueue(builder_score.user_id, integer, text),
        builder_score.enqueue_everyone(text),
        builder_score.recalculate(builder_score.user_id),
        builder_score.explain(builder_score.user_id),
        builder_score.verify(builder_score.user_id[]),
        builder_score.find_user(text),
        builder_score.pending(builder_score.user_id),
        builder_score.is_pending(builder_score.user_id),
        builder_score.standing(builder_score.user_id),
        builder_score.distribution(),
        builder_score.verify_score_counts(),
        builder_score.repair_score_counts(),
        builder_score.retry_dead_letters(builder_score.user_id[]),
        builder_score.unknown_user(builder_score.user_id),
        builder_score.column_decimals(),
        builder_score.known_jobs(),
        builder_score.scheduler(),
        builder_score.job_runs(integer),
        builder_score.recent_rate(timestamptz, bigint, bigint),
        builder_score.run_by(),
        builder_score.worker_name(integer),
        builder_score.worker_lock(integer),
        builder_score.is_wanted(text),
        builder_score.begin_run(text, text),
        builder_score.is_alive(text),
        builder_score.may_go_on(),
        builder_score.run_batch(text, builder_score.run_memory),
        builder_score.run_round(text, integer, timestamptz, builder_score.run_memory),
        builder_score.beat(text, interval),
        builder_score.nap_seconds(integer, timestamptz),
        builder_score.run_deadline(interval),
        builder_score.housekeeping(),
        builder_score.purge_job_runs(interval)
    to builder_score_operator;
    grant execute on procedure builder_score.drain(), builder_score.run_worker(interval, integer) to builder_score_operator;
end
$grants$;

-- The schema's owner has made everything; what follows is the installer's again.
do $become_installer$
begin
    perform set_config('role', current_setting('builder_score.installer'), true);
end
$become_installer$;

-- Of what the installer has made himself, default privileges meant for the application's tables gave something away.
do $take_back$
declare
    v_given record;
begin
    perform builder_score.take_back(c.oid)
    from pg_class as c
    where c.relnamespace = 'builder_score'::regnamespace and c.relkind in ('r', 'v', 'S')
      and pg_has_role(c.relowner, 'usage');
    for v_given in
        select p.oid::regprocedure as routine, quote_ident(pg_get_userbyid(a.grantee)) as grantee
        from pg_proc as p
        cross join lateral aclexplode(p.proacl) as a
        where p.pronamespace = 'builder_score'::regnamespace and p.proowner <> a.grantee
          and pg_get_userbyid(a.grantee) not in ('builder_score_owner', 'builder_score_operator')
    loop
        execute format('revoke all on routine %s from %s', v_given.routine, v_given.grantee);
    end loop;
end
$take_back$;

do $version_table$
begin
    -- Alembic's, so the installer's; the command line asks it which version this is.
    if to_regclass('builder_score.alembic_version') is not null and to_regrole('builder_score_operator') is not null
       and (select nspowner::regrole::text from pg_namespace where nspname = 'builder_score') = 'builder_score_owner' then
        grant select on builder_score.alembic_version to builder_score_operator;
    end if;
end
$version_table$;
