"""Copies of corpora in the store."""

import sqlalchemy as sa
from alembic import op

revision = "0034"
down_revision = "0033"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The store has no corpus yet."""
    op.add_column("corpora", sa.Column("stored", sa.String(), nullable=False, server_default=""))


def downgrade() -> None:
    """No pool copies a corpus."""
    with op.batch_alter_table("corpora") as table:
        table.drop_column("stored")
