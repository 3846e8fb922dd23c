"""Pools whose runs can be preempted, and when and for whom a run last made way."""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """No pool preempts yet."""
    op.add_column("pools", sa.Column("preempt_after", WHOLE, nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("preempted_at", sa.DateTime(), nullable=True))
    op.add_column("runs", sa.Column("preempted_for", WHOLE, nullable=True))


def downgrade() -> None:
    """Forget it."""
    op.drop_column("runs", "preempted_for")
    op.drop_column("runs", "preempted_at")
    op.drop_column("pools", "preempt_after")
