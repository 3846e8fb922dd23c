"""How jobs of a pool are given to Slurm, and why one of them waits there."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Slurm's default partition, and GPUs of any type."""
    with op.batch_alter_table("pools") as pools:
        pools.add_column(sa.Column("slurm_partition", sa.String(), nullable=False, server_default=""))
        pools.add_column(sa.Column("slurm_gres", sa.String(), nullable=False, server_default="gpu"))
        pools.add_column(sa.Column("most_submitted", sa.Integer(), nullable=False, server_default="4"))
    with op.batch_alter_table("attempts") as attempts:
        attempts.add_column(sa.Column("waiting", sa.String(), nullable=False, server_default=""))


def downgrade() -> None:
    """Forget it."""
    with op.batch_alter_table("attempts") as attempts:
        attempts.drop_column("waiting")
    with op.batch_alter_table("pools") as pools:
        pools.drop_column("most_submitted")
        pools.drop_column("slurm_gres")
        pools.drop_column("slurm_partition")
