"""A worker's run, one batch at a time, for tests to look at what happens between."""

from typing import Any

from psycopg import Connection

from tests.statements import run


class Run:
    """A worker's run, batch by batch; each commits."""

    def __init__(self, db: Connection[Any], batch_size: int | None = None) -> None:
        self._db = db
        run(db, "create table memory (it builder_score.run_memory)")
        run(db, "insert into memory values (null)")
        if batch_size is not None:
            run(db, f"update memory set it.batch_size = {batch_size}")

    def batch(self) -> tuple[int, bool, bool]:
        """Give what was recalculated, and whether that was the end, of a look in full."""
        rows = self._db.execute("""
            with batch as materialized (
                select b.*
                from memory as m
                cross join lateral builder_score.run_batch('resident', m.it) as b
            ), kept as (
                update memory set it = batch.memory from batch
            )
            select recalculated, exhausted, in_full from batch
        """).fetchall()
        return rows[0]

    def put_off_the_full_look(self) -> None:
        """Let the next one be as far away as after a look that took long."""
        run(
            self._db,
            "update memory set it.full_look_at = clock_timestamp() + interval '1 hour'",
        )

    def let_it_be_time(self) -> None:
        run(self._db, "update memory set it.full_look_at = clock_timestamp()")
