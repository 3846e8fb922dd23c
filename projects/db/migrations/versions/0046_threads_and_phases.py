"""The address of a run's thread, which its model cards link, and since when its trainer is in its phase."""

import sqlalchemy as sa
from alembic import op

from projects.db.columns import UtcDateTime

revision = "0046"
down_revision = "0044"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Of the runs that are there neither is known."""
    op.add_column("runs", sa.Column("thread_url", sa.String(), nullable=False, server_default=""))
    op.add_column("runs", sa.Column("phase_at", UtcDateTime(), nullable=True))


def downgrade() -> None:
    """Cards that link a thread keep the link."""
    op.drop_column("runs", "phase_at")
    op.drop_column("runs", "thread_url")
