"""Sweeps: runs that were launched together over the points of a grid or a list."""

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """No run so far is one of a sweep, and no draft launches one."""
    whole = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "sweeps",
        sa.Column("id", whole, nullable=False),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("project_id", whole, nullable=False),
        sa.Column("requested_by", whole, nullable=False),
        sa.Column("recipe", sa.String(), nullable=False),
        sa.Column("points", sa.String(), nullable=False),
        sa.Column("swept", sa.String(), nullable=False),
        sa.Column("overrides", sa.JSON(), nullable=False),
        sa.Column("gpus", whole, nullable=False),
        sa.Column("time_limit", whole, nullable=False),
        sa.Column("launched_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_sweeps_project_id_projects")),
        sa.ForeignKeyConstraint(["requested_by"], ["people.id"], name=op.f("fk_sweeps_requested_by_people")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sweeps")),
        sa.UniqueConstraint("request_id", name=op.f("uq_sweeps_request_id")),
    )
    op.create_index(op.f("ix_sweeps_project_id"), "sweeps", ["project_id"])
    # Alembic adds no foreign key to a table of SQLite's, and SQLite itself does.
    kind = "INTEGER" if op.get_bind().dialect.name == "sqlite" else "BIGINT"
    op.execute(f"ALTER TABLE runs ADD COLUMN sweep_id {kind} CONSTRAINT fk_runs_sweep_id_sweeps REFERENCES sweeps (id)")
    op.create_index(op.f("ix_runs_sweep_id"), "runs", ["sweep_id"])
    op.add_column("launch_drafts", sa.Column("sweep", sa.String(), nullable=False, server_default=""))


def downgrade() -> None:
    """The runs stay; that they are of a sweep is forgotten, and so are the drafts of sweeps."""
    op.execute("DELETE FROM launch_drafts WHERE sweep <> ''")
    op.drop_column("launch_drafts", "sweep")
    op.drop_index(op.f("ix_runs_sweep_id"), "runs")
    op.drop_column("runs", "sweep_id")
    op.drop_table("sweeps")
