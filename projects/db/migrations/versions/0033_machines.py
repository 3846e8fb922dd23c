"""Donated machines and their tokens."""

import sqlalchemy as sa
from alembic import op

revision = "0033"
down_revision = "0032"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """No machine has been donated yet."""
    whole = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "machines",
        sa.Column("id", whole, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("pool_id", whole, nullable=False),
        sa.Column("token", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("revoked_at", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(["pool_id"], ["pools.id"], name=op.f("fk_machines_pool_id_pools")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_machines")),
        sa.UniqueConstraint("name", name=op.f("uq_machines_name")),
        sa.UniqueConstraint("token", name=op.f("uq_machines_token")),
    )


def downgrade() -> None:
    """No machine may do anything."""
    op.drop_table("machines")
