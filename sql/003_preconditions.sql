-- What later migrations would stumble over, said while nothing has been done yet.
-- reads: pg_catalog          writes: nothing
-- locks on host tables: none

do $preconditions$
declare
    v_schema constant text :=
        coalesce(nullif(current_setting('builder_score.host_schema', true), ''), 'public');
    v_lacking text;
    v_type text;
begin
    if to_regclass(format('%I.users', v_schema)) is null then
        return;     -- the reference tables have all of it
    end if;

    select string_agg(format('%s.%s', c.table_name, c.column_name), ', ')
    into v_lacking
    from (values ('users', 'id'), ('projects', 'id'), ('projects', 'owner_id'), ('projects', 'status'),
                 ('project_collaborators', 'project_id'), ('project_collaborators', 'user_id'),
                 ('project_collaborators', 'status')) as c(table_name, column_name)
    where not exists (
        select from pg_attribute as a
        where a.attrelid = to_regclass(format('%I.%I', v_schema, c.table_name))
          and a.attname = c.column_name and not a.attisdropped);
    if v_lacking is not null then
        raise exception 'the tables in schema "%" lack %', v_schema, v_lacking
            using errcode = 'undefined_column',
                  detail = 'Expected users (id), projects (id, owner_id, status) and '
                           'project_collaborators (project_id, user_id, status).',
                  hint = 'Add what is missing, or a generated column of that name, then migrate again.';
    end if;

    with recursive typed(type_id) as (
        select a.atttypid
        from pg_attribute as a
        where a.attrelid = to_regclass(format('%I.users', v_schema)) and a.attname = 'builder_score' and not a.attisdropped
        union all
        -- a domain over a domain
        select y.typbasetype from typed as d join pg_type as y on y.oid = d.type_id where y.typtype = 'd'
    )
    select format_type(d.type_id, null) into v_type
    from typed as d join pg_type as y on y.oid = d.type_id
    where y.typtype <> 'd';
    if v_type not in ('smallint', 'integer', 'bigint', 'real', 'double precision', 'numeric') then
        raise exception 'users.builder_score has type %', v_type
            using errcode = 'datatype_mismatch',
                  detail = 'Expected smallint, integer, bigint, real, double precision or numeric.',
                  hint = 'Change the column''s type, or rename it: migrate then adds one of its own.';
    end if;

    select string_agg(format('%I.%I (owned by %I)', v_schema, c.relname, pg_get_userbyid(c.relowner)), ', ' order by c.relname)
    into v_lacking
    from pg_class as c
    where c.oid in (select to_regclass(format('%I.%I', v_schema, t.name)) from unnest(array['users', 'projects', 'project_collaborators']) as t(name))
      and not pg_has_role(current_user, c.relowner, 'usage');
    if v_lacking is not null then
        raise exception '% is not the owner of %', current_user, v_lacking
            using errcode = 'insufficient_privilege',
                  detail = 'Triggers and indexes on a table, and a column, are added by its owner.',
                  hint = 'Migrate as the role that owns the tables, or as a superuser.';
    end if;
end
$preconditions$;
