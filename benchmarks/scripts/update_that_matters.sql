\set n random(1, :projects)
update projects set github_stars = github_stars + 1 where id = md5('project' || :n)::uuid;
