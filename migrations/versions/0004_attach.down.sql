-- Removes the views, and our triggers, policies and grants on the host's tables. Scores stay.
-- locks on host tables: ACCESS EXCLUSIVE on all three for milliseconds

set local lock_timeout = '0.5s';
set local statement_timeout = 0;

select detached from builder_score.detach() as d(detached);
