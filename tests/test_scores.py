"""Tiers: every number has one, whatever a column may hold."""

import math

import pytest

from pyscore import UserScore
from pyscore.scores import TIERS, Explanation, tier_of


@pytest.mark.parametrize(
    ("score", "number"),
    [
        *((0, 1), (30, 1), (30.9, 1), (31, 2), (55.9, 2), (56, 3), (75, 3), (76, 4), (100, 4)),
        # what never was computed
        *((-1, 1), (-math.inf, 1), (math.nan, 1), (101, 4), (math.inf, 4), (10**400, 4)),
    ],
)
def test_every_number_has_a_tier(score: float, number: int) -> None:
    tier = TIERS[number - 1]
    assert tier.number == number
    assert tier_of(score) == tier
    assert UserScore(1, "ann", score).tier == tier
    assert Explanation(1, "ann", score, ()).tier == tier


def test_no_score_has_no_tier() -> None:
    assert UserScore(1, "ann", None).tier is None
    assert Explanation(1, "ann", None, ()).tier is None
