-- Two projects of two of 50 hot users. Each client has projects of its own, one of each user, so that the
-- application's own row locks never meet: whoever waits or deadlocks does so because of a queue.
\set a random(1, 50)
\set b 1 + (:a - 1 + random(1, 49)) % 50
begin;
update projects set github_stars = github_stars + 1 where id = md5('hot' || :a || '/' || :client_id)::uuid;
update projects set github_stars = github_stars + 1 where id = md5('hot' || :b || '/' || :client_id)::uuid;
commit;
