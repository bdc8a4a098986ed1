"""The application's own migrations. pyscore's are its own affair: `pyscore migrate`."""

import os

from alembic import context
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from examples.fastapi.models import Base
from pyscore.alembic import include_name, include_object

url = context.config.attributes.get("database_url") or os.environ["DATABASE_URL"]
engine = create_engine(url, poolclass=NullPool)
with engine.connect() as connection:
    # autogenerate sees the application's tables, and nothing that is pyscore's
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        include_name=include_name,
        include_object=include_object,
    )
    with context.begin_transaction():
        context.run_migrations()
