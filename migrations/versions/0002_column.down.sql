-- Drops users.builder_score if we added it. One that was there first stays, with its last scores.
-- transaction: one
-- locks on host tables: ACCESS EXCLUSIVE on users, for milliseconds; none where the column stays

set local lock_timeout = '0.5s';
set local statement_timeout = 0;

do $column$
declare
    v_added record;
begin
    for v_added in
        delete from builder_score.host_additions where kind = 'column' returning schema_name, table_name, object_name
    loop
        if to_regclass(format('%I.%I', v_added.schema_name, v_added.table_name)) is null then
            raise warning 'builder_score: the column % stays: its table %.% is gone, or has another name now',
                v_added.object_name, v_added.schema_name, v_added.table_name;
            continue;
        end if;
        perform builder_score.lock_host_tables(array['users']::name[]);
        execute format('alter table %I.%I drop column if exists %I', v_added.schema_name, v_added.table_name, v_added.object_name);
    end loop;
end
$column$;
