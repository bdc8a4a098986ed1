"""What it costs the application: its own statements, with our triggers and without."""

from benchmarks import servers
from benchmarks.paying import databases
from benchmarks.paying.events import each_event
from benchmarks.paying.hot import hot_users
from benchmarks.paying.many import many_rows
from benchmarks.paying.single import single_rows
from benchmarks.reports import Report
from benchmarks.scales import Scale

NAME = "application"
TITLE = "What the application pays"

_REMARKS = (
    "*No triggers*: a copy of the same database, file by file, in the same server, where ours are "
    "disabled. Each round runs both, and each begins with its tables vacuumed and the queue empty; "
    "autovacuum is off, and the worker too where nothing else is said. What has to be in the queue "
    "afterwards is counted.",
    "Single rows: pgbench with 2 clients on a random row, a statement a transaction, sent as "
    "pgbench does by default (the simple protocol); a prepared statement is cheaper, so that "
    "the same triggers weigh more: those are lines of their own.",
    "Hot users: each of the 16 clients updates projects of its own, so that nothing of the "
    "application's own makes one wait for another. The upsert queue is a trigger of five lines, "
    "`insert … on conflict (user_id) do update` (scripts/upsert_queue.sql).",
)


def run(scale: Scale) -> Report:
    """Measure all of it, in one server."""
    people = scale.pick(smoke=300, quick=20_000, ordinary=150_000)
    with (
        servers.server(scale, autovacuum=False) as cluster,
        databases.make(cluster, scale, people) as bench,
    ):
        single, table_of_single = single_rows(bench)
        many, table_of_many = many_rows(bench)
        hot, table_of_hot = hot_users(bench)
        table_of_events, plot = each_event(bench)
        return Report(
            NAME,
            TITLE,
            figures=[*single, *many, *hot],
            tables=[table_of_single, table_of_many, table_of_hot, table_of_events],
            remarks=_REMARKS,
            plots=[plot],
            server=servers.describe(cluster),
        )
