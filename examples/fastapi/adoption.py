"""What is there before the application runs: roles, its tables, some people. And then pyscore.

In production a DBA and a deployment do this. The order is the point: the application's own tables,
made by its own migrations, come first; `pyscore migrate` finds them, and scores who is there.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from rich.console import Console

from pyscore.cluster import PrivateCluster
from pyscore.demo import servers
from pyscore.demo.stage import DATABASE, Stage, open_stage, step
from pyscore.demo.waiting import look, wait_for_worker, wait_until_scored

from .seed import seed

OWNER = "builders_owner"
"""Owns the tables, and migrates: the application's tables, and pyscore."""

WEB = "builders_web"
"""What the application connects as: it reads and writes rows, no more."""

# A superuser's part. Only those may create the extension; pyscore migrate then schedules its jobs.
_ROLES = f"""
create role {OWNER} login createrole;
create role {WEB} login;
alter default privileges for role {OWNER} in schema public
    grant select, insert, update, delete on tables to {WEB};
do $$
begin
    execute format('alter database %I owner to {OWNER}', current_database());
    if current_setting('cron.database_name', true) = current_database() then
        create extension pg_cron;
        grant usage on schema cron to {OWNER};
    end if;
end $$;
"""

# Reading a score takes no grant; explaining one does.
_GRANTS = f"""
grant usage on schema builder_score to {WEB};
grant execute on function builder_score.explain(builder_score.user_id) to {WEB};
"""


@contextmanager
def adopted(console: Console, server: servers.Server) -> Generator[Stage]:
    """Start a private server with the application's database, and pyscore at work in it.

    Args:
        console: Where each step is printed.
        server: What to start.
    """
    with open_stage(
        console, server, keep=False, owner=OWNER, prepare=partial(_make_application, console)
    ) as stage:
        stage.connection.execute(_GRANTS.encode())
        before = look(stage)
        stage.worker.begin(stage)
        began = wait_for_worker(stage, before["now"])
        with step(console, "score who is there") as remarks:
            remarks.append(f"{wait_until_scored(stage, before, began).people} people")
        yield stage


def database_url(cluster: PrivateCluster, role: str) -> str:
    """Return the database's address for SQLAlchemy."""
    address = cluster.conninfo(DATABASE, user=role)
    return address.replace("postgresql://", "postgresql+psycopg://", 1)


def _make_application(console: Console, cluster: PrivateCluster) -> None:
    with step(console, "the application") as remarks:
        with psycopg.connect(cluster.conninfo(DATABASE)) as connection:
            connection.execute(_ROLES.encode())
        url = database_url(cluster, OWNER)
        config = Config(Path(__file__).with_name("alembic.ini"))
        config.attributes["database_url"] = url
        command.upgrade(config, "head")
        remarks.append(f"its own migrations, and {seed(url)} people")
