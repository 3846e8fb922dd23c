"""The server as its admins have set it up, and findings that were put on record."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Nothing is set up so far: the settings of the environment hold."""
    op.create_table(
        "discord_places",
        sa.Column("guild_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("discord_id", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("guild_id", "name", name="pk_discord_places"),
    )
    op.create_table(
        "findings",
        sa.Column("message_id", sa.String(), nullable=False),
        sa.Column("project_id", WHOLE, nullable=False),
        sa.Column("number", WHOLE, nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_findings_project_id_projects"),
        sa.PrimaryKeyConstraint("message_id", name="pk_findings"),
    )


def downgrade() -> None:
    """Forget both; the record still tells of them."""
    op.drop_table("findings")
    op.drop_table("discord_places")
