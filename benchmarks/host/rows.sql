-- People, what they build, who helps, and the indexes that an application has.
-- Numbers of projects and collaborations: a person's chance picks one of the list.

insert into users
    (id, email, username, display_name, avatar_url, headline, bio, primary_role, timezone, contact_links, created_at, updated_at)
select person_id(n),
       'person' || n || '@example.org', 'person' || n, 'Person ' || n,
       case when chance(n, 1) < 0.7 then '/avatars/' || n || '.png' end,
       case when chance(n, 2) < 0.6 then 'Builds small tools, number ' || n end,
       case when chance(n, 3) < 0.5 then repeat('Some words about somebody. ', 1 + (chance(n, 4) * 4)::integer) end,
       case when chance(n, 5) < 0.5 then (array['developer', 'designer', 'hardware', 'writer'])[1 + (chance(n, 6) * 3)::integer] end,
       case when chance(n, 7) < 0.8 then 'Europe/Lisbon' end,
       case when chance(n, 8) < 0.3 then jsonb_build_object('web', 'https://person' || n || '.example') else '{}' end,
       -- ages are whole days and a half: nobody grows a day older while a benchmark runs
       now() - floor(chance(n, 9) * 1500) * interval '1 day' - interval '12 hours', now()
from generate_series(1, :people) as n;

create temporary table owned as
select n as person, row_number() over (order by n, k) as project
from generate_series(1, :people) as n,
     generate_series(1, (array[0, 1, 2, 3, 4, 5, 8, 15, 40])[width_bucket(
         chance(n, 10), array[0, 0.365, 0.615, 0.765, 0.845, 0.895, 0.935, 0.975, 0.995]::double precision[])]) as k;

insert into projects (id, owner_id, title, description, status, tech_stack, impact_metrics, github_stars, created_at, updated_at)
select project_id(o.project), person_id(o.person),
       'Project ' || o.project, repeat('What it is for. ', 1 + (chance(o.project, 11) * 8)::integer),
       case when chance(o.project, 12) < 0.35 then 'shipped' else 'in_progress' end,
       array['python', 'postgresql'],
       case when chance(o.project, 13) < 0.4 then jsonb_build_object('users', floor(power(10, chance(o.project, 14) * 4))) else '{}' end,
       floor(power(10, chance(o.project, 15) * 3)) - 1, now(), now()
from owned as o;

create temporary table joined as
select n as person, 1 + floor(chance(n::bigint * 64 + k, 16) * (select count(*) from owned))::bigint as project
from generate_series(1, :people) as n,
     generate_series(1, (array[0, 1, 2, 3, 5, 10, 20])[width_bucket(
         chance(n, 17), array[0, 0.45, 0.70, 0.82, 0.90, 0.96, 0.99]::double precision[])]) as k;

insert into project_collaborators (id, project_id, user_id, role_description, status, invited_at, confirmed_at)
select collaboration_id(row_number() over (order by j.project, j.person)), project_id(j.project), person_id(j.person), 'helps',
       case when j.counts then 'confirmed' else 'pending' end, now(), case when j.counts then now() end
from (select distinct j.project, j.person, chance(j.person::bigint * 8191 + j.project, 18) < 0.7 as counts from joined as j) as j
join owned as o using (project) where o.person <> j.person;

drop table owned, joined;

alter table users add constraint users_email_key unique (email), add constraint users_username_key unique (username);
alter table projects add constraint projects_owner_id_fkey foreign key (owner_id) references users on delete cascade;
create index projects_owner_id_idx on projects (owner_id);
alter table project_collaborators
    add constraint project_collaborators_project_id_fkey foreign key (project_id) references projects on delete cascade,
    add constraint project_collaborators_user_id_fkey foreign key (user_id) references users on delete cascade,
    add constraint project_collaborators_project_id_user_id_key unique (project_id, user_id);
create index project_collaborators_user_id_idx on project_collaborators (user_id);
