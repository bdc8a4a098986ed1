"""explain(): what a score would be now, and why."""

from decimal import ROUND_HALF_UP, Decimal
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import Connection

from tests.community import add_collaborator, add_project, add_user, drain, queue, score
from tests.oracle import scores

Db = Connection[Any]


@pytest.fixture
def ada(db: Db) -> UUID:
    """Somebody with a broken number of points in every signal."""
    ada = add_user(db, "ada", bio="builds things")
    db.execute("update users set created_at = now() - interval '100 days 1 hour'")
    project = add_project(db, ada, status="shipped", github_stars=77)
    add_project(db, ada, status="shipped", impact_metrics={"users": "12.5"})
    for name in ("bob", "eve"):
        add_collaborator(db, project, add_user(db, name))
    return ada


def explain(db: Db, user: UUID) -> list[tuple[str, Decimal, float, float]]:
    return db.execute(
        "select signal, raw, points, max_points from builder_score.explain(%s)", [user]
    ).fetchall()


def test_one_row_for_each_signal_in_the_order_of_the_formula(db: Db, ada: UUID) -> None:
    rows = explain(db, ada)
    assert [(signal, maximum) for signal, _, _, maximum in rows] == [
        ("shipped", 30),
        ("vouches", 25),
        ("impact", 20),
        ("profile", 15),
        ("age", 10),
    ]
    assert [float(raw) for _, raw, _, _ in rows] == [2, 2, 89.5, pytest.approx(1 / 6), 100]


def test_raw_values_and_points_are_the_oracles(db: Db, ada: UUID) -> None:
    expected = scores(db)[ada].signals
    for signal, raw, points, _ in explain(db, ada):
        assert float(raw) == pytest.approx(float(expected[signal].raw)), signal
        assert points == pytest.approx(expected[signal].points), signal


def test_points_add_up_to_the_score_before_it_is_rounded(db: Db, ada: UUID) -> None:
    drain(db)
    total = Decimal(sum(points for _, _, points, _ in explain(db, ada)))
    computed = db.execute(
        "select score from builder_score.compute("
        "array[%s]::builder_score.user_id[], array[now()]::timestamptz[])",
        [ada],
    ).fetchone()
    assert computed == (total.quantize(Decimal("0.000001"), ROUND_HALF_UP),)
    assert total != round(total), "an example whose rounding shows"
    assert score(db, ada) == total.quantize(Decimal(1), ROUND_HALF_UP)


def test_it_says_what_the_score_would_be_now_not_what_is_stored(db: Db, ada: UUID) -> None:
    drain(db)
    stored = score(db, ada)
    add_project(db, ada, status="shipped")
    assert explain(db, ada)[0][1:3] == (3, 20)
    assert score(db, ada) == stored


def test_a_signal_without_a_row_in_the_formula_is_off_and_still_shown(db: Db, ada: UUID) -> None:
    db.execute("delete from builder_score.signals where signal = 'vouches'")
    assert explain(db, ada)[1] == ("vouches", 2, 0, 0)


def test_an_unknown_user_is_an_error_that_names_the_id(db: Db) -> None:
    nobody = uuid4()
    with pytest.raises(psycopg.errors.NoDataFound) as caught:
        explain(db, nobody)
    assert caught.value.sqlstate == "P0002"
    assert caught.value.diag.message_primary == f'user "{nobody}" does not exist'
    assert caught.value.diag.message_detail
    assert caught.value.diag.message_hint


def test_no_user_at_all_is_the_same_error(db: Db) -> None:
    with pytest.raises(psycopg.errors.NoDataFound, match="does not exist"):
        db.execute("select * from builder_score.explain(null)")


def test_it_changes_nothing_and_runs_in_a_read_only_transaction(db: Db, ada: UUID) -> None:
    def everything() -> list[object]:
        tables = ("users", "projects", "project_collaborators")
        ours = ("score_recalc_queue", "score_state", "score_dead_letter", "worker_status")
        return [
            *(
                db.execute(f"select xmin, t.* from {name} as t order by 2").fetchall()
                for name in tables
            ),
            *(
                db.execute(f"select xmin, t.* from builder_score.{name} as t order by 2").fetchall()
                for name in ours
            ),
        ]

    before = everything()
    assert queue(db) != []
    with db.transaction():
        db.execute("set transaction read only")
        explain(db, ada)
    explain(db, ada)
    assert everything() == before
