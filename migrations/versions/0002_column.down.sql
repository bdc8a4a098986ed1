-- Drops users.builder_score if we added it; one that was there first stays.
-- locks on host tables: ACCESS EXCLUSIVE on users for milliseconds

set local lock_timeout = '0.5s';
set local statement_timeout = 0;

do $column$
declare
    v_added record;
begin
    for v_added in
        delete from builder_score.host_additions where kind = 'column' returning schema_name, table_name, object_name
    loop
        execute format('alter table %I.%I drop column if exists %I', v_added.schema_name, v_added.table_name, v_added.object_name);
    end loop;
end
$column$;
