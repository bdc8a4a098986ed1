-- The indexes that the host lacks, built concurrently. The query returns statements, and \gexec runs each of them on
-- its own. One that builds an index waits until the transactions that were open when it began have ended, and holds
-- nobody up meanwhile: it has no lock_timeout, which beside an open writer would leave an INVALID index behind. Should it
-- be killed, the next run drops what it left and builds it anew.
-- transaction: none; each statement by itself
-- reads: pg_catalog          writes: indexes on the host's tables
-- locks on host tables: SHARE UPDATE EXCLUSIVE on the table whose index is built, for as long as that takes: reads and
-- writes go on. Partitioned tables also SHARE, then ACCESS EXCLUSIVE, for milliseconds, to join the partitions' indexes

set lock_timeout = 0;

select statement from builder_score.missing_index_statements() as m(statement)
\gexec
