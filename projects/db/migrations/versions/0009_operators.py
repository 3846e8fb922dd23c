"""Operators: the ban list, and what a count of a person's acts is found by."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nobody is banned so far."""
    op.add_column("people", sa.Column("banned", sa.String(), nullable=True))
    op.create_index("ix_entries_kind", "entries", ["kind"])


def downgrade() -> None:
    """Forget who is banned; the record still tells of it."""
    op.drop_index("ix_entries_kind", table_name="entries")
    op.drop_column("people", "banned")
