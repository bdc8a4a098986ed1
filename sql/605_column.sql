-- The one column that we keep.
-- reads: pg_catalog          writes: nothing; the statements it returns do
-- locks on host tables: none by itself

create function builder_score.missing_column_statements() returns setof text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $function$
-- reads: pg_catalog
-- writes: nothing
begin
    if builder_score.host_column_type('users', 'builder_score') is null then
        -- a constant default: no row is rewritten
        return next format('alter table %s add column builder_score integer default 0', builder_score.host_table('users'));
        return next format('comment on column %s.builder_score is %L', builder_score.host_table('users'),
            'Reputation, 0 to 100, kept by the schema builder_score.');
    end if;
end
$function$;

comment on function builder_score.missing_column_statements() is
    'The statements that add users.builder_score. None where the host has it.';
