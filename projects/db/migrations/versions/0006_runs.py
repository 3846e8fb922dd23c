"""Runs: paused, resumed, forked, refunded, taken over."""

import sqlalchemy as sa
from alembic import op

from projects.db.columns import UtcDateTime, utcnow

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ADDED = {
    "runs": ("fork_step", "used", "stops_as", "dry"),
    "attempts": ("charged_at_checkpoint", "refunded", "generation", "supervisor_pid", "supervisor_started"),
}


def upgrade() -> None:
    """Say of every run so far what it has used; none is paused."""
    op.add_column("runs", sa.Column("fork_step", WHOLE, nullable=True))
    op.add_column("runs", sa.Column("used", WHOLE, nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("stops_as", sa.String(), nullable=False, server_default="cancelled"))
    op.add_column("runs", sa.Column("dry", sa.Boolean(), nullable=False, server_default="0"))
    op.add_column("attempts", sa.Column("charged_at_checkpoint", WHOLE, nullable=False, server_default="0"))
    op.add_column("attempts", sa.Column("refunded", WHOLE, nullable=False, server_default="0"))
    op.add_column("attempts", sa.Column("generation", WHOLE, nullable=False, server_default="1"))
    op.add_column("attempts", sa.Column("supervisor_pid", WHOLE, nullable=True))
    op.add_column("attempts", sa.Column("supervisor_started", WHOLE, nullable=True))
    op.execute(
        "UPDATE runs SET used = "
        "CAST((SELECT COALESCE(SUM(charged), 0) FROM attempts WHERE attempts.run_id = runs.id) AS BIGINT) / gpus"
    )


def downgrade() -> None:
    """Forget it all; a paused run, which the older states have no word for, is cancelled."""
    runs = sa.table("runs", sa.column("state"), sa.column("ended_at", UtcDateTime()))
    op.execute(runs.update().where(runs.c.state == "paused").values(state="cancelled", ended_at=utcnow()))
    for table, columns in ADDED.items():
        for column in columns:
            op.execute(f"ALTER TABLE {table} DROP COLUMN {column}")  # in place: others refer to the rows
