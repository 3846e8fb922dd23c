"""What evaluations and studies have measured on checkpoints."""

import sqlalchemy as sa
from alembic import op

revision = "0041"
down_revision = "0040"
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Nothing was measured yet."""
    op.create_table(
        "checkpoint_results",
        sa.Column("measured_by", WHOLE, nullable=False),
        sa.Column("step", WHOLE, nullable=False),
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("metric", sa.String(), nullable=False),
        sa.Column("run_id", WHOLE, nullable=False),
        sa.Column("position", WHOLE, nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("stderr", sa.Double(), nullable=True),
        sa.Column("documents", WHOLE, nullable=True),
        sa.Column("shots", WHOLE, nullable=True),
        sa.Column("version", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["measured_by"], ["runs.id"], name=op.f("fk_checkpoint_results_measured_by_runs")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_checkpoint_results_run_id_runs")),
        sa.PrimaryKeyConstraint("measured_by", "step", "task", "metric", name=op.f("pk_checkpoint_results")),
    )
    op.create_index(op.f("ix_checkpoint_results_run_id"), "checkpoint_results", ["run_id"])


def downgrade() -> None:
    """What was measured is lost; the record still tells of it."""
    op.drop_table("checkpoint_results")
