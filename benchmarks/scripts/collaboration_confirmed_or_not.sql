\set n random(1, :collaborations)
update project_collaborators set status = case status when 'confirmed' then 'pending' else 'confirmed' end
where id = md5('collaboration' || :n)::uuid;
