"""GPUs of pools that are reserved for projects."""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing is reserved yet."""
    whole = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "reservations",
        sa.Column("id", whole, nullable=False),
        sa.Column("pool_id", whole, nullable=False),
        sa.Column("project_id", whole, nullable=False),
        sa.Column("gpus", whole, nullable=False),
        sa.Column("begins_at", sa.DateTime(), nullable=False),
        sa.Column("ends_at", sa.DateTime(), nullable=False),
        sa.Column("reserved_by", whole, nullable=True),
        sa.Column("cancelled_at", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(["pool_id"], ["pools.id"], name=op.f("fk_reservations_pool_id_pools")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_reservations_project_id_projects")),
        sa.ForeignKeyConstraint(["reserved_by"], ["people.id"], name=op.f("fk_reservations_reserved_by_people")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reservations")),
    )
    op.create_index(op.f("ix_reservations_pool_id"), "reservations", ["pool_id"])


def downgrade() -> None:
    """The reservations are forgotten."""
    op.drop_table("reservations")
