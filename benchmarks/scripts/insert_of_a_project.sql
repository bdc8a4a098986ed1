\set n random(1, :people)
insert into projects (owner_id, title) values (md5('person' || :n)::uuid, 'A new project');
