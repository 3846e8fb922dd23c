"""Memberships that have ended are remembered, so that nobody decides on requests of a project that they were in."""

import json
from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

LEFT = sa.text(
    "SELECT entries.stream, payloads.body FROM entries JOIN payloads ON payloads.entry_id = entries.id "
    "WHERE entries.kind = 'project.left' AND payloads.body IS NOT NULL ORDER BY entries.id"
)


def upgrade() -> None:
    """Who left before is known by the record, as far as its entries were not blanked."""
    id_type = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    past = op.create_table(
        "past_memberships",
        sa.Column("id", id_type, nullable=False),
        sa.Column("project_id", id_type, nullable=False),
        sa.Column("person_id", id_type, nullable=False),
        sa.Column("joined_at", sa.DateTime(), nullable=False),
        sa.Column("left_at", sa.DateTime(), nullable=False),
        sa.Column("removed", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_past_memberships_project_id_projects")),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name=op.f("fk_past_memberships_person_id_people")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_past_memberships")),
    )
    op.create_index(op.f("ix_past_memberships_project_id"), "past_memberships", ["project_id"])
    connection = op.get_bind()
    people = {row.discord_id: row.id for row in connection.execute(sa.text("SELECT id, discord_id FROM people"))}
    rows = []
    for stream, body in connection.execute(LEFT):
        told = json.loads(body)
        person_id = people.get((told.get("by") or {}).get("id"))
        if person_id is not None and told.get("role") != "follower":
            at = datetime.fromisoformat(told["at"]).astimezone(UTC).replace(tzinfo=None)
            row = {"project_id": int(stream.removeprefix("project:")), "person_id": person_id}
            rows.append(row | {"joined_at": at, "left_at": at, "removed": False})
    if rows:
        op.bulk_insert(past, rows)


def downgrade() -> None:
    """Past memberships are forgotten; the record still tells of them. A newcomer is a follower, who can join again."""
    op.execute("UPDATE memberships SET role = 'follower' WHERE role = 'newcomer'")
    op.drop_table("past_memberships")
