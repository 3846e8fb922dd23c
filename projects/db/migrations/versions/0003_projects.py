"""Projects: roles, releases, channels, moderation; and the operator's policies."""

import sqlalchemy as sa
from alembic import op

from projects.db.columns import UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
PROJECT_COLUMNS = (
    ("stage_reason", sa.String, ""),
    ("release_policy", sa.String, "open"),
    ("licence", sa.String, "Apache-2.0"),
    ("has_channel", sa.Boolean, "0"),
    ("hidden", sa.Boolean, "0"),
)


def upgrade() -> None:
    """Who was in a project contributes to it; who was told of as active has a channel."""
    # One by one: a batch would rebuild the table, which SQLite refuses while rows refer to it.
    for name, kind, default in PROJECT_COLUMNS:
        op.add_column("projects", sa.Column(name, kind(), nullable=False, server_default=default))
    op.add_column("memberships", sa.Column("role", sa.String(), nullable=False, server_default="contributor"))
    op.create_table(
        "lead_offers",
        sa.Column("project_id", WHOLE, nullable=False),
        sa.Column("person_id", WHOLE, nullable=False),
        sa.Column("offered_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name="fk_lead_offers_person_id_people"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_lead_offers_project_id_projects"),
        sa.PrimaryKeyConstraint("project_id", name="pk_lead_offers"),
    )
    op.create_table(
        "policies",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_policies"),
    )
    op.execute(
        "UPDATE projects SET has_channel = (1 = 1) WHERE EXISTS (SELECT 1 FROM entries "
        "WHERE entries.stream = 'project:' || projects.id AND entries.kind = 'project.activated')"
    )


def downgrade() -> None:
    """Paused projects go on, stopped ones are completed as abandoned, and followers are nobody."""
    op.drop_table("policies")
    op.drop_table("lead_offers")
    op.execute("DELETE FROM memberships WHERE role = 'follower'")
    op.drop_column("memberships", "role")
    op.execute("UPDATE projects SET stage = 'active' WHERE stage = 'paused'")
    op.execute(
        "UPDATE projects SET stage = 'completed', outcome = 'abandoned', learnt = stage_reason WHERE stage = 'stopped'"
    )
    for name, _, _ in reversed(PROJECT_COLUMNS):
        op.drop_column("projects", name)
