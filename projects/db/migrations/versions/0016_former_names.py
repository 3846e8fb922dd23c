"""The names that people had before are kept until the people are forgotten."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Earlier names are found in the record."""
    op.create_table(
        "former_names",
        sa.Column("person_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("person_id", "name", name="pk_former_names"),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name="fk_former_names_person_id_people"),
    )


def downgrade() -> None:
    """Only the present names stay."""
    op.drop_table("former_names")
