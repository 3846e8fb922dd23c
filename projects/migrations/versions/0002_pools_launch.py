"""What starts a pool's trainers, and what its time weighs in fair-share."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Every pool so far is of this kind of host."""
    with op.batch_alter_table("pools") as pools:
        pools.add_column(sa.Column("launcher", sa.String(), nullable=False, server_default="local"))
        pools.add_column(sa.Column("price_weight", sa.Float(), nullable=False, server_default="1"))


def downgrade() -> None:
    """Forget both."""
    with op.batch_alter_table("pools") as pools:
        pools.drop_column("price_weight")
        pools.drop_column("launcher")
