"""Shares of projects in fair-share."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Every project has the usual share."""
    op.create_table(
        "project_shares",
        sa.Column("project_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("share", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_project_shares_project_id_projects")),
        sa.PrimaryKeyConstraint("project_id", name=op.f("pk_project_shares")),
    )


def downgrade() -> None:
    """The shares that were set are lost; the record tells of each."""
    op.drop_table("project_shares")
