"""Prepared data that have left the store, and when entries of the catalogue were decided on."""

import sqlalchemy as sa
from alembic import op

revision = "0037"
down_revision = "0036"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The store may have the data of every attempt; what was decided before was decided long ago."""
    op.add_column("attempts", sa.Column("data_cleared", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("catalogue_entries", sa.Column("decided_at", sa.DateTime(), nullable=True))


def downgrade() -> None:
    """All attempts of preparations are looked at again."""
    with op.batch_alter_table("catalogue_entries") as table:
        table.drop_column("decided_at")
    with op.batch_alter_table("attempts") as table:
        table.drop_column("data_cleared")
