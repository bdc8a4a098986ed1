-- Logical replication: a subscriber that lacks our tables or our column stops at the first change to them.
-- So refuse until somebody says that the subscribers are ready.
-- reads: pg_publication          writes: nothing
-- locks on host tables: none

do $publications$
declare
    v_schema constant text :=
        coalesce(nullif(current_setting('builder_score.host_schema', true), ''), 'public');
    v_publications text;
    v_with_users text;
begin
    if coalesce(current_setting('builder_score.subscribers_ready', true), '') = 'on' then
        return;
    end if;
    select string_agg(quote_ident(p.pubname), ', ') into v_publications
    from pg_publication as p where p.puballtables;
    select string_agg(quote_ident(t.pubname), ', ') into v_with_users
    from pg_publication_tables as t
    where t.schemaname = v_schema and t.tablename = 'users'
      and not exists (
          select from pg_attribute as a
          where a.attrelid = to_regclass(format('%I.users', v_schema)) and a.attname = 'builder_score' and not a.attisdropped);
    if v_publications is not null then
        raise exception 'publication % is FOR ALL TABLES: its subscribers stop when our tables appear', v_publications
            using errcode = 'object_not_in_prerequisite_state',
                  detail = 'A subscriber must have the schema builder_score, its tables and users.builder_score first.',
                  hint = 'On each subscriber run the script that `pyscore migrate --sql` prints, then UPDATE builder_score.settings '
                         'SET paused = true; then here: pyscore migrate --subscribers-ready';
    end if;
    if v_with_users is not null then
        raise exception 'publication % has the table users: its subscribers stop when the column builder_score appears', v_with_users
            using errcode = 'object_not_in_prerequisite_state',
                  detail = 'A subscriber must have the column first.',
                  hint = format('On each subscriber: ALTER TABLE %I.users ADD COLUMN builder_score integer DEFAULT 0; '
                                'then here: pyscore migrate --subscribers-ready', v_schema);
    end if;
end
$publications$;
