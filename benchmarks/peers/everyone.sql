-- Everyone's score in one statement that scans the tables: hash aggregates, hash joins, one write.
with owned as (
    select p.owner_id as user_id,
           count(*) filter (where p.status = 'shipped')::double precision as shipped,
           sum(p.github_stars + case
               when jsonb_typeof(p.impact_metrics -> 'users') = 'number'
                   then greatest((p.impact_metrics -> 'users')::numeric, 0)
               when p.impact_metrics ->> 'users' ~ '^[0-9]+(\.[0-9]+)?$'
                   then (p.impact_metrics ->> 'users')::numeric
               else 0
           end) as impact
    from projects as p
    group by p.owner_id
),
confirmed as materialized (
    select p.owner_id, c.user_id
    from project_collaborators as c
    join projects as p on p.id = c.project_id
    where c.status = 'confirmed' and p.owner_id <> c.user_id
),
vouched as (
    select v.user_id, count(*)::double precision as people
    from (
        select c.owner_id as user_id, c.user_id as person from confirmed as c
        union
        select c.user_id, c.owner_id from confirmed as c
    ) as v
    group by v.user_id
),
scored as (
    select u.id,
           round(round(least(100,
               least(30, 10 * ln(coalesce(o.shipped, 0) + 1) / ln(2))
               + least(25, 8 * ln(coalesce(v.people, 0) + 1) / ln(2))
               + least(20, 4 * log10((coalesce(o.impact, 0) + 1)::double precision))
               + 15 * (
                   (u.avatar_url ~ '\S' is true)::integer + (u.headline ~ '\S' is true)::integer
                   + (u.bio ~ '\S' is true)::integer + (u.primary_role ~ '\S' is true)::integer
                   + (u.timezone ~ '\S' is true)::integer
                   + (jsonb_typeof(u.contact_links) = 'object' and u.contact_links <> '{}')::integer
               )::double precision / 6
               + least(10, 10 * greatest(floor(extract(epoch from now() - u.created_at) / 86400), 0)::double precision / 365)
           )::numeric, 6))::integer as score
    from users as u
    left join owned as o on o.user_id = u.id
    left join vouched as v on v.user_id = u.id
)
update users as u
set builder_score = s.score
from scored as s
where s.id = u.id and u.builder_score is distinct from s.score;
