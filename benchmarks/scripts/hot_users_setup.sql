-- 50 people, with a project for each of 16 clients (hot_users.sql).
insert into users (id, email, username)
select md5('hot' || n)::uuid, 'hot' || n || '@example.org', 'hot' || n from generate_series(1, 50) as n;
insert into projects (id, owner_id, title)
select md5('hot' || n || '/' || client)::uuid, md5('hot' || n)::uuid, 'A hot project'
from generate_series(1, 50) as n, generate_series(0, 15) as client;
