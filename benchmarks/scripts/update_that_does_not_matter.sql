\set n random(1, :people)
update users set last_seen = now() where id = md5('person' || :n)::uuid;
