"""Allocations and grants: their whole lives, and the ledger's refunds."""

import sqlalchemy as sa
from alembic import op

from projects.db.columns import UtcDateTime, utcnow

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
POSITIVE = "seconds > 0"
SIGNED = "seconds > 0 OR (movement = 'adjust' AND seconds <> 0)"
OF_ALLOCATIONS = {
    "starter_of": "BIGINT",
    "renews_id": "BIGINT REFERENCES allocations (id)",
    "endorsed_by": "BIGINT REFERENCES people (id)",
    "endorsed_seconds": "BIGINT",
    "decided_at": "TIMESTAMP",
    "half_until": "TIMESTAMP",
    "report": "VARCHAR NOT NULL DEFAULT ''",
}


def upgrade() -> None:
    """Columns are added in place, since SQLite cannot rebuild a table that others refer to."""
    for name, kind in OF_ALLOCATIONS.items():
        op.execute(f"ALTER TABLE allocations ADD COLUMN {name} {kind}")
    op.create_index("uq_allocations_starter_of", "allocations", ["starter_of"], unique=True)
    op.execute(
        "ALTER TABLE grants ADD COLUMN committed BIGINT NOT NULL DEFAULT 0 CONSTRAINT ck_grants_left "
        "CHECK (committed >= 0 AND drawn >= 0 AND seconds - drawn - committed >= 0)"
    )
    op.execute("ALTER TABLE balances ADD COLUMN grant_id BIGINT REFERENCES grants (id)")
    op.execute(
        "ALTER TABLE balances ADD COLUMN committed BIGINT NOT NULL DEFAULT 0 "
        "CONSTRAINT ck_balances_committed CHECK (committed >= 0)"
    )
    op.execute(
        "UPDATE balances SET grant_id = "
        "(SELECT grant_id FROM allocations WHERE allocations.id = balances.allocation_id)"
    )
    op.execute("ALTER TABLE ledger ADD COLUMN why VARCHAR NOT NULL DEFAULT ''")
    _allow_changes("ledger")
    _check_ledger(SIGNED)
    _forbid_changes("ledger")
    _create_grant_ledger()
    _create_changes()
    op.create_table(
        "allocation_warnings",
        sa.Column("allocation_id", WHOLE, nullable=False),
        sa.Column("mark", sa.String(), nullable=False),
        sa.Column("about", sa.String(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["allocation_id"], ["allocations.id"], name="fk_allocation_warnings_allocation_id_allocations"
        ),
        sa.PrimaryKeyConstraint("allocation_id", "mark", "about", name="pk_allocation_warnings"),
    )


def downgrade() -> None:
    """Tell what is new in the words of before, so that every balance keeps what it has left."""
    op.drop_table("allocation_warnings")
    op.drop_table("allocation_changes")
    _allow_changes("grant_ledger")
    op.drop_table("grant_ledger")
    _allow_changes("ledger")
    _retell_movements()
    _check_ledger(POSITIVE)
    op.drop_column("ledger", "why")
    _forbid_changes("ledger")
    op.drop_column("balances", "committed")
    op.drop_column("balances", "grant_id")
    op.drop_column("grants", "committed")
    op.execute(
        "UPDATE allocations SET state = 'approved' WHERE state IN ('exhausted', 'expired', 'revoked', 'renewed')"
    )
    op.execute("UPDATE allocations SET state = 'declined' WHERE state = 'withdrawn'")
    op.drop_index("uq_allocations_starter_of", table_name="allocations")
    for name in OF_ALLOCATIONS:
        op.execute(f"ALTER TABLE allocations DROP COLUMN {name}")


def _retell_movements() -> None:
    """A refund becomes a grant; what was taken away, a reservation and its charge. What is left is the same."""
    told = (
        "(SELECT COALESCE(SUM(ABS(seconds)), 0) FROM ledger WHERE ledger.allocation_id = balances.allocation_id "
        "AND (movement = 'refund' OR movement = 'adjust' AND seconds < 0))"
    )
    op.execute(f"UPDATE balances SET granted = granted + {told}, spent = spent + {told}")
    op.execute(
        "INSERT INTO ledger (allocation_id, movement, seconds, period, at) SELECT allocation_id, 'reserve', "
        "-seconds, period, at FROM ledger WHERE movement = 'adjust' AND seconds < 0"
    )
    op.execute("UPDATE ledger SET movement = 'charge', seconds = -seconds WHERE movement = 'adjust' AND seconds < 0")
    op.execute("UPDATE ledger SET movement = 'grant' WHERE movement IN ('refund', 'adjust')")


def _create_grant_ledger() -> None:
    op.create_table(
        "grant_ledger",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("grant_id", WHOLE, nullable=False),
        sa.Column("allocation_id", WHOLE, nullable=True),
        sa.Column("movement", sa.String(), nullable=False),
        sa.Column("seconds", WHOLE, nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.CheckConstraint("seconds > 0", name="ck_grant_ledger_positive"),
        sa.ForeignKeyConstraint(
            ["allocation_id"], ["allocations.id"], name="fk_grant_ledger_allocation_id_allocations"
        ),
        sa.ForeignKeyConstraint(["grant_id"], ["grants.id"], name="fk_grant_ledger_grant_id_grants"),
        sa.PrimaryKeyConstraint("id", name="pk_grant_ledger"),
    )
    op.create_index("ix_grant_ledger_grant_id", "grant_ledger", ["grant_id"])
    for movement, seconds in (("give", "seconds"), ("draw", "drawn")):
        carried = sa.text(
            "INSERT INTO grant_ledger (grant_id, movement, seconds, at) "
            f"SELECT id, '{movement}', {seconds}, :now FROM grants WHERE {seconds} > 0 ORDER BY id"
        )
        op.execute(carried.bindparams(sa.bindparam("now", utcnow(), type_=UtcDateTime())))
    _forbid_changes("grant_ledger")


def _create_changes() -> None:
    op.create_table(
        "allocation_changes",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("allocation_id", WHOLE, nullable=False),
        sa.Column("requested_by", WHOLE, nullable=False),
        sa.Column("seconds", WHOLE, nullable=False),
        sa.Column("until", UtcDateTime(), nullable=True),
        sa.Column("justification", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("endorsed_by", WHOLE, nullable=True),
        sa.Column("endorsed_seconds", WHOLE, nullable=True),
        sa.Column("decided_by", WHOLE, nullable=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["allocation_id"], ["allocations.id"], name="fk_allocation_changes_allocation_id_allocations"
        ),
        sa.ForeignKeyConstraint(["decided_by"], ["people.id"], name="fk_allocation_changes_decided_by_people"),
        sa.ForeignKeyConstraint(["endorsed_by"], ["people.id"], name="fk_allocation_changes_endorsed_by_people"),
        sa.ForeignKeyConstraint(["requested_by"], ["people.id"], name="fk_allocation_changes_requested_by_people"),
        sa.PrimaryKeyConstraint("id", name="pk_allocation_changes"),
        sa.UniqueConstraint("request_id", name="uq_allocation_changes_request_id"),
    )
    op.create_index("ix_allocation_changes_allocation_id", "allocation_changes", ["allocation_id"])


def _check_ledger(rule: str) -> None:
    """Hold the ledger's seconds to another rule. SQLite builds the table anew for it; nothing refers to it."""
    with op.batch_alter_table("ledger") as ledger:
        ledger.drop_constraint(op.f("ck_ledger_positive"), type_="check")
        ledger.create_check_constraint(op.f("ck_ledger_positive"), rule)


def _forbid_changes(table: str) -> None:
    """Let the database itself refuse UPDATE and DELETE on a table that may only grow."""
    if op.get_bind().dialect.name == "sqlite":
        for act in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{act.lower()} BEFORE {act} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
        return
    op.execute(
        f"CREATE OR REPLACE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{table} is append-only'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table} "
        f"FOR EACH ROW EXECUTE FUNCTION {table}_append_only()"
    )


def _allow_changes(table: str) -> None:
    """Take back what `_forbid_changes` has set."""
    if op.get_bind().dialect.name == "sqlite":
        for act in ("update", "delete"):
            op.execute(f"DROP TRIGGER {table}_no_{act}")
        return
    op.execute(f"DROP TRIGGER {table}_append_only ON {table}")
    op.execute(f"DROP FUNCTION {table}_append_only()")
