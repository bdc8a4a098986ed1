"""What ranks, percentiles and the distribution should be, by PostgreSQL's own window functions."""

from typing import Any
from uuid import UUID

from psycopg import Connection

from tests.community import add_project, add_user, drain

RANKS = """
select o.user_id::text, o.score, o.rank, o.people, round(o.percentile::numeric, 9)
from (
    select s.user_id, s.score, rank() over (order by s.score desc) as rank,
           count(*) over () as people, 100 * percent_rank() over (order by s.score) as percentile
    from builder_score.score_state as s where s.score is not null
) as o
order by o.user_id::text
"""

STANDINGS = """
select u.id::text, s.score, s.rank, s.people, round(s.percentile::numeric, 9)
from builder_score.host_users as u
cross join lateral builder_score.standing(u.id::builder_score.user_id) as s
where s.score is not null
order by u.id::text
"""

PEOPLE_BY_SCORE = """
select s.score, count(*) from builder_score.score_state as s
where s.score is not null group by s.score order by s.score desc
"""

DISTRIBUTION = "select * from builder_score.distribution()"
MISCOUNTS = "select * from builder_score.verify_score_counts()"


def add_four_people(db: Connection[Any]) -> dict[str, UUID]:
    """Ada has 13, Bob and Cyd 3, Dan 0."""
    found = {name: add_user(db, name, bio="ships") for name in ("ada", "bob", "cyd")}
    found["dan"] = add_user(db, "dan")
    add_project(db, found["ada"], status="shipped")
    drain(db)
    return found


def assert_ranks_right(db: Connection[Any]) -> None:
    """Everybody's standing is what the window functions say, and so is the distribution.

    Whom the worker has not forgotten yet is counted; nothing may be committed meanwhile, unless
    this is called in a transaction that keeps its snapshot.
    """
    assert db.execute(STANDINGS).fetchall() == db.execute(RANKS).fetchall()
    assert db.execute(DISTRIBUTION).fetchall() == db.execute(PEOPLE_BY_SCORE).fetchall()
    assert db.execute(MISCOUNTS).fetchall() == []
