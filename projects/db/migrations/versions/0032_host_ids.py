"""The ids that hosts keep."""

import sqlalchemy as sa
from alembic import op

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A host gets its id when its worker next announces it."""
    op.add_column("hosts", sa.Column("id", sa.String(), nullable=True))
    op.create_index(op.f("ix_hosts_id"), "hosts", ["id"], unique=True)


def downgrade() -> None:
    """Hosts are told apart by their names."""
    op.drop_index(op.f("ix_hosts_id"), table_name="hosts")
    op.drop_column("hosts", "id")
