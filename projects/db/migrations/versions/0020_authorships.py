"""By whom entries are, in a table with indexes, which quotas count by."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

BATCH = 10_000
TOLD = sa.text(
    "SELECT entries.id, entries.stream, entries.kind, payloads.body "
    "FROM entries JOIN payloads ON payloads.entry_id = entries.id "
    "WHERE payloads.body IS NOT NULL AND entries.id > :after ORDER BY entries.id LIMIT :most"
)


def upgrade() -> None:
    """The authors of earlier entries are known by their payloads, as far as these were not blanked."""
    id_type = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    authorships = op.create_table(
        "authorships",
        sa.Column("entry_id", id_type, nullable=False),
        sa.Column("person_id", id_type, nullable=False),
        sa.Column("stream", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["entry_id"], ["entries.id"], name=op.f("fk_authorships_entry_id_entries")),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name=op.f("fk_authorships_person_id_people")),
        sa.ForeignKeyConstraint(["stream"], ["streams.key"], name=op.f("fk_authorships_stream_streams")),
        sa.PrimaryKeyConstraint("entry_id", name=op.f("pk_authorships")),
    )
    connection, after = op.get_bind(), 0
    people = {row.discord_id: row.id for row in connection.execute(sa.text("SELECT id, discord_id FROM people"))}
    while told := connection.execute(TOLD, {"after": after, "most": BATCH}).all():
        after, rows = told[-1].id, []
        for entry in told:
            person_id = people.get((json.loads(entry.body).get("by") or {}).get("id"))
            if person_id is not None:
                rows.append({"entry_id": entry.id, "person_id": person_id, "stream": entry.stream, "kind": entry.kind})
        if rows:
            op.bulk_insert(authorships, rows)
    op.create_index("ix_authorships_person", "authorships", ["person_id", "kind", "entry_id"])
    op.create_index("ix_authorships_stream", "authorships", ["stream", "kind", "entry_id"])


def downgrade() -> None:
    """The payloads of entries still tell who has acted."""
    op.drop_table("authorships")
