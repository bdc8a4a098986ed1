"""The schema builder_score: tables, functions, roles."""

from pyscore import revision as script

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Run the script beside this file."""
    script.run(__file__, "up")


def downgrade() -> None:
    """Undo it."""
    script.run(__file__, "down")
