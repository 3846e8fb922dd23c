"""How often a run's model cards on the Hub have become due to be written anew."""

import sqlalchemy as sa
from alembic import op

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """None is due."""
    whole = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.add_column("repositories", sa.Column("cards_due", whole, nullable=False, server_default="0"))


def downgrade() -> None:
    """What is due stays as it is on the Hub."""
    op.drop_column("repositories", "cards_due")
