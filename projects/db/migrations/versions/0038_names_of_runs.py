"""The name and the tags of a run, and of the offer of one."""

import sqlalchemy as sa
from alembic import op

revision = "0038"
down_revision = "0037"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The runs that are there have neither."""
    for table in ("runs", "launch_drafts"):
        for column in ("name", "tags"):
            op.add_column(table, sa.Column(column, sa.String(), nullable=False, server_default=""))


def downgrade() -> None:
    """Names and tags are lost, but for those in the record."""
    for table in ("launch_drafts", "runs"):
        for column in ("tags", "name"):
            op.drop_column(table, column)
