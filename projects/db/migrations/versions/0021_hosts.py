"""Hosts of workers, and the pools that they serve by name."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """No host has announced itself yet."""
    whole = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "hosts",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("seen_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_hosts")),
    )
    op.create_table(
        "host_pools",
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("pool_id", whole, nullable=False),
        sa.ForeignKeyConstraint(["host"], ["hosts.name"], name=op.f("fk_host_pools_host_hosts")),
        sa.ForeignKeyConstraint(["pool_id"], ["pools.id"], name=op.f("fk_host_pools_pool_id_pools")),
        sa.PrimaryKeyConstraint("host", "pool_id", name=op.f("pk_host_pools")),
    )


def downgrade() -> None:
    """The hosts announce themselves again."""
    op.drop_table("host_pools")
    op.drop_table("hosts")
