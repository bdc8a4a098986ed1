"""Runs `pyscore doctor`, and what it prints to mend things."""

import json
import shlex
from contextlib import ExitStack
from typing import Any, Self

import psycopg

from pyscore.cluster import PrivateCluster
from tests.commands import call, output, psql
from tests.community import add_project, add_user, configure, drain
from tests.conftest import janitor

# pg_cron works in another database than those of these tests; somebody else runs the worker there.
HEARD = "update builder_score.worker_status set heartbeat_at = clock_timestamp()"

Finding = dict[str, Any]


def examine(address: str, *options: str) -> list[Finding]:
    """What doctor finds; its exit code has to go with it."""
    done = call("doctor", "--json", "--dsn", address, *options)
    assert done.stderr == ""
    data = json.loads(done.stdout)
    findings: list[Finding] = data["findings"]
    levels = [finding["level"] for finding in findings]
    assert (data["ok"], data["warnings"], data["failures"]) == tuple(
        levels.count(level) for level in ("ok", "warn", "fail")
    )
    assert done.returncode == (3 if data["failures"] else 0)
    return findings


def not_ok(findings: list[Finding]) -> list[tuple[str, str, str]]:
    """What needs a person."""
    return [
        (finding["check"], finding["level"], finding["message"])
        for finding in findings
        if finding["level"] != "ok"
    ]


def of(check: str, findings: list[Finding]) -> list[Finding]:
    """The lines of one check; there has to be one."""
    found = [finding for finding in findings if finding["check"] == check]
    assert found, f"nothing was said about {check}"
    return found


def level_of(check: str, findings: list[Finding]) -> str:
    """The worst that a check has found."""
    return max((one["level"] for one in of(check, findings)), key=["ok", "warn", "fail"].index)


def follow(server: PrivateCluster, address: str, remedy: str) -> None:
    """Run a remedy as it was printed: statements with psql, commands of ours in a shell's way."""
    statements: list[str] = []

    def flush() -> None:
        if statements:
            psql(server, address, "\n".join(statements))
            statements.clear()

    for line in remedy.splitlines():
        if line.startswith(("-- ", "# ")):
            continue
        if line.startswith("pyscore "):
            flush()
            output(call(*shlex.split(line)[1:], DATABASE_URL=address))
        else:
            assert line.endswith((";", "\\gexec")), f"neither SQL nor a command of ours: {line}"
            statements.append(line)
    flush()


def mend(server: PrivateCluster, address: str, findings: list[Finding]) -> None:
    """Run the remedies of all these findings, each once."""
    remedies = [finding["remedy"] for finding in findings if finding["level"] != "ok"]
    for remedy in dict.fromkeys(remedies):
        assert remedy, "there is no remedy"
        follow(server, address, remedy)


class Patient:
    """A healthy database with people and scores, made anew when a test did not leave it so."""

    def __init__(self, server: PrivateCluster, template: str) -> None:
        self._server = server
        self._name = "patient"
        self._made, self._copy = ExitStack(), ExitStack()
        self._template = template
        self._address: str | None = None

    def __enter__(self) -> Self:
        made = janitor(
            self._server, f"{self._name}_template", template=self._template, as_template=True
        )
        address = self._made.enter_context(made)
        with psycopg.connect(address, autocommit=True) as db:
            configure(db, debounce_window="0", max_attempts=1)
            ann, eve = add_user(db, "ann", bio="ships"), add_user(db, "eve")
            add_project(db, ann, status="shipped")
            add_project(db, eve)
            drain(db)
            db.execute(HEARD)
        return self

    def __exit__(self, *_: object) -> None:
        self._copy.close()
        self._made.close()

    def address(self) -> str:
        """The database's address; after this it counts as spoilt."""
        address, self._address = self._address, None
        if address is None:
            self._copy.close()
            made = janitor(self._server, self._name, template=f"{self._name}_template")
            address = self._copy.enter_context(made)
        else:
            with psycopg.connect(address, autocommit=True) as db:
                db.execute(HEARD)
        return address

    def is_healthy(self, address: str) -> None:
        """Say that the database may serve the next test."""
        self._address = address
