-- Drops the indexes that we added; each statement runs on its own, outside a transaction.
-- locks on host tables: SHARE UPDATE EXCLUSIVE; reads and writes go on

set lock_timeout = 0;

select format('drop index %s if exists %I.%I',
              case c.relkind when 'p' then '' else 'concurrently' end, a.schema_name, a.object_name)
from builder_score.host_additions as a
join pg_class as c on c.oid = to_regclass(format('%I.%I', a.schema_name, a.table_name))
where a.kind = 'index'
\gexec

delete from builder_score.host_additions where kind = 'index';
