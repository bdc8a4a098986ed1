"""Which of the host's indexes serve: one that no plan takes is as good as none."""

from typing import Any

import psycopg
import pytest
from psycopg import Connection

SERVES = {
    "(owner)": True,
    "(owner desc, score)": True,
    "(owner text_pattern_ops)": True,  # for equality
    '(owner collate "POSIX")': False,
    "(owner) where score > 0": False,
    "(lower(owner))": False,
}
SERVES_IN_ORDER = {
    "(score desc, owner desc)": True,
    "(score, owner) include (other)": True,
    "(score desc, owner)": False,
    "(score desc, owner text_pattern_ops desc)": False,
    '(score desc, owner collate "POSIX" desc)': False,
    "(score)": False,
}
CASES = [
    *((definition, ["owner"], serves) for definition, serves in SERVES.items()),
    *((definition, ["score", "owner"], serves) for definition, serves in SERVES_IN_ORDER.items()),
]


@pytest.fixture
def table(db: Connection[Any]) -> Connection[Any]:
    db.execute("create table things (owner text, score integer, other integer)")
    return db


def test_an_index_counts_where_a_plan_would_take_it(table: Connection[Any]) -> None:
    for definition, columns, serves in CASES:
        with table.transaction() as undone:
            table.execute(f"create index things_index on things {definition}".encode())
            found = table.execute(
                "select builder_score.usable_index('things', %s::name[])::text", [columns]
            ).fetchone()
            assert found == ("things_index" if serves else None,), (definition, columns)
            table.execute("set local enable_seqscan = off; set local enable_sort = off")
            query = (
                "select from things where owner = 'x'"
                if columns == ["owner"]
                else "select from things order by score desc, owner desc"
            )
            plan = "\n".join(line for (line,) in table.execute(f"explain {query}".encode()))
            taken = "things_index" in plan and "Filter" not in plan and "Sort" not in plan
            assert taken is serves, (definition, plan)
            raise psycopg.Rollback(undone)
