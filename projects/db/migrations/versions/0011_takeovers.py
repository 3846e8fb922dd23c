"""The boot of each supervisor, since that of a job of Slurm's says nothing about its supervisor's host."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Supervisors so far ran on the host and boot of their trainers."""
    op.add_column("attempts", sa.Column("supervisor_boot_id", sa.String(), nullable=False, server_default=""))
    op.execute("UPDATE attempts SET supervisor_boot_id = boot_id WHERE supervisor_pid IS NOT NULL")


def downgrade() -> None:
    """Those of jobs are replaced no more."""
    op.execute("UPDATE attempts SET supervisor_pid = NULL WHERE supervisor_boot_id <> boot_id")
    op.execute("ALTER TABLE attempts DROP COLUMN supervisor_boot_id")  # in place: others refer to the rows
