set local lock_timeout = '0.5s';
set local statement_timeout = 0;

-- Views, triggers, grants and policies on the host's tables; everyone is enqueued.
-- reads: pg_catalog          writes: the host views, triggers, policies and grants
-- locks on host tables: ACCESS EXCLUSIVE on all three for milliseconds

select attached from builder_score.attach() as a(attached);
