set local lock_timeout = '0.5s';
set local statement_timeout = 0;

-- users.builder_score, where the host has none. A constant default: no row is rewritten.
-- reads: pg_catalog          writes: one column of the host's users
-- locks on host tables: ACCESS EXCLUSIVE on users for milliseconds

do $column$
begin
    if builder_score.host_column_type('users', 'builder_score') is not null then
        return;
    end if;
    execute format('alter table %s add column builder_score integer default 0', builder_score.host_table('users'));
    execute format('comment on column %s.builder_score is %L', builder_score.host_table('users'),
        'Reputation, 0 to 100, kept by the schema builder_score.');
    insert into builder_score.host_additions (kind, schema_name, table_name, object_name)
    select 'column', h.host_schema, 'users', 'builder_score' from builder_score.host as h;
end
$column$;
