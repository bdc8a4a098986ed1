-- One user's score, computed and written by a function: what a job of one user calls.
-- Every part is an index probe; an unchanged score is not written.
create function score_user(the_user uuid) returns void
language sql
as $function$
    update users as u
    set builder_score = n.score
    from (
        select round(round(least(100,
                   least(30, 10 * ln(owned.shipped + 1) / ln(2))
                   + least(25, 8 * ln(vouched.people + 1) / ln(2))
                   + least(20, 4 * log10((owned.impact + 1)::double precision))
                   + 15 * profile.filled / 6
                   + least(10, 10 * greatest(profile.days, 0) / 365)
               )::numeric, 6))::integer as score
        from (
            select (p.avatar_url ~ '\S' is true)::integer + (p.headline ~ '\S' is true)::integer
                   + (p.bio ~ '\S' is true)::integer + (p.primary_role ~ '\S' is true)::integer
                   + (p.timezone ~ '\S' is true)::integer
                   + (jsonb_typeof(p.contact_links) = 'object' and p.contact_links <> '{}')::integer::double precision as filled,
                   floor(extract(epoch from now() - p.created_at) / 86400)::double precision as days
            from users as p
            where p.id = the_user
        ) as profile
        cross join (
            select count(*) filter (where p.status = 'shipped')::double precision as shipped,
                   coalesce(sum(p.github_stars + case
                       when jsonb_typeof(p.impact_metrics -> 'users') = 'number'
                           then greatest((p.impact_metrics -> 'users')::numeric, 0)
                       when p.impact_metrics ->> 'users' ~ '^[0-9]+(\.[0-9]+)?$'
                           then (p.impact_metrics ->> 'users')::numeric
                       else 0
                   end), 0) as impact
            from projects as p
            where p.owner_id = the_user
        ) as owned
        cross join (
            select count(distinct v.person)::double precision as people
            from (
                select c.user_id as person
                from projects as p
                join project_collaborators as c on c.project_id = p.id
                where p.owner_id = the_user and c.status = 'confirmed'
                union all
                select p.owner_id
                from project_collaborators as c
                join projects as p on p.id = c.project_id
                where c.user_id = the_user and c.status = 'confirmed'
            ) as v
            where v.person <> the_user
        ) as vouched
    ) as n
    where u.id = the_user and u.builder_score is distinct from n.score
$function$;
