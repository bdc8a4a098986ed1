-- What later migrations would refuse is said now, while nothing of the host's has been touched.
-- reads: pg_catalog          writes: nothing
-- locks on host tables: none

do $rehearsal$
declare
    v_schema constant name := (select h.host_schema from builder_score.host as h);
begin
    perform builder_score.require_host_types();
    if exists (select from builder_score.missing_index_statements()) and not has_schema_privilege(current_user, v_schema, 'create') then
        raise exception 'role % may create no index in schema "%"', current_user, v_schema
            using errcode = 'insufficient_privilege',
                  detail = 'The application''s tables lack an index that we need; PostgreSQL puts it into the schema of its table.',
                  hint = format('GRANT CREATE ON SCHEMA %I TO %I; which may be revoked once we are installed.', v_schema, current_user);
    end if;
    perform from builder_score.needed_access();
end
$rehearsal$;
