"""The alert rules of the DBA guide: what they name is exposed, and each fires when it should."""

import operator
from collections.abc import Callable
from typing import Any, cast

import promql_parser
import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.openmetrics import parser
from psycopg import Connection

from tests.commands import ROOT, call, output
from tests.guide import sections

(GUIDE,) = [
    block.body
    for block in sections(ROOT / "docs" / "dba-guide.md")["Metrics and alerts"]
    if block.language == "yaml"
]
RULES: dict[str, Any] = {
    rule["alert"]: rule for group in yaml.safe_load(GUIDE)["groups"] for rule in group["rules"]
}

Labels = frozenset[tuple[str, str]]
Vector = dict[tuple[str, Labels], float]
"""Values by name and labels."""

COMPARED: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "==": operator.eq,
}


def exposed(database: str) -> Vector:
    text = output(call("metrics", "--dsn", database))
    families: list[Metric] = list(cast(Any, parser).text_string_to_metric_families(text))
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value_of(expression: promql_parser.Expr, seen: Vector) -> Vector | float:
    """Evaluate the few forms of PromQL that the rules are made of, as Prometheus does."""
    match expression:
        case promql_parser.NumberLiteral():
            return expression.val
        case promql_parser.VectorSelector():
            return select(expression, seen)
        case promql_parser.Call() if expression.func.name == "absent":
            found = value_of(expression.args[0], seen)
            return {} if found else {("", frozenset()): 1.0}
        case promql_parser.BinaryExpr():
            # no on(), ignoring() or bool
            assert expression.modifier is None or expression.modifier.matching is None
            left, right = value_of(expression.lhs, seen), value_of(expression.rhs, seen)
            assert isinstance(left, dict)
            return combined(left, str(expression.op), right)
        case _:
            raise AssertionError(f"this test does not know {expression}")


def select(selector: promql_parser.VectorSelector, seen: Vector) -> Vector:
    found = {key: value for key, value in seen.items() if key[0] == selector.name}
    for matcher in selector.matchers.matchers:
        equal = matcher.op == promql_parser.MatchOp.Equal
        assert equal or matcher.op == promql_parser.MatchOp.NotEqual, selector
        found = {
            (name, labels): value
            for (name, labels), value in found.items()
            if ((matcher.name, matcher.value) in labels) == equal
        }
    return found


def combined(left: Vector, sign: str, right: Vector | float) -> Vector:
    if not isinstance(right, dict):
        return {key: one for key, one in left.items() if COMPARED[sign](one, right)}
    matched = {labels: value for (_, labels), value in right.items()}
    if sign == "or":
        labels_of_left = {labels for _, labels in left}
        return left | {key: one for key, one in right.items() if key[1] not in labels_of_left}
    if sign == "and":
        return {key: one for key, one in left.items() if key[1] in matched}
    return {
        key: one
        for key, one in left.items()
        if key[1] in matched and COMPARED[sign](one, matched[key[1]])
    }


def firing(seen: Vector) -> set[str]:
    return {name for name, rule in RULES.items() if value_of(parsed(rule), seen)}


def parsed(rule: dict[str, Any]) -> promql_parser.Expr:
    return promql_parser.parse(rule["expr"])


def selectors(expression: promql_parser.Expr) -> list[promql_parser.VectorSelector]:
    match expression:
        case promql_parser.VectorSelector():
            return [expression]
        case promql_parser.BinaryExpr():
            return selectors(expression.lhs) + selectors(expression.rhs)
        case promql_parser.Call():
            return [one for argument in expression.args for one in selectors(argument)]
        case _:
            return []


def test_rules_are_as_prometheus_wants_them() -> None:
    for rule in RULES.values():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["annotations"]["summary"]
        promql_parser.parse_duration(rule.get("for", "1s"))


def test_rules_name_what_is_exposed(database: str) -> None:
    labels = {name: dict(labels) for name, labels in exposed(database)}
    values = {(name, pair) for name, labels in exposed(database) for pair in labels}
    for rule in RULES.values():
        found = selectors(parsed(rule))
        assert found, rule
        for selector in found:
            assert selector.name in labels, rule
            for matcher in selector.matchers.matchers:
                assert (selector.name, (matcher.name, matcher.value)) in values, rule


BEATING = "update builder_score.worker_status set heartbeat_at = clock_timestamp()"
LATE = (
    "insert into builder_score.score_recalc_queue (user_id, priority, reason, not_before)"
    " values (gen_random_uuid(), {priority}, 'x', now() - interval '{age}')"
)
STATES = {
    "PyscoreWorkerSilent": "update builder_score.worker_status"
    " set heartbeat_at = now() - interval '5 minutes'",
    "PyscoreLate": LATE.format(priority=10, age="6 minutes"),
    "PyscoreFailing": "insert into builder_score.score_state (user_id, attempts, retry_at)"
    " select gen_random_uuid(), 1, now() + interval '1 hour' from generate_series(1, 10)",
    "PyscoreDeadLetters": "insert into builder_score.score_dead_letter"
    " values (gen_random_uuid(), 5, '22012', 'division by zero', now(), now())",
    "PyscoreDetached": "select builder_score.detach()",
    "PyscorePaused": "update builder_score.settings set paused = true",
}
"""What makes a rule fire, on a database that is healthy else."""


def test_every_rule_has_a_state_in_which_it_fires() -> None:
    assert {*STATES, "PyscoreUnread", "PyscoreProblem"} == set(RULES)


@pytest.mark.parametrize("name", STATES)
def test_a_rule_fires_in_its_state_and_in_no_other(
    database: str, db: Connection[Any], name: str
) -> None:
    db.execute(BEATING.encode())
    assert firing(exposed(database)) == set()
    db.execute(STATES[name].encode())
    assert firing(exposed(database)) == {name, "PyscoreProblem"}


def test_a_backfill_that_takes_long_is_not_late(database: str, db: Connection[Any]) -> None:
    db.execute(BEATING.encode())
    db.execute(LATE.format(priority=20, age="1 hour").encode())
    assert firing(exposed(database)) == {"PyscoreProblem"}, "while nothing gets done"
    db.execute(
        "update builder_score.worker_status set minute = date_trunc('minute', clock_timestamp()),"
        " minute_recalculated = 100, minute_before_recalculated = 100 where worker = 'drain'"
    )
    assert firing(exposed(database)) == set()


def test_a_database_that_cannot_be_read_and_an_exporter_that_is_gone() -> None:
    assert firing({("pyscore_up", frozenset()): 0}) == {"PyscoreUnread"}
    assert firing({}) == {"PyscoreUnread"}
    assert firing({("pyscore_up", frozenset()): 1}) == set()
