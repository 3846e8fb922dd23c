"""A pool's runner, and the fields of its own that the runner declares."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

POOLS = sa.table(
    "pools",
    sa.column("id", sa.Integer),
    sa.column("runner", sa.String),
    sa.column("runner_options", sa.JSON),
    sa.column("slurm_partition", sa.String),
    sa.column("slurm_gres", sa.String),
)


def upgrade() -> None:
    """The two fields of Slurm's pools become options of their runner; a pool of this host has none."""
    op.execute("ALTER TABLE pools RENAME COLUMN launcher TO runner")
    op.add_column("pools", sa.Column("runner_options", sa.JSON(), nullable=False, server_default="{}"))
    pools = op.get_bind().execute(sa.select(POOLS).where(POOLS.c.runner == "slurm")).all()
    for pool in pools:
        options = {"partition": pool.slurm_partition, "gres": pool.slurm_gres}
        op.execute(sa.update(POOLS).where(POOLS.c.id == pool.id).values(runner_options=options))
    op.drop_column("pools", "slurm_gres")
    op.drop_column("pools", "slurm_partition")


def downgrade() -> None:
    """Slurm's fields have columns again; the options of any other runner are forgotten."""
    op.add_column("pools", sa.Column("slurm_partition", sa.String(), nullable=False, server_default=""))
    op.add_column("pools", sa.Column("slurm_gres", sa.String(), nullable=False, server_default="gpu"))
    pools = op.get_bind().execute(sa.select(POOLS).where(POOLS.c.runner == "slurm")).all()
    for pool in pools:
        values = {f"slurm_{name}": value for name, value in pool.runner_options.items()}
        op.execute(sa.update(POOLS).where(POOLS.c.id == pool.id).values(**values))
    op.drop_column("pools", "runner_options")
    op.execute("ALTER TABLE pools RENAME COLUMN runner TO launcher")
