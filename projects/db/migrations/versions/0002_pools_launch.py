"""What starts a pool's trainers, and what its time weighs in fair-share."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Every pool so far is of this kind of host."""
    op.add_column("pools", sa.Column("launcher", sa.String(), nullable=False, server_default="local"))
    op.add_column("pools", sa.Column("price_weight", sa.Float(), nullable=False, server_default="1"))


def downgrade() -> None:
    """Forget both; not as a batch, for SQLite would make anew a table that others refer to."""
    op.drop_column("pools", "price_weight")
    op.drop_column("pools", "launcher")
