"""Pools know how many GPUs a node has."""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The GPUs of each pool that there is are on one node."""
    whole = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.add_column("pools", sa.Column("gpus_a_node", whole, nullable=True))


def downgrade() -> None:
    """What was said is lost."""
    op.drop_column("pools", "gpus_a_node")
