"""The commits of a published checkpoint: on the Hub, and of the trainer's code."""

import sqlalchemy as sa
from alembic import op

revision = "0039"
down_revision = "0038"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Of the checkpoints that are there, neither was recorded."""
    for column in ("hub_commit", "code_commit"):
        op.add_column("publications", sa.Column(column, sa.String(), nullable=False, server_default=""))


def downgrade() -> None:
    """The commits are lost, but for those in the record."""
    for column in ("code_commit", "hub_commit"):
        op.drop_column("publications", column)
