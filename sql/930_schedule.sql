-- The pg_cron job that runs the worker, where pg_cron is.
-- transaction: one
-- reads: pg_catalog          writes: cron.job
-- locks on host tables: none

select scheduled from builder_score.schedule() as s(scheduled);
