-- The indexes on the host's tables that the score needs and the host may lack.
-- reads: pg_catalog, host_additions          writes: nothing; the statements it returns do

create function builder_score.needed_indexes()
returns table (table_name name, index_name name, key_columns name[], key_definition text, comment text)
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
    values
        ('users'::name, 'idx_users_builder_score'::name, array['builder_score', 'id']::name[], '(builder_score desc, id desc)',
         'Leaderboards: keyset pages by (builder_score, id).'),
        ('projects', 'idx_projects_owner_id', array['owner_id'], '(owner_id)', 'The projects of one owner.'),
        ('project_collaborators', 'idx_project_collaborators_project_id', array['project_id'], '(project_id)', 'The collaborators of one project.'),
        ('project_collaborators', 'idx_project_collaborators_user_id', array['user_id'], '(user_id)', 'The collaborations of one user.');
$function$;

comment on function builder_score.needed_indexes() is 'What we need an index on, and its name where the host has none.';

create function builder_score.has_index(host_table regclass, key_columns name[]) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
    -- valid, whole, a btree that begins with these columns, all in one direction
    select exists (
        select
        from pg_index as i
        join pg_class as c on c.oid = i.indexrelid
        join pg_am as m on m.oid = c.relam and m.amname = 'btree'
        where i.indrelid = has_index.host_table
          and i.indisvalid
          and i.indpred is null
          and i.indnkeyatts >= cardinality(key_columns)
          and key_columns = array(
              select a.attname
              from generate_series(0, cardinality(key_columns) - 1) as k(place)
              join pg_attribute as a on a.attrelid = i.indrelid and a.attnum = i.indkey[k.place]
              order by k.place)
          and (cardinality(key_columns) = 1
               or (select count(distinct i.indoption[k.place]) = 1 and bool_and(i.indoption[k.place] in (0, 3))
                   from generate_series(0, cardinality(key_columns) - 1) as k(place)))
    );
$function$;

comment on function builder_score.has_index(regclass, name[]) is 'Whether the table has a usable index that begins with these columns, under whatever name.';

create function builder_score.missing_index_statements() returns setof text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: pg_catalog, host_additions
-- writes: nothing
-- Each statement is to be run on its own, outside a transaction block; a run that was interrupted is
-- completed by asking again. What we add is noted before it is made, so that uninstall always finds it.
declare
    v_index record;
    v_part record;
    v_name text;
    v_ours boolean;
begin
    for v_index in
        select n.*, builder_score.host_table(n.table_name) as host_table, h.host_schema, c.relkind
        from builder_score.needed_indexes() as n
        cross join builder_score.host as h
        join pg_class as c on c.oid = builder_score.host_table(n.table_name)
    loop
        v_name := format('%I.%I', v_index.host_schema, v_index.index_name);
        v_ours := exists (
            select from builder_score.host_additions as a
            where a.kind = 'index' and a.schema_name = v_index.host_schema and a.object_name = v_index.index_name
        );
        if builder_score.has_index(v_index.host_table, v_index.key_columns) then
            if v_ours and obj_description(to_regclass(v_name), 'pg_class') is null then
                return next format('comment on index %s is %L', v_name, v_index.comment);
            end if;
            continue;
        end if;
        if to_regclass(v_name) is not null and not v_ours then
            raise exception 'the name % is taken', v_name
                using errcode = 'duplicate_table',
                      detail = format('An index on %s %s is needed, and what has this name is not a usable one.', v_index.host_table, v_index.key_definition),
                      hint = 'Rename or drop it (an INVALID index is left by an interrupted CREATE INDEX CONCURRENTLY), then migrate again.';
        end if;
        return next format('insert into builder_score.host_additions (kind, schema_name, table_name, object_name) values (%L, %L, %L, %L) on conflict do nothing',
            'index', v_index.host_schema, v_index.table_name, v_index.index_name);

        if v_index.relkind <> 'p' then
            if to_regclass(v_name) is not null then
                return next format('drop index concurrently %s', v_name);
            end if;
            return next format('create index concurrently %I on %s %s', v_index.index_name, v_index.host_table, v_index.key_definition);
        else
            -- concurrently on each partition, then joined to an empty shell on the parent
            if to_regclass(v_name) is null then
                return next format('create index %I on only %s %s', v_index.index_name, v_index.host_table, v_index.key_definition);
            end if;
            for v_part in
                select t.relid::regclass as part, t.parentrelid, t.isleaf, t.level, n.nspname,
                       left(v_index.index_name, 50) || '_' || t.relid::oid as index_name,
                       case when t.level = 1 then v_index.index_name::text else left(v_index.index_name, 50) || '_' || t.parentrelid::oid end as parent_index,
                       pn.nspname as parent_schema
                from pg_partition_tree(v_index.host_table) as t
                join pg_class as c on c.oid = t.relid
                join pg_namespace as n on n.oid = c.relnamespace
                join pg_class as pc on pc.oid = t.parentrelid
                join pg_namespace as pn on pn.oid = pc.relnamespace
                where t.level > 0
                order by t.level desc
            loop
                if v_part.isleaf then
                    if exists (select from pg_index as i
                               where i.indexrelid = to_regclass(format('%I.%I', v_part.nspname, v_part.index_name)) and not i.indisvalid) then
                        return next format('drop index concurrently %I.%I', v_part.nspname, v_part.index_name);
                    end if;
                    return next format('create index concurrently if not exists %I on %s %s', v_part.index_name, v_part.part, v_index.key_definition);
                else
                    return next format('create index if not exists %I on only %s %s', v_part.index_name, v_part.part, v_index.key_definition);
                end if;
            end loop;
            for v_part in
                select n.nspname, left(v_index.index_name, 50) || '_' || t.relid::oid as index_name,
                       case when t.level = 1 then v_index.index_name::text else left(v_index.index_name, 50) || '_' || t.parentrelid::oid end as parent_index,
                       pn.nspname as parent_schema
                from pg_partition_tree(v_index.host_table) as t
                join pg_class as c on c.oid = t.relid
                join pg_namespace as n on n.oid = c.relnamespace
                join pg_class as pc on pc.oid = t.parentrelid
                join pg_namespace as pn on pn.oid = pc.relnamespace
                where t.level > 0
                order by t.level desc
            loop
                return next format('alter index %I.%I attach partition %I.%I', v_part.parent_schema, v_part.parent_index, v_part.nspname, v_part.index_name);
            end loop;
        end if;
        return next format('comment on index %s is %L', v_name, v_index.comment);
    end loop;
end
$function$;

comment on function builder_score.missing_index_statements() is
    'The statements that build, concurrently, the indexes the host lacks. None when all are there.';
