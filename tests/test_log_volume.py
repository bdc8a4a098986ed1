"""What a recalculation writes into the server's log about the application's users."""

from typing import Any

import pytest
from psycopg import Connection

from benchmarks.wal import LOCK, users_and_indexes, written_by
from tests.community import add_user, configure, drain, score

PEOPLE = 20


@pytest.mark.contrib  # pg_walinspect
def test_of_an_unchanged_score_the_log_has_nothing_but_the_lock(db: Connection[Any]) -> None:
    configure(db, debounce_window="0")
    people = [add_user(db, f"person{number}") for number in range(PEOPLE)]
    drain(db)
    before = [score(db, person) for person in people]
    db.execute("create extension pg_walinspect")
    db.execute("vacuum users")
    db.execute("select builder_score.enqueue(id) from users")
    unchanged = written_by(db, lambda: drain(db))
    db.execute("update users set bio = 'Builds.' where username = 'person7'")
    changed = written_by(db, lambda: drain(db))

    of_users = users_and_indexes(db)
    assert unchanged.of(of_users) == {LOCK: PEOPLE}
    # and it is seen where there is more
    assert changed.of(of_users) == {LOCK: 1, "Heap UPDATE": 1, "Btree INSERT_LEAF": 4}
    assert [score(db, person) for person in people] != before
