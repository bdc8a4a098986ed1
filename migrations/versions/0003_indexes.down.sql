-- Drops the indexes that we added. The query returns statements, and \gexec runs each of them on its own.
-- transaction: none; each statement by itself
-- locks on host tables: SHARE UPDATE EXCLUSIVE on the table whose index is dropped, until the transactions that may use it
-- have ended: reads and writes go on. Partitioned tables ACCESS EXCLUSIVE, for milliseconds

set lock_timeout = 0;

select statement from builder_score.added_index_drops() as d(statement)
\gexec
