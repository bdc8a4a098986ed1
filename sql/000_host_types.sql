-- The host's key types, as domains. With them every other statement of this schema is static text,
-- whatever the host's ids are.
-- reads: pg_catalog          writes: nothing
-- locks on host tables: none

do $host_types$
declare
    v_schema constant text :=
        coalesce(nullif(current_setting('builder_score.host_schema', true), ''), 'public');
    v_missing text[];
    v_count integer;
    v_type text;
    v_target record;
begin
    select array_agg(t.name order by t.place) filter (where to_regclass(format('%I.%I', v_schema, t.name)) is null),
           count(to_regclass(format('%I.%I', v_schema, t.name)))
    into v_missing, v_count
    from unnest(array['users', 'projects', 'project_collaborators']) with ordinality as t(name, place);

    if v_count not in (0, 3) then
        raise exception 'schema "%" has only some of the tables that builder_score needs: missing %',
                v_schema, array_to_string(v_missing, ', ')
            using errcode = 'undefined_table',
                  detail = 'Expected all of users, projects and project_collaborators, or none of them '
                           '(then reference tables are created).',
                  hint = 'Create the missing tables, or name the schema that holds the application''s tables: '
                         'pyscore migrate --host-schema SCHEMA.';
    end if;

    for v_target in
        select t.domain, t.host_table
        from (values ('user_id', 'users'), ('project_id', 'projects')) as t(domain, host_table)
    loop
        if v_count = 0 then
            v_type := 'uuid';
        else
            -- without its length: what is compared with an id may be longer
            select format_type(a.atttypid, -1)
                   || case when a.attcollation <> y.typcollation
                           then format(' collate %I.%I', n.nspname, l.collname) else '' end
            into v_type
            from pg_attribute as a
            join pg_type as y on y.oid = a.atttypid
            left join pg_collation as l on l.oid = a.attcollation
            left join pg_namespace as n on n.oid = l.collnamespace
            where a.attrelid = to_regclass(format('%I.%I', v_schema, v_target.host_table))
              and a.attname = 'id'
              and not a.attisdropped;
            if not found then
                raise exception '%.id is missing in schema "%"', v_target.host_table, v_schema
                    using errcode = 'undefined_column',
                          detail = 'builder_score identifies users and projects by a single column named id.',
                          hint = 'Add the column, or a generated one, before migrating.';
            end if;
        end if;
        execute format('create domain builder_score.%I as %s', v_target.domain, v_type);
    end loop;
end
$host_types$;

comment on domain builder_score.user_id is 'The type of the host''s users.id.';
comment on domain builder_score.project_id is 'The type of the host''s projects.id.';
