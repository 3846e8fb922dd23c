"""Hosts that are drained."""

import sqlalchemy as sa
from alembic import op

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Every host starts runs, as before."""
    op.add_column("hosts", sa.Column("drained_at", sa.DateTime(), nullable=True))
    op.add_column("hosts", sa.Column("pauses", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    """A drained host starts runs again."""
    op.drop_column("hosts", "pauses")
    op.drop_column("hosts", "drained_at")
