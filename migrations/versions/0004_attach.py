"""Views, triggers, grants and policies on the host's tables."""

from pyscore import revision as script

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Run the script beside this file."""
    script.run(__file__, "up")


def downgrade() -> None:
    """Undo it."""
    script.run(__file__, "down")
