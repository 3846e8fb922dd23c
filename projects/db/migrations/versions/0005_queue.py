"""The queue: what each project has used of late, and which attempts are part of that sum already."""

import sqlalchemy as sa
from alembic import op

from projects.db.columns import UtcDateTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """The scheduler's first round adds the attempts that have ended so far."""
    op.create_table(
        "fair_usage",
        sa.Column("project_id", WHOLE, nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_fair_usage_project_id_projects"),
        sa.PrimaryKeyConstraint("project_id", name="pk_fair_usage"),
    )
    op.add_column("attempts", sa.Column("counted", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_index("ix_attempts_counted", "attempts", ["counted"])


def downgrade() -> None:
    """Forget both."""
    op.drop_index("ix_attempts_counted", table_name="attempts")
    op.drop_column("attempts", "counted")
    op.drop_table("fair_usage")
