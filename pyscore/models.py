"""The score on an application's own SQLAlchemy model.

    from pyscore.models import BuilderScoreMixin

    class User(BuilderScoreMixin, Base):
        __tablename__ = "users"
        id: Mapped[UUID] = mapped_column(primary_key=True)

    select(User).where(User.builder_score >= 50)

The column and its index are made by ``pyscore migrate``, not by the application's migrations:
`pyscore.alembic` keeps Alembic from making them a second time.
"""

from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Index, Integer, Table, event, text
from sqlalchemy.orm import Mapped, Mapper, declared_attr, mapped_column

__all__ = ["BuilderScoreMixin"]

COLUMN = "builder_score"
INDEX = "idx_users_builder_score"
COMMENT = "Reputation, 0 to 100, kept by the schema builder_score."
"""The comment on the column where pyscore added it."""

INFO_KEY = "pyscore"
"""In the ``info`` of what the mixin puts on a model, for `pyscore.alembic` to know it by."""


class BuilderScoreMixin:
    """Puts ``builder_score`` and its index on the model of the table ``users``.

    They are declared as ``pyscore migrate`` makes them, so that autogenerate finds no difference
    and ``create_all`` makes a table that pyscore takes as it is. The model needs a column ``id``.
    It may be a dataclass; the score is then no argument of its constructor.

    The ORM reads the column and leaves it alone: it is in no INSERT and in no UPDATE unless
    something is assigned to it. ``Session.merge`` of an old object does assign it; as with anybody
    else's write, the right score is put back soon after.

    A host whose column is not an ``integer`` declares it itself instead.

    Attributes:
        builder_score: Whole points, 0 to 100; 0 until the first computation, None where NULL was
            written. A loaded object keeps what it was loaded with, as for every other column:
            refresh it, or end the transaction, to see what has been computed meanwhile.
    """

    if TYPE_CHECKING:
        builder_score: Mapped[int | None]
    else:
        # no annotation at run time: SQLAlchemy would refuse the mixin on a dataclass
        @declared_attr
        def builder_score(cls):
            """Whole points, 0 to 100."""
            return mapped_column(
                COLUMN,
                Integer,
                nullable=True,
                # the server's: without one the ORM would insert NULL
                server_default=text("0"),
                comment=COMMENT,
                info={INFO_KEY: True},
            )


# not __table_args__: the model's own would silently replace the mixin's
@event.listens_for(BuilderScoreMixin, "instrument_class", propagate=True)
def _add_index(mapper: Mapper[Any], model: type[Any]) -> None:  # pyright: ignore[reportUnusedFunction]
    table = cast(Table, mapper.local_table)
    # a subclass has the table of its parent, or one without the column
    if COLUMN in table.c and all(index.name != INDEX for index in table.indexes):
        Index(INDEX, table.c[COLUMN].desc(), table.c["id"].desc(), info={INFO_KEY: True})
