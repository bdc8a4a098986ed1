-- The roles. builder_score_owner owns this schema and can never log in; builder_score_operator may look,
-- recompute, pause and retry. Where the installer may not create roles, everything stays the installer's.
-- reads: pg_roles          writes: roles, the owner of this schema
-- locks on host tables: none

do $roles$
declare
    v_role name;
    v_usable boolean;
    v_mend text;
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
        if exists (select from pg_roles where rolname = 'builder_score_owner' and (rolcanlogin or rolsuper)) then
            raise exception 'role builder_score_owner is there, and can log in or is a superuser'
                using errcode = 'invalid_role_specification',
                      detail = 'Triggers run with its rights whoever writes: expected a role that nobody can be, and that may do nothing else.',
                      hint = 'ALTER ROLE builder_score_owner NOLOGIN NOSUPERUSER; then migrate again.';
        end if;
        -- From PostgreSQL 16 on whoever creates a role may grant it, and is no more than that: neither may they
        -- become it nor do they have its rights. And there it is each grant that inherits, no longer the member.
        if current_setting('server_version_num')::integer >= 160000 then
            v_usable := pg_has_role(current_user, 'builder_score_owner', 'set') and pg_has_role(current_user, 'builder_score_owner', 'usage');
            if not v_usable then
                begin
                    execute format('grant builder_score_owner to %I with inherit true, set true', current_user);
                    v_usable := true;
                exception when insufficient_privilege then
                    if not pg_has_role(current_user, 'builder_score_owner', 'member') then
                        raise;
                    end if;
                end;
            end if;
            v_mend := format('GRANT builder_score_owner TO %I WITH INHERIT TRUE, SET TRUE', current_user);
        else
            if not pg_has_role(current_user, 'builder_score_owner', 'member') then
                execute format('grant builder_score_owner to %I', current_user);
            end if;
            v_usable := pg_has_role(current_user, 'builder_score_owner', 'usage');
            v_mend := format('ALTER ROLE %I INHERIT', current_user);
        end if;
        if not v_usable then
            raise exception 'role % does not inherit the rights of builder_score_owner', current_user
                using errcode = 'invalid_role_specification',
                      detail = 'Expected a member that has them and may become it: builder_score_owner will own what is installed.',
                      hint = format('As a superuser: %s; then migrate again. Or migrate as another role that owns the tables.', v_mend);
        end if;
        alter schema builder_score owner to builder_score_owner;
        alter domain builder_score.user_id owner to builder_score_owner;
        alter domain builder_score.project_id owner to builder_score_owner;
        alter table builder_score.host_additions owner to builder_score_owner;
    exception when insufficient_privilege then
        raise notice 'builder_score: % may not create or become the role builder_score_owner, so it owns everything itself', current_user
            using detail = 'Triggers and worker then run with the rights of this role, and no role may be only an operator.',
                  hint = format('To have both: pyscore uninstall; then, as a superuser, CREATE ROLE builder_score_owner NOLOGIN; '
                                'CREATE ROLE builder_score_operator NOLOGIN; GRANT builder_score_owner TO %I; then migrate again.', current_user);
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
