"""Launches: drafts that wait for a confirmation, and what a member wants a sample to continue."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """No draft waits, and every sample so far continues what the house gives it."""
    op.add_column("runs", sa.Column("prompt", sa.String(), nullable=False, server_default=""))
    op.create_table(
        "launch_drafts",
        sa.Column("id", WHOLE, primary_key=True),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("person_id", WHOLE, nullable=False),
        sa.Column("project_id", WHOLE, nullable=False),
        sa.Column("allocation_id", WHOLE, nullable=False),
        sa.Column("recipe", sa.String(), nullable=False),
        sa.Column("dataset", sa.String(), nullable=False),
        sa.Column("overrides", sa.String(), nullable=False),
        sa.Column("time_limit", sa.String(), nullable=False),
        sa.Column("gpus", WHOLE, nullable=False),
        sa.Column("parent_id", WHOLE, nullable=True),
        sa.Column("fork_step", WHOLE, nullable=True),
        sa.Column("discarded", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.UniqueConstraint("request_id", name="uq_launch_drafts_request_id"),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name="fk_launch_drafts_person_id_people"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_launch_drafts_project_id_projects"),
        sa.ForeignKeyConstraint(
            ["allocation_id"], ["allocations.id"], name="fk_launch_drafts_allocation_id_allocations"
        ),
        sa.ForeignKeyConstraint(["parent_id"], ["runs.id"], name="fk_launch_drafts_parent_id_runs"),
    )


def downgrade() -> None:
    """Forget the drafts, and what samples were to continue; the record still tells of those that were drawn."""
    op.drop_table("launch_drafts")
    op.drop_column("runs", "prompt")
