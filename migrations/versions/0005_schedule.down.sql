-- Removes the pg_cron job. A run that is under way stops when the next step detaches it.
-- locks on host tables: none

set local lock_timeout = '0.5s';
set local statement_timeout = 0;

select unscheduled from builder_score.unschedule() as u(unscheduled);
