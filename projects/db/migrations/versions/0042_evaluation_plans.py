"""Evaluations ordered with a run, of each k-th checkpoint as it comes."""

import sqlalchemy as sa
from alembic import op

from projects.db.columns import UtcDateTime

revision = "0042"
down_revision = "0041"
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """No run was launched with evaluations."""
    op.create_table(
        "evaluation_plans",
        sa.Column("run_id", WHOLE, nullable=False),
        sa.Column("tasks", sa.String(), nullable=False),
        sa.Column("every", WHOLE, nullable=False),
        sa.Column("through", WHOLE, nullable=False),
        sa.Column("newest", WHOLE, nullable=True),
        sa.Column("not_before", UtcDateTime(), nullable=False),
        sa.Column("is_over", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_evaluation_plans_run_id_runs")),
        sa.ForeignKeyConstraint(["newest"], ["runs.id"], name=op.f("fk_evaluation_plans_newest_runs")),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_evaluation_plans")),
    )
    op.create_index(op.f("ix_evaluation_plans_is_over"), "evaluation_plans", ["is_over"])
    op.add_column("launch_drafts", sa.Column("evaluate", sa.String(), nullable=False, server_default=""))


def downgrade() -> None:
    """No further checkpoint is evaluated by itself; what was measured stays."""
    op.drop_column("launch_drafts", "evaluate")
    op.drop_table("evaluation_plans")
