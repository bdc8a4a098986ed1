"""Every race of tests.races, in the orders that matter and, soaking, in all: nothing is lost."""

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


@pytest.fixture
def stage(db: Connection[Any], sessions: Sessions) -> Stage:
    return Stage(db, sessions)


@pytest.mark.parametrize("name", SPECS)
def test_nothing_is_lost_in_the_orders_that_matter(stage: Stage, name: str) -> None:
    spec = SPECS[name]
    for order in spec.orders:
        stage.play(spec, spec.turns(order))


def orders(spec: Spec, dice: Random, seed: int, count: int) -> list[tuple[str, ...]]:
    """Some of the orders: with every seed the next ones, or any where there are too many."""
    if spec.size() > SOME_HUNDREDS:
        return [spec.any_order(dice) for _ in range(count)]
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
            for turns in orders(spec, dice, attack.seed, 2):
                stage.play(spec, turns)
                attack.count("interleavings")


def test_uninstalling_beside_a_worker_ends_it_without_an_error(
    server: PrivateCluster, template: str, attack: Attack
) -> None:
    spec = UNINSTALLED
    for number, dice in enumerate(attack.rounds(4)):
        with (
            janitor(server, f"uninstalled_{number}", template=template) as address,
            connect(address) as db,
            Sessions(address) as sessions,
        ):
            turns = spec.any_order(dice)
            try:
                played = Stage(db, sessions).perform(spec, turns)
                if "u" in played.failed:  # by whoever held a table: it tries again
                    steps = list(UNINSTALL)
                    for step in steps[steps.index(played.failed["u"][0]) :]:
                        run(db, UNINSTALL[step])
                left = "select proname from pg_proc where pronamespace = to_regnamespace(%s)"
                assert db.execute(left, ["builder_score"]).fetchall() == []
                assert run(db, "select title from projects where status <> 'shipped'") == []
            except (AssertionError, psycopg.Error) as error:
                error.add_note(f"in this order: {spec.spell(turns)}")
                raise
            attack.count("interleavings")
