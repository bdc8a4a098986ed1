"""``pyscore rank``: where somebody stands among all who have a score."""

from __future__ import annotations

from typing import Any

import click

from pyscore.cli.options import dsn_option, installed, json_option, print_json
from pyscore.cli.users import find_users
from pyscore.cli.wording import number, printable

_STANDING = """
select u.id::text as user_id, u.username, s.score, s.rank, s.people, s.percentile
from builder_score.host_users as u
cross join lateral builder_score.standing(u.id::builder_score.user_id) as s
where u.id = %s::text::builder_score.user_id
"""


@click.command()
@click.argument("user")
@dsn_option
@json_option
def rank(user: str, dsn: str | None, as_json: bool) -> None:
    """Show where somebody stands among all.

    USER is an id or a username; what is an id of somebody's is never taken for a username. Rank 1
    is the highest score, and equal scores share a rank. The percentile is the share of the other
    people who have a lower score. Both are as of the worker's last batch, and nobody is counted for
    them: they take no longer among millions.
    """
    with installed(dsn) as connection:
        (found,) = find_users(connection, [user])
        result = {
            "user": user,
            **(connection.execute(_STANDING, [found.user_id]).fetchone() or {}),
        }
    if as_json:
        print_json(result)
    else:
        click.echo(_line(result))


def _line(result: dict[str, Any]) -> str:
    name = printable(result["username"] or result["user_id"])
    if result["rank"] is None:
        return f"{name}: no score yet"
    return (
        f"{name}: rank {result['rank']:,} of {result['people']:,} with {number(result['score'])}, "
        f"above {result['percentile']:.1f} % of the others"
    )
