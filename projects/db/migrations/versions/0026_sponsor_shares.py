"""Sponsors set GPU time aside for their own projects, and the use of each pool is known by project."""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing is set aside; what was used before counts in the sums over all pools alone."""
    whole = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "sponsor_shares",
        sa.Column("grant_id", whole, nullable=False),
        sa.Column("share", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["grant_id"], ["grants.id"], name=op.f("fk_sponsor_shares_grant_id_grants")),
        sa.PrimaryKeyConstraint("grant_id", name=op.f("pk_sponsor_shares")),
    )
    op.create_table(
        "sponsor_projects",
        sa.Column("project_id", whole, nullable=False),
        sa.Column("grant_id", whole, nullable=False),
        sa.ForeignKeyConstraint(
            ["grant_id"], ["sponsor_shares.grant_id"], name=op.f("fk_sponsor_projects_grant_id_sponsor_shares")
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_sponsor_projects_project_id_projects")),
        sa.PrimaryKeyConstraint("project_id", name=op.f("pk_sponsor_projects")),
    )
    op.create_table(
        "pool_usage",
        sa.Column("pool_id", whole, nullable=False),
        sa.Column("project_id", whole, nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["pool_id"], ["pools.id"], name=op.f("fk_pool_usage_pool_id_pools")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_pool_usage_project_id_projects")),
        sa.PrimaryKeyConstraint("pool_id", "project_id", name=op.f("pk_pool_usage")),
    )


def downgrade() -> None:
    """What was set aside is lost; the record tells of it."""
    op.drop_table("pool_usage")
    op.drop_table("sponsor_projects")
    op.drop_table("sponsor_shares")
