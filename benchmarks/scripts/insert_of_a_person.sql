insert into users (email, username, display_name)
select n || '@example.net', n, n from (select gen_random_uuid()::text as n) as new;
