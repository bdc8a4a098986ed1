-- The indexes on the host's tables that the score needs and the host may lack.
-- reads: pg_catalog, host_additions          writes: nothing; the statements it returns do
-- locks on host tables: none by itself

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

create function builder_score.usable_index(host_table regclass, key_columns name[]) returns regclass
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
    -- valid, whole, a btree that begins with these columns, each under its own collation (else no plan takes it), all in
    -- one direction and in the order that ORDER BY means
    select i.indexrelid::regclass
    from pg_index as i
    join pg_class as c on c.oid = i.indexrelid
    join pg_am as m on m.oid = c.relam and m.amname = 'btree'
    where i.indrelid = usable_index.host_table
      and i.indisvalid
      and i.indpred is null
      and i.indnkeyatts >= cardinality(key_columns)
      and key_columns = array(
          select a.attname
          from generate_series(0, cardinality(key_columns) - 1) as k(place)
          join pg_attribute as a on a.attrelid = i.indrelid and a.attnum = i.indkey[k.place] and a.attcollation = i.indcollation[k.place]
          order by k.place)
      and (cardinality(key_columns) = 1
           or (select count(distinct i.indoption[k.place]) = 1 and bool_and(i.indoption[k.place] in (0, 3)) and bool_and(o.opcdefault)
               from generate_series(0, cardinality(key_columns) - 1) as k(place)
               join pg_opclass as o on o.oid = i.indclass[k.place]))
    order by i.indnkeyatts, c.relname
    limit 1;
$function$;

comment on function builder_score.usable_index(regclass, name[]) is
    'The index of a table that begins with these columns, under whatever name and in whatever direction; null where there is none.';

create function builder_score.has_index(host_table regclass, key_columns name[]) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
    select builder_score.usable_index(host_table, key_columns) is not null;
$function$;

comment on function builder_score.has_index(regclass, name[]) is 'Whether the table has a usable index that begins with these columns, under whatever name.';

create function builder_score.under_lock(table_name name, lock_mode text, statements text[]) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $function$
    select format(E'do $locked$\nbegin\n    perform builder_score.lock_host_tables(array[%L]::name[], %L);\n    %s;\nend\n$locked$',
        under_lock.table_name, under_lock.lock_mode, array_to_string(under_lock.statements, E';\n    '));
$function$;

comment on function builder_score.under_lock(name, text, text[]) is
    'One statement that locks a host table as lock_host_tables() does, and then runs the given ones.';

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
    v_made regclass;
    v_shells text[];
    v_leaves text[];
    v_joins text[];
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
            -- Empty shells, all at once; the partitions' indexes concurrently; then joined, all at once. What cannot be
            -- done concurrently is a statement that takes its locks as lock_host_tables() does.
            v_shells := case when to_regclass(v_name) is null
                then array[format('create index %I on only %s %s', v_index.index_name, v_index.host_table, v_index.key_definition)]
                else array[]::text[] end;
            v_leaves := array[]::text[];
            v_joins := array[]::text[];
            for v_part in
                select t.relid::regclass as part, t.isleaf, n.nspname,
                       left(v_index.index_name, 50) || '_' || t.relid::oid as index_name,
                       case when t.level = 1 then v_index.index_name::text else left(v_index.index_name, 50) || '_' || t.parentrelid::oid end as parent_index,
                       pn.nspname as parent_schema
                from pg_partition_tree(v_index.host_table) as t
                join pg_class as c on c.oid = t.relid
                join pg_namespace as n on n.oid = c.relnamespace
                join pg_class as pc on pc.oid = t.parentrelid
                join pg_namespace as pn on pn.oid = pc.relnamespace
                where t.level > 0
                order by t.level desc, t.relid
            loop
                v_made := to_regclass(format('%I.%I', v_part.nspname, v_part.index_name));
                if not v_part.isleaf then
                    if v_made is null then
                        v_shells := array_append(v_shells, format('create index %I on only %s %s', v_part.index_name, v_part.part, v_index.key_definition));
                    end if;
                else
                    if exists (select from pg_index as i where i.indexrelid = v_made and not i.indisvalid) then
                        v_leaves := array_append(v_leaves, format('drop index concurrently %I.%I', v_part.nspname, v_part.index_name));
                        v_made := null;
                    end if;
                    if v_made is null then
                        v_leaves := array_append(v_leaves, format('create index concurrently %I on %s %s', v_part.index_name, v_part.part, v_index.key_definition));
                    end if;
                end if;
                v_joins := array_append(v_joins, format('alter index %I.%I attach partition %I.%I', v_part.parent_schema, v_part.parent_index, v_part.nspname, v_part.index_name));
            end loop;
            if cardinality(v_shells) > 0 then
                return next builder_score.under_lock(v_index.table_name, 'share', v_shells);
            end if;
            return query select leaf from unnest(v_leaves) as leaf;
            if cardinality(v_joins) > 0 then
                return next builder_score.under_lock(v_index.table_name, 'access exclusive', v_joins);
            end if;
        end if;
        return next format('comment on index %s is %L', v_name, v_index.comment);
    end loop;
end
$function$;

comment on function builder_score.missing_index_statements() is
    'The statements that build, concurrently, the indexes the host lacks. None when all are there.';

create function builder_score.added_index_drops() returns setof text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: pg_catalog, host_additions
-- writes: nothing
-- Each statement is to be run on its own, outside a transaction block.
declare
    v_index record;
begin
    for v_index in
        select a.table_name, format('%I.%I', a.schema_name, a.object_name) as name, c.relkind
        from builder_score.host_additions as a
        join pg_class as c on c.oid = to_regclass(format('%I.%I', a.schema_name, a.object_name))
        where a.kind = 'index'
        order by a.table_name, a.object_name
    loop
        if v_index.relkind = 'I' then   -- a partitioned index cannot be dropped concurrently
            return next builder_score.under_lock(v_index.table_name, 'access exclusive', array['drop index ' || v_index.name]);
        else
            return next 'drop index concurrently ' || v_index.name;
        end if;
    end loop;
    return next 'delete from builder_score.host_additions where kind = ''index''';
end
$function$;

comment on function builder_score.added_index_drops() is 'The statements that drop, concurrently, the indexes that we added.';
