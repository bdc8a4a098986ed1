\set n random(1, :projects)
update projects set views = views + 1 where id = md5('project' || :n)::uuid;
