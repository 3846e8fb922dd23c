"""What a run's trainer is doing before its first step."""

import sqlalchemy as sa
from alembic import op

revision = "0043"
down_revision = "0042"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Of the runs that are there it is not known."""
    op.add_column("runs", sa.Column("phase", sa.String(), nullable=False, server_default=""))


def downgrade() -> None:
    """The trainer's own events still tell."""
    op.drop_column("runs", "phase")
