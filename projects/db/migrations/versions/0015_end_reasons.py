"""Ends of runs and attempts have an enumerated reason beside the sentence."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

TABLES = ("runs", "attempts")


def upgrade() -> None:
    """What ended before has no enumerated reason: its sentence alone says why."""
    for table in TABLES:
        op.add_column(table, sa.Column("end_reason", sa.String(), nullable=True))


def downgrade() -> None:
    """The sentences stay."""
    for table in TABLES:
        op.drop_column(table, "end_reason")
