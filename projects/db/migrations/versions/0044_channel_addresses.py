"""The address of a project's channel, which its model cards link."""

import sqlalchemy as sa
from alembic import op

revision = "0044"
down_revision = "0043"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The cards of projects that have a channel go without."""
    op.add_column("projects", sa.Column("channel_url", sa.String(), nullable=False, server_default=""))


def downgrade() -> None:
    """Cards that link a channel keep the link."""
    op.drop_column("projects", "channel_url")
