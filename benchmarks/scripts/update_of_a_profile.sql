\set n random(1, :people)
\set m random(1, 1000000000)
update users set headline = 'Builds small tools, number ' || :m where id = md5('person' || :n)::uuid;
