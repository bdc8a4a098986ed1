-- The roles. builder_score_owner owns this schema and can never log in; builder_score_operator may look,
-- recompute, pause and retry. Where the installer may not create roles, everything stays the installer's.
-- reads: pg_roles          writes: roles, the owner of this schema
-- locks on host tables: none

do $roles$
declare
    v_role name;
    v_object record;
begin
    begin
        foreach v_role in array array['builder_score_owner', 'builder_score_operator']::name[] loop
            if not exists (select from pg_roles where rolname = v_role) then
                begin
                    execute format('create role %I nologin', v_role);
                    execute format('comment on role %I is %L', v_role, case v_role
                        when 'builder_score_owner' then 'Owns the schema builder_score and runs its triggers and worker functions.'
                        else 'May read builder_score''s tables, recompute, pause and retry.' end);
                exception when duplicate_object or unique_violation then
                    null;   -- another database of this cluster is being migrated at the same moment
                end;
            end if;
        end loop;
        if not pg_has_role(current_user, 'builder_score_owner', 'member') then
            execute format('grant builder_score_owner to %I', current_user);
        end if;
        alter schema builder_score owner to builder_score_owner;
        alter domain builder_score.user_id owner to builder_score_owner;
        alter domain builder_score.project_id owner to builder_score_owner;
        alter table builder_score.host_additions owner to builder_score_owner;
    exception when insufficient_privilege then
        raise notice 'builder_score: % may not create roles, so it owns everything itself', current_user
            using detail = 'Triggers and worker then run with the rights of this role.';
    end;
end
$roles$;

comment on schema builder_score is 'Reputation scores: users.builder_score, kept right by triggers, a queue and a worker.';

-- What follows, up to $become_installer$, is created by and for the schema's owner.
do $become_owner$
begin
    perform set_config('builder_score.installer', current_user, true);
    perform set_config('role', (select pg_get_userbyid(nspowner) from pg_namespace where nspname = 'builder_score'), true);
end
$become_owner$;

-- Functions below read the host views, which attach() makes last.
set local check_function_bodies = off;
