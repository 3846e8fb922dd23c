"""Whom each post mentions."""

import sqlalchemy as sa
from alembic import op

revision = "0036"
down_revision = "0035"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The posts of before are taken to mention nobody."""
    op.add_column("discord_messages", sa.Column("mentions", sa.String(), nullable=True))
    op.create_index(op.f("ix_discord_messages_mentions"), "discord_messages", ["mentions"])


def downgrade() -> None:
    """Nobody knows whom a post mentions."""
    op.drop_index(op.f("ix_discord_messages_mentions"), table_name="discord_messages")
    with op.batch_alter_table("discord_messages") as table:
        table.drop_column("mentions")
