"""What is wrong, by one look, and what to do about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pyscore.cli.looking import Look
from pyscore.cli.wording import counted, duration, printable

STALE = timedelta(minutes=2)
"""A resident worker beats every few seconds, and a pg_cron job starts every minute."""

MANY = 10
"""Users in backoff at once: with nobody computed meanwhile the fault is hardly theirs."""

LOW = 20
"""The priority of backfills, which may take long."""

_UNDER_WAY = ("starting", "connecting", "sending")


@dataclass(frozen=True)
class Problem:
    """Something that needs a person.

    Attributes:
        what: What is wrong, in a few words.
        advice: What to do.
    """

    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.what}: {self.advice}"


def obstacles(health: Mapping[str, Any], unheard: timedelta = timedelta()) -> list[Problem]:
    """Say what keeps the worker from doing anything.

    Args:
        health: The columns of builder_score.health.
        unheard: How long nothing was heard of a worker that never ran before.
    """
    found: list[Problem] = []
    if not health["attached"]:
        found.append(Problem("detached", "SELECT * FROM builder_score.attach();"))
    silent: timedelta = unheard if health["heartbeat_age"] is None else health["heartbeat_age"]
    if health["paused"]:
        reason = printable(health["paused_reason"] or "no reason given")
        found.append(Problem(f"paused ({reason})", "pyscore resume"))
    elif health["scheduler"] == "none":
        found.append(
            Problem(
                "nothing runs the worker",
                "`pyscore schedule`, or keep `pyscore worker` running",
            )
        )
    elif silent > STALE and not health["workers_heard"]:
        elsewhere = health.get("cron_database")
        place = f" of database {printable(elsewhere)}" if elsewhere else ""
        found.append(
            Problem(
                f"nothing was heard of the worker for {duration(silent)}",
                f"see cron.job_run_details{place} and the server's log",
            )
        )
    return found


def find_problems(look: Look) -> list[Problem]:
    """Say what is wrong, each with what to do.

    An error that lies behind us is none: what it left undone shows as lag or as dead letters.
    """
    health = look.health
    problems = obstacles(health)
    workers, heard = health["workers"], health["workers_heard"]
    if 0 < heard < workers and not health["paused"]:
        problems.append(
            Problem(
                f"{workers - heard} of {workers} workers not heard of for {duration(STALE)}",
                "`pyscore schedule` if settings.workers was raised, else `pyscore doctor`",
            )
        )
    failed = _failed_run(look)
    if failed is not None:
        message = printable(" ".join((failed["message"] or "no message").split()))
        problems.append(Problem(f"the last pg_cron run failed ({message})", _advice(failed)))
    late = _late(look)
    if late is not None:
        problems.append(
            Problem(
                f"the oldest due row waits since {duration(late)}",
                "`pyscore status --watch` shows whether the worker catches up",
            )
        )
    if health["retrying"] >= MANY and not health["recalculated_per_second"]:
        problems.append(
            Problem(
                f"{counted(health['retrying'], 'user')} failed and wait for another attempt, and "
                "nobody was computed meanwhile",
                "pyscore doctor",
            )
        )
    if health["dead_letters"]:
        problems.append(
            Problem(counted(health["dead_letters"], "dead letter"), "pyscore dead-letter list")
        )
    return problems


def _failed_run(look: Look) -> dict[str, Any] | None:
    """Give a worker's last run whose outcome is known, when it failed and is still to run."""
    if look.health["scheduler"] != "pg_cron":
        return None
    last: dict[str, dict[str, Any]] = {}
    for run in look.job_runs:
        if run["status"] not in _UNDER_WAY:
            last.setdefault(run["job"].replace("-at-start", ""), run)
    return next((run for run in last.values() if run["status"] == "failed"), None)


def _advice(run: dict[str, Any]) -> str:
    message, role = run["message"] or "", run["run_as"]
    if message.startswith("connection failed"):
        return (
            f"pg_cron connects to cron.host as role {role}, which must be able to log in: "
            "pg_hba.conf must trust it there, or a password file of the server's must hold "
            "its password"
        )
    if "background process" in message:
        return "pg_cron starts jobs as background workers: raise max_worker_processes"
    return f"it ran as role {role}: see the server's log"


def _late(look: Look) -> timedelta | None:
    """Give the lag that is too long; that of a backfill counts only while nothing gets done."""
    working = look.health["recalculated_per_second"] > 0
    ages = [
        row["oldest_due_age"]
        for row in look.queue
        if row["oldest_due_age"] is not None and not (working and row["priority"] == LOW)
    ]
    return max((age for age in ages if age > STALE), default=None)
