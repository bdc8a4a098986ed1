-- Removes the pg_cron job; warns of one that is another role's, or in another database. A run that is under way stops when the next section detaches it.
-- transaction: one
-- locks on host tables: none

set local lock_timeout = '0.5s';
set local statement_timeout = 0;

select unscheduled from builder_score.unschedule() as u(unscheduled);
