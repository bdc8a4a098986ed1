"""users.builder_score, where the host has none."""

from pyscore import revision as script

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Run the script beside this file."""
    script.run(__file__, "up")


def downgrade() -> None:
    """Undo it."""
    script.run(__file__, "down")
