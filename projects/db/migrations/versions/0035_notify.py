"""What mentions each person, and the role of each project's followers."""

import sqlalchemy as sa
from alembic import op

revision = "0035"
down_revision = "0034"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Everybody is mentioned in what concerns them; no project has a role yet."""
    whole = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.add_column("people", sa.Column("notify", sa.String(), nullable=False, server_default="mine"))
    op.create_table(
        "discord_roles",
        sa.Column("project_id", whole, nullable=False),
        sa.Column("role_id", sa.String(), nullable=False),
        sa.Column("ends_at", sa.DateTime(), nullable=True),
        sa.Column("gone", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_discord_roles_project_id_projects")),
        sa.PrimaryKeyConstraint("project_id", name=op.f("pk_discord_roles")),
    )
    op.create_table(
        "discord_role_holders",
        sa.Column("project_id", whole, nullable=False),
        sa.Column("discord_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["discord_roles.project_id"], name=op.f("fk_discord_role_holders_project_id_discord_roles")
        ),
        sa.PrimaryKeyConstraint("project_id", "discord_id", name=op.f("pk_discord_role_holders")),
    )


def downgrade() -> None:
    """Nobody is mentioned."""
    op.drop_table("discord_role_holders")
    op.drop_table("discord_roles")
    with op.batch_alter_table("people") as table:
        table.drop_column("notify")
