"""${message}."""

from pyscore import revision as script

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    """Run the script beside this file."""
    script.run(__file__, "up")


def downgrade() -> None:
    """Undo it."""
    script.run(__file__, "down")
