"""The pg_cron job, where pg_cron is."""

from pyscore import revision as script

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Run the script beside this file."""
    script.run(__file__, "up")


def downgrade() -> None:
    """Undo it."""
    script.run(__file__, "down")
