"""Whether the application's own Alembic would drop what is ours."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pyscore.doctor.case import Case
from pyscore.doctor.findings import Verdict, fail, ok, warn

PATIENCE = 120.0
"""Seconds that the application's env.py may take."""

IMPORT = "from pyscore.alembic import include_name, include_object"
ARGUMENTS = "include_name=include_name, include_object=include_object,"

_OF_THE_HOST = """
    select c.oid::regclass::text as said from pg_class as c
    where c.relname = 'alembic_version' and c.relkind = 'r'
      and c.relnamespace is distinct from to_regnamespace('builder_score')
    order by 1 limit 1
"""


def autogenerate(case: Case) -> Iterator[Verdict]:
    """Look whether `alembic revision --autogenerate` of the application's names objects of ours."""
    if case.alembic_config is not None:
        yield _compare(case.alembic_config)
        return
    found = case.rows(_OF_THE_HOST)
    if found:
        yield warn(
            f"the application uses Alembic ({found[0]['said']}), whose autogenerate drops what its "
            "models do not name: not looked at",
            "pyscore doctor --alembic-config alembic.ini",
        )
    else:
        yield ok("the application does not use Alembic")


def _compare(config: Path) -> Verdict:
    """Run the application's env.py in a process of its own, and read what it would do to us."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "pyscore.doctor.comparing", str(config), str(answer)]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=PATIENCE,
            )
        except subprocess.TimeoutExpired:
            return fail(
                f"{config}: its env.py was not through after {PATIENCE:.0f} s",
                f"alembic -c {config} check",
            )
        if done.returncode != 0 or not answer.exists():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            why = lines[-1].strip() if lines else f"exit code {done.returncode}"
            return fail(f"{config} could not be run: {why}", f"alembic -c {config} check")
        operations: list[str] = json.loads(answer.read_text(encoding="utf-8"))
    if not operations:
        return ok(f"{config}: autogenerate leaves everything of ours alone")
    shown = ", ".join(operations[:5])
    more = f" and {len(operations) - 5} more" if len(operations) > 5 else ""
    return fail(
        f"{config}: autogenerate would {shown}{more}",
        "# in env.py:",
        IMPORT,
        "# and in each context.configure(...):",
        ARGUMENTS,
    )
