"""The application's procrastinate: what its command runs with `-a` and this module's `app`."""

import os

import procrastinate

DATABASE = "BENCHMARK_DATABASE"

connector = procrastinate.PsycopgConnector(conninfo=os.environ.get(DATABASE, ""))
app = procrastinate.App(connector=connector)


@app.task
async def recalculate(user_id: str) -> None:
    await connector.execute_query_async("select score_user(%(user_id)s)", user_id=user_id)
