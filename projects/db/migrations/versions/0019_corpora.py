"""Corpora, prepared data and tokenizers that lie on pools."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """No pool has any yet."""
    whole = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "corpora",
        sa.Column("id", whole, nullable=False),
        sa.Column("pool_id", whole, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("text_key", sa.String(), nullable=False),
        sa.Column("licence", sa.String(), nullable=False),
        sa.Column("files", whole, nullable=False),
        sa.Column("bytes", whole, nullable=False),
        sa.Column("documents", whole, nullable=True),
        sa.Column("text_bytes", whole, nullable=True),
        sa.Column("tokens", whole, nullable=True),
        sa.Column("vocabulary", whole, nullable=True),
        sa.Column("sources", sa.JSON(), nullable=False),
        sa.Column("manifest", sa.String(), nullable=True),
        sa.Column("added_at", sa.DateTime(), nullable=False),
        sa.Column("retired_at", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(["pool_id"], ["pools.id"], name=op.f("fk_corpora_pool_id_pools")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_corpora")),
    )
    op.create_index(op.f("ix_corpora_pool_id"), "corpora", ["pool_id"])
    live = sa.text("retired_at IS NULL")
    op.create_index(
        "ix_corpora_name", "corpora", ["pool_id", "name"], unique=True, sqlite_where=live, postgresql_where=live
    )


def downgrade() -> None:
    """What was registered is forgotten."""
    op.drop_table("corpora")
