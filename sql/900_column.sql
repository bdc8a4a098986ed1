-- The column users.builder_score, where the host has none. A constant default: no row is rewritten.
-- transaction: one
-- reads: pg_catalog          writes: one column of the host's users
-- locks on host tables: ACCESS EXCLUSIVE on users, for milliseconds; none where the column is there already

do $column$
declare
    v_statement text;
begin
    if not exists (select from builder_score.missing_column_statements()) then
        return;
    end if;
    perform builder_score.lock_host_tables(array['users']::name[]);
    for v_statement in select m.statement from builder_score.missing_column_statements() as m(statement) loop
        execute v_statement;
    end loop;
    insert into builder_score.host_additions (kind, schema_name, table_name, object_name)
    select 'column', h.host_schema, 'users', 'builder_score' from builder_score.host as h;
end
$column$;
