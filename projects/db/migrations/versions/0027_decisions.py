"""The states that the scheduler's decisions used are kept for a month."""

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """No decision is kept yet."""
    whole = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "decisions",
        sa.Column("id", whole, nullable=False),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.Column("whole_id", whole, nullable=True),
        sa.Column("low", sa.Boolean(), nullable=False),
        sa.Column("size", whole, nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["whole_id"], ["decisions.id"], name=op.f("fk_decisions_whole_id_decisions")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_decisions")),
    )
    op.create_index(op.f("ix_decisions_at"), "decisions", ["at"])
    op.create_index(op.f("ix_decisions_whole_id"), "decisions", ["whole_id"])


def downgrade() -> None:
    """Decisions can no longer be replayed."""
    op.drop_table("decisions")
