"""How ``pyscore migrate --dry-run`` words its plan."""

from datetime import timedelta

from rich.text import Text

from pyscore.cli.console import console
from pyscore.cli.wording import duration, printable
from pyscore.plan import Backfill, Plan, Statement, Step


def draw(plan: Plan) -> None:
    """Print a plan, a line for each thing."""
    out = console()
    for line in _lines(plan):
        out.print(line, soft_wrap=True)


def _lines(plan: Plan) -> list[Text]:
    where = f"{printable(plan.database)}, the application's tables in {printable(plan.host_schema)}"
    if not plan.steps:
        return [Text(f"{where}: at revision {plan.revision}, nothing to do")]
    at = f"at revision {plan.revision}" if plan.revision else "builder_score is not installed"
    lines = [
        Text(f"{where}: {at}"),
        Text(
            f"pyscore migrate would bring it to revision {plan.target}; nothing is changed by "
            "asking, and no table of the application's was locked"
        ),
    ]
    for step in plan.steps:
        lines += [Text(), *_step_lines(step)]
    rest = [*plan.publications, *plan.notes]
    if plan.backfill is not None:
        rest.append(_backfill(plan.backfill))
        rest.append("not tried: whether the application's triggers on users let a score be written")
    return [*lines, Text(), *(Text(printable(one)) for one in rest)]


def _step_lines(step: Step) -> list[Text]:
    does = step.does.split(". ")[0].rstrip(".")
    transaction = "in one transaction" if step.in_transaction else "OUTSIDE a transaction"
    lines = [
        Text(f"{step.revision}  {does}", style="bold"),
        Text(f"      {transaction}; locks on the application's tables: {step.locks}"),
    ]
    for change in step.changes:
        lines.append(Text(f"  {change.action:<5}  {change.kind} {printable(change.what)}"))
    lines += [_statement(one) for one in step.statements if one.lock]
    return lines


def _statement(statement: Statement) -> Text:
    text = printable(" ".join(statement.sql.split()))
    return Text(f"         {text};  -- {statement.lock}", style="dim")


def _backfill(backfill: Backfill) -> str:
    if backfill.users is None:
        return "then the worker computes everybody's score (users has no statistics: ANALYZE tells)"
    took = duration(timedelta(seconds=backfill.users / backfill.per_second))
    return (
        f"then the worker computes about {backfill.users:,} scores, {backfill.per_second:,} a "
        f"second at most (pyscore settings set backfill_per_second): {took} or more"
    )
