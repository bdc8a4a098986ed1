"""People, projects, and who helps on which."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None


def upgrade() -> None:
    # no column for the score: `pyscore migrate` adds it
    op.create_table(
        "users",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("username", sa.Text, nullable=False, unique=True),
        sa.Column("token_hash", sa.Text, unique=True),
        sa.Column("headline", sa.Text),
        sa.Column("bio", sa.Text),
        sa.Column("avatar_url", sa.Text),
        sa.Column("primary_role", sa.Text),
        sa.Column("timezone", sa.Text),
        sa.Column("contact_links", JSONB, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("listed", sa.Boolean, nullable=False, server_default=sa.text("true")),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()
        ),
    )
    op.create_table(
        "projects",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column(
            "owner_id",
            sa.BigInteger,
            sa.ForeignKey("users.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False, server_default=sa.text("'in_progress'")),
        sa.Column("github_stars", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    )
    op.create_table(
        "project_collaborators",
        sa.Column(
            "project_id",
            sa.BigInteger,
            sa.ForeignKey("projects.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column(
            "user_id",
            sa.BigInteger,
            sa.ForeignKey("users.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("status", sa.Text, nullable=False, server_default=sa.text("'pending'")),
    )


def downgrade() -> None:
    op.drop_table("project_collaborators")
    op.drop_table("projects")
    op.drop_table("users")
