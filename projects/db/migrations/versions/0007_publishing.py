"""Publishing: releases, disk and the catalogue."""

import sqlalchemy as sa
from alembic import op

from projects.db.columns import UtcDateTime

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Every checkpoint so far is on disk and every repository public; the catalogue begins empty."""
    op.add_column("publications", sa.Column("disk", sa.String(), nullable=False, server_default="kept"))
    op.create_index("ix_publications_disk", "publications", ["disk"], unique=False)
    op.create_table(
        "repositories",
        sa.Column("run_id", WHOLE, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("private", sa.Boolean(), nullable=False),
        sa.Column("tries", WHOLE, nullable=False),
        sa.Column("not_before", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_repositories_run_id_runs"),
        sa.PrimaryKeyConstraint("run_id", name="pk_repositories"),
    )
    op.create_table(
        "catalogue_entries",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("body", sa.String(), nullable=False),
        sa.Column("dataset", sa.String(), nullable=False),
        sa.Column("revision", sa.String(), nullable=False),
        sa.Column("licence", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("proposed_by", WHOLE, nullable=True),
        sa.Column("decided_by", WHOLE, nullable=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("prepared", sa.String(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["proposed_by"], ["people.id"], name="fk_catalogue_entries_proposed_by_people"),
        sa.ForeignKeyConstraint(["decided_by"], ["people.id"], name="fk_catalogue_entries_decided_by_people"),
        sa.PrimaryKeyConstraint("id", name="pk_catalogue_entries"),
        sa.UniqueConstraint("request_id", name="uq_catalogue_entries_request_id"),
    )
    taken = sa.text("state <> 'declined'")
    op.create_index(
        "ix_catalogue_entries_name",
        "catalogue_entries",
        ["name"],
        unique=True,
        sqlite_where=taken,
        postgresql_where=taken,
    )


def downgrade() -> None:
    """Forget all of it."""
    op.drop_index("ix_catalogue_entries_name", table_name="catalogue_entries")
    op.drop_table("catalogue_entries")
    op.drop_table("repositories")
    op.drop_index("ix_publications_disk", table_name="publications")
    op.drop_column("publications", "disk")
