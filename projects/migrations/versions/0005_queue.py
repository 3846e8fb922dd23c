"""The queue: fair-share reads the newest reservations and releases of the ledger, which is mostly charges."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A ledger grows by a charge a renewal; what fair-share looks for is found without reading those."""
    op.create_index("ix_ledger_movement", "ledger", ["movement", "at"])


def downgrade() -> None:
    """Forget it."""
    op.drop_index("ix_ledger_movement", "ledger")
