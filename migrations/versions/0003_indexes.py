"""The indexes that the host lacks, built concurrently."""

from pyscore import revision as script

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Run the script beside this file."""
    script.run(__file__, "up")


def downgrade() -> None:
    """Undo it."""
    script.run(__file__, "down")
