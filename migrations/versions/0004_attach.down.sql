-- Removes the views, and our triggers, policies and grants on the host's tables. Scores stay, and change no more. A worker
-- that is running stops.
-- transaction: one
-- locks on host tables: ACCESS EXCLUSIVE on users, projects and project_collaborators, for milliseconds

set local lock_timeout = '0.5s';
set local statement_timeout = 0;

select detached from builder_score.detach() as d(detached);
