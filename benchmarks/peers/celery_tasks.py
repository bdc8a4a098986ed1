"""The application's Celery: what `celery -A benchmarks.peers.celery_tasks worker` runs.

The worker's processes are forked, so each makes its engine when it first needs one; a connection
is then kept by SQLAlchemy's pool, as ever. Settings are Celery's own, but for where things are.
"""

import os
from functools import cache
from typing import Any, cast
from uuid import UUID

import celery  # pyright: ignore[reportMissingTypeStubs]
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session

from benchmarks.peers import orm

BROKER = "BENCHMARK_BROKER"
DATABASE = "BENCHMARK_DATABASE"

app = cast(Any, celery).Celery("benchmarks", broker=os.environ.get(BROKER))


@cache
def engine() -> Engine:
    address = os.environ[DATABASE].removeprefix("postgresql://")
    return create_engine(f"postgresql+psycopg://{address}")


@app.task
def recalculate(user_id: str) -> None:
    with Session(engine()) as session:
        orm.recalculate(session, UUID(user_id))
        session.commit()
