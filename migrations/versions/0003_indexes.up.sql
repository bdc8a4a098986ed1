-- Builds the indexes that the host lacks. Each statement runs on its own, outside a transaction: \gexec runs
-- every row of the query before it as a statement.
-- reads: pg_catalog          writes: indexes on the host's tables
-- locks on host tables: SHARE UPDATE EXCLUSIVE while an index is built; reads and writes go on.
-- No lock_timeout here: beside an open writer it would leave an INVALID index behind.

set lock_timeout = 0;

select statement from builder_score.missing_index_statements() as m(statement)
\gexec
