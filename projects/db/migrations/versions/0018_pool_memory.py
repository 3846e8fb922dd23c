"""Pools know the memory of a GPU and of a host."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

COLUMNS = ("memory_gib", "host_memory_gib")


def upgrade() -> None:
    """Nobody has said what the pools that there are have."""
    for column in COLUMNS:
        op.add_column("pools", sa.Column(column, sa.Double(), nullable=True))


def downgrade() -> None:
    """What was said is lost."""
    for column in COLUMNS:
        op.drop_column("pools", column)
