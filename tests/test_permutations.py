"""Every race of tests.races, in the orders that matter and, soaking, in all: nothing is lost."""

import itertools
import math
from collections.abc import Sequence
from random import Random
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from pyscore.cluster import PrivateCluster
from tests.attacks import Attack
from tests.conftest import janitor
from tests.interleave import Sessions
from tests.permutations import Spec, Stage, interleavings
from tests.races import SPECS, UNINSTALL, UNINSTALLED
from tests.statements import connect, run

SOME_HUNDREDS = 500
"""Up to so many orders of a spec are gone through one by one; of more, some are drawn."""

ROUNDS = 5
"""After so many rounds of a soak, which is about five minutes, all of those have been played."""

_numbers = itertools.count(1)


@pytest.fixture
def stage(db: Connection[Any], sessions: Sessions) -> Stage:
    return Stage(db, sessions)


@pytest.mark.parametrize("name", SPECS)
def test_nothing_is_lost_in_the_orders_that_matter(stage: Stage, name: str) -> None:
    spec = SPECS[name]
    for order in spec.orders:
        stage.play(spec, spec.turns(order))


def orders(spec: Spec, dice: Random, seed: int, soaking: bool) -> list[tuple[str, ...]]:
    """Some of the orders: with every seed the next ones, or any where there are too many."""
    count = 2
    if spec.size() > SOME_HUNDREDS:
        return [spec.any_order(dice) for _ in range(count)]
    if soaking:
        count = math.ceil(spec.size() / ROUNDS)
    lengths = spec.lengths()
    every = list(interleavings(list(lengths.values())))
    names = list(lengths)
    return [
        tuple(names[place] for place in every[(seed * count + n) % len(every)])
        for n in range(count)
    ]


def test_nothing_is_lost_in_any_order(stage: Stage, attack: Attack) -> None:
    for dice in attack.rounds(1):
        assert attack.seed is not None
        for spec in SPECS.values():
            for turns in orders(spec, dice, attack.seed, attack.soaking):
                stage.play(spec, turns)
                attack.count("interleavings")


def uninstall(server: PrivateCluster, template: str, turns: Sequence[str]) -> None:
    """Uninstall in one order of turns, from a database that is made for it."""
    with (
        janitor(server, f"uninstalled_{next(_numbers)}", template=template) as address,
        connect(address) as db,
        Sessions(address) as sessions,
    ):
        try:
            played = Stage(db, sessions).perform(UNINSTALLED, turns)
            if "u" in played.failed:  # by whoever held a table: it tries again
                steps = list(UNINSTALL)
                for step in steps[steps.index(played.failed["u"][0]) :]:
                    run(db, UNINSTALL[step])
            left = "select proname from pg_proc where pronamespace = to_regnamespace(%s)"
            assert db.execute(left, ["builder_score"]).fetchall() == []
            assert run(db, "select title from projects where status <> 'shipped'") == []
        except (AssertionError, psycopg.Error) as error:
            error.add_note(f"in this order: {UNINSTALLED.spell(turns)}")
            raise


@pytest.mark.parametrize("order", UNINSTALLED.orders)
def test_uninstalling_beside_a_worker_ends_it_without_an_error(
    server: PrivateCluster, template: str, order: str
) -> None:
    uninstall(server, template, UNINSTALLED.turns(order))


def test_uninstalling_in_any_order_ends_the_worker_without_an_error(
    server: PrivateCluster, template: str, attack: Attack
) -> None:
    for dice in attack.rounds(1):
        uninstall(server, template, UNINSTALLED.any_order(dice))
        attack.count("interleavings")
