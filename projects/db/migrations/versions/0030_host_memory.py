"""What a run is predicted to take of its host's memory."""

import sqlalchemy as sa
from alembic import op

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Of the runs so far it is not known."""
    whole = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.add_column("runs", sa.Column("host_memory", whole, nullable=False, server_default="0"))


def downgrade() -> None:
    """The predictions are forgotten."""
    op.drop_column("runs", "host_memory")
