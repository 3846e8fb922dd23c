"""How jobs of a pool are given to Slurm, and why one of them waits there."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Slurm's default partition, and GPUs of any type."""
    op.add_column("pools", sa.Column("slurm_partition", sa.String(), nullable=False, server_default=""))
    op.add_column("pools", sa.Column("slurm_gres", sa.String(), nullable=False, server_default="gpu"))
    op.add_column("pools", sa.Column("most_submitted", sa.Integer(), nullable=False, server_default="4"))
    op.add_column("attempts", sa.Column("waiting", sa.String(), nullable=False, server_default=""))


def downgrade() -> None:
    """Forget it."""
    op.drop_column("attempts", "waiting")
    op.drop_column("pools", "most_submitted")
    op.drop_column("pools", "slurm_gres")
    op.drop_column("pools", "slurm_partition")
