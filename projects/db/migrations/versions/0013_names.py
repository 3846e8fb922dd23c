"""Columns take the names that the code calls them by, and keys those that the classes give them."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

RENAMED = (("runs", "dry", "unfunded"), ("attempts", "rung_at", "notified_at"))
# Earlier migrations left these names to PostgreSQL; SQLite's columns that were added in place have keys without a name.
KEYS = (
    ("allocations", "allocations_renews_id_fkey", "fk_allocations_renews_id_allocations"),
    ("allocations", "allocations_endorsed_by_fkey", "fk_allocations_endorsed_by_people"),
    ("balances", "balances_grant_id_fkey", "fk_balances_grant_id_grants"),
    ("launch_drafts", "launch_drafts_pkey", "pk_launch_drafts"),
)


def upgrade() -> None:
    """A run is paused because it is unfunded; workers are notified of an attempt."""
    for table, before, after in RENAMED:
        op.execute(f"ALTER TABLE {table} RENAME COLUMN {before} TO {after}")
    if op.get_bind().dialect.name == "postgresql":
        for table, before, after in KEYS:
            op.execute(f"ALTER TABLE {table} RENAME CONSTRAINT {before} TO {after}")
        op.alter_column("pools", "most_submitted", type_=sa.BigInteger())


def downgrade() -> None:
    """All take their old names again."""
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("pools", "most_submitted", type_=sa.Integer())
        for table, before, after in KEYS:
            op.execute(f"ALTER TABLE {table} RENAME CONSTRAINT {after} TO {before}")
    for table, before, after in RENAMED:
        op.execute(f"ALTER TABLE {table} RENAME COLUMN {after} TO {before}")
