set local lock_timeout = '0.5s';
set local statement_timeout = 0;

-- Views of the host's tables, and triggers, policies and grants on them. One score is written and taken back, to see
-- whether the host's own triggers on users let us. Then everyone is enqueued, as one row: the worker computes their scores
-- at the rate of settings.backfill_per_second.
-- transaction: one
-- reads: pg_catalog          writes: the host views, triggers, policies and grants
-- locks on host tables: ACCESS EXCLUSIVE on users, projects and project_collaborators, for milliseconds

select attached from builder_score.attach() as a(attached);
