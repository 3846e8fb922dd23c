"""The first tables: people, projects, the record, compute, runs, and what the bot has posted."""

import hashlib

import sqlalchemy as sa
from alembic import op

from projects.db.columns import UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
APPEND_ONLY = ("entries", "ledger")


def upgrade() -> None:
    """Make the tables, and the lab's chain."""
    op.create_table(
        "discord_commands",
        sa.Column("application_id", sa.String(), nullable=False),
        sa.Column("guild_id", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("application_id", "guild_id", name="pk_discord_commands"),
    )
    op.create_table(
        "discord_leases",
        sa.Column("guild_id", sa.String(), nullable=False),
        sa.Column("holder", sa.String(), nullable=False),
        sa.Column("until", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("guild_id", name="pk_discord_leases"),
    )
    op.create_table(
        "discord_messages",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("channel_id", sa.String(), nullable=False),
        sa.Column("nonce", sa.String(), nullable=False),
        sa.Column("intended_at", UtcDateTime(), nullable=False),
        sa.Column("message_id", sa.String(), nullable=True),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("picture", sa.String(), nullable=False),
        sa.Column("gone", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_discord_messages"),
    )
    op.create_table(
        "people",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("discord_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("first_seen", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_people"),
        sa.UniqueConstraint("discord_id", name="uq_people_discord_id"),
    )
    op.create_table(
        "pools",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("gpu_type", sa.String(), nullable=False),
        sa.Column("gpus", WHOLE, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_pools"),
        sa.UniqueConstraint("name", name="uq_pools_name"),
    )
    op.create_table(
        "streams",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("head", WHOLE, nullable=False),
        sa.Column("head_hash", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_streams"),
    )
    op.create_table(
        "discord_cursors",
        sa.Column("stream", sa.String(), nullable=False),
        sa.Column("number", WHOLE, nullable=False),
        sa.ForeignKeyConstraint(["stream"], ["streams.key"], name="fk_discord_cursors_stream_streams"),
        sa.PrimaryKeyConstraint("stream", name="pk_discord_cursors"),
    )
    op.create_table(
        "entries",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("stream", sa.String(), nullable=False),
        sa.Column("number", WHOLE, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("payload_hash", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["stream"], ["streams.key"], name="fk_entries_stream_streams"),
        sa.PrimaryKeyConstraint("id", name="pk_entries"),
        sa.UniqueConstraint("stream", "number", name="uq_entries_stream"),
    )
    op.create_table(
        "grants",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("pool_id", WHOLE, nullable=False),
        sa.Column("sponsor", sa.String(), nullable=False),
        sa.Column("seconds", WHOLE, nullable=False),
        sa.Column("drawn", WHOLE, nullable=False),
        sa.Column("until", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["pool_id"], ["pools.id"], name="fk_grants_pool_id_pools"),
        sa.PrimaryKeyConstraint("id", name="pk_grants"),
    )
    op.create_table(
        "projects",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("title", sa.String(), nullable=False),
        sa.Column("question", sa.String(), nullable=False),
        sa.Column("why", sa.String(), nullable=False),
        sa.Column("needs", sa.String(), nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("lead_id", WHOLE, nullable=False),
        sa.Column("goal", sa.String(), nullable=False),
        sa.Column("plan", sa.String(), nullable=False),
        sa.Column("compute", sa.String(), nullable=False),
        sa.Column("release", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.Column("learnt", sa.String(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["lead_id"], ["people.id"], name="fk_projects_lead_id_people"),
        sa.PrimaryKeyConstraint("id", name="pk_projects"),
        sa.UniqueConstraint("request_id", name="uq_projects_request_id"),
    )
    op.create_table(
        "allocations",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("project_id", WHOLE, nullable=False),
        sa.Column("pool_id", WHOLE, nullable=False),
        sa.Column("grant_id", WHOLE, nullable=True),
        sa.Column("requested_by", WHOLE, nullable=False),
        sa.Column("seconds", WHOLE, nullable=False),
        sa.Column("until", UtcDateTime(), nullable=False),
        sa.Column("justification", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("decided_by", WHOLE, nullable=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["decided_by"], ["people.id"], name="fk_allocations_decided_by_people"),
        sa.ForeignKeyConstraint(["grant_id"], ["grants.id"], name="fk_allocations_grant_id_grants"),
        sa.ForeignKeyConstraint(["pool_id"], ["pools.id"], name="fk_allocations_pool_id_pools"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_allocations_project_id_projects"),
        sa.ForeignKeyConstraint(["requested_by"], ["people.id"], name="fk_allocations_requested_by_people"),
        sa.PrimaryKeyConstraint("id", name="pk_allocations"),
        sa.UniqueConstraint("request_id", name="uq_allocations_request_id"),
    )
    op.create_table(
        "discord_rooms",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("project_id", WHOLE, nullable=False),
        sa.Column("channel_id", sa.String(), nullable=True),
        sa.Column("mark", sa.String(), nullable=False),
        sa.Column("gone", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_discord_rooms_project_id_projects"),
        sa.PrimaryKeyConstraint("key", name="pk_discord_rooms"),
        sa.UniqueConstraint("channel_id", name="uq_discord_rooms_channel_id"),
    )
    op.create_index("ix_discord_rooms_project_id", "discord_rooms", ["project_id"], unique=False)
    op.create_table(
        "memberships",
        sa.Column("project_id", WHOLE, nullable=False),
        sa.Column("person_id", WHOLE, nullable=False),
        sa.Column("joined_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name="fk_memberships_person_id_people"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_memberships_project_id_projects"),
        sa.PrimaryKeyConstraint("project_id", "person_id", name="pk_memberships"),
    )
    op.create_table(
        "payloads",
        sa.Column("entry_id", WHOLE, nullable=False),
        sa.Column("salt", sa.String(), nullable=True),
        sa.Column("body", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["entry_id"], ["entries.id"], name="fk_payloads_entry_id_entries"),
        sa.PrimaryKeyConstraint("entry_id", name="pk_payloads"),
    )
    op.create_table(
        "balances",
        sa.Column("allocation_id", WHOLE, nullable=False),
        sa.Column("granted", WHOLE, nullable=False),
        sa.Column("reserved", WHOLE, nullable=False),
        sa.Column("spent", WHOLE, nullable=False),
        sa.CheckConstraint("granted - reserved - spent >= 0", name="ck_balances_left"),
        sa.CheckConstraint("reserved >= 0", name="ck_balances_reserved"),
        sa.CheckConstraint("spent >= 0", name="ck_balances_spent"),
        sa.ForeignKeyConstraint(["allocation_id"], ["allocations.id"], name="fk_balances_allocation_id_allocations"),
        sa.PrimaryKeyConstraint("allocation_id", name="pk_balances"),
    )
    op.create_table(
        "ledger",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("allocation_id", WHOLE, nullable=False),
        sa.Column("movement", sa.String(), nullable=False),
        sa.Column("seconds", WHOLE, nullable=False),
        sa.Column("run_id", WHOLE, nullable=True),
        sa.Column("token", WHOLE, nullable=True),
        sa.Column("period", WHOLE, nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.CheckConstraint("seconds > 0", name="ck_ledger_positive"),
        sa.ForeignKeyConstraint(["allocation_id"], ["allocations.id"], name="fk_ledger_allocation_id_allocations"),
        sa.PrimaryKeyConstraint("id", name="pk_ledger"),
        sa.UniqueConstraint("run_id", "token", "movement", "period", name="uq_ledger_run_id"),
    )
    op.create_table(
        "runs",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("project_id", WHOLE, nullable=False),
        sa.Column("allocation_id", WHOLE, nullable=False),
        sa.Column("pool_id", WHOLE, nullable=False),
        sa.Column("requested_by", WHOLE, nullable=False),
        sa.Column("parent_id", WHOLE, nullable=True),
        sa.Column("recipe", sa.String(), nullable=False),
        sa.Column("overrides", sa.JSON(), nullable=False),
        sa.Column("config", sa.String(), nullable=False),
        sa.Column("total_steps", WHOLE, nullable=False),
        sa.Column("gpus", WHOLE, nullable=False),
        sa.Column("time_limit", WHOLE, nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("token", WHOLE, nullable=False),
        sa.Column("step", WHOLE, nullable=False),
        sa.Column("tokens", WHOLE, nullable=False),
        sa.Column("unigram_entropy", sa.Double(), nullable=True),
        sa.Column("sample", sa.String(), nullable=False),
        sa.Column("queued_at", UtcDateTime(), nullable=False),
        sa.Column("not_before", UtcDateTime(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=True),
        sa.Column("ended_at", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(["allocation_id"], ["allocations.id"], name="fk_runs_allocation_id_allocations"),
        sa.ForeignKeyConstraint(["parent_id"], ["runs.id"], name="fk_runs_parent_id_runs"),
        sa.ForeignKeyConstraint(["pool_id"], ["pools.id"], name="fk_runs_pool_id_pools"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_runs_project_id_projects"),
        sa.ForeignKeyConstraint(["requested_by"], ["people.id"], name="fk_runs_requested_by_people"),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
        sa.UniqueConstraint("request_id", name="uq_runs_request_id"),
    )
    op.create_index("ix_runs_state", "runs", ["state"], unique=False)
    op.create_table(
        "attempts",
        sa.Column("run_id", WHOLE, nullable=False),
        sa.Column("token", WHOLE, nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("pool_id", WHOLE, nullable=False),
        sa.Column("devices", sa.String(), nullable=False),
        sa.Column("reserved", WHOLE, nullable=False),
        sa.Column("charged", WHOLE, nullable=False),
        sa.Column("period", WHOLE, nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("boot_id", sa.String(), nullable=False),
        sa.Column("pid", WHOLE, nullable=True),
        sa.Column("pid_started", WHOLE, nullable=True),
        sa.Column("lease_until", UtcDateTime(), nullable=True),
        sa.Column("rung_at", UtcDateTime(), nullable=True),
        sa.Column("metrics_read", WHOLE, nullable=False),
        sa.Column("events_read", WHOLE, nullable=False),
        sa.Column("failed", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["pool_id"], ["pools.id"], name="fk_attempts_pool_id_pools"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_attempts_run_id_runs"),
        sa.PrimaryKeyConstraint("run_id", "token", name="pk_attempts"),
    )
    op.create_index("ix_attempts_state", "attempts", ["state"], unique=False)
    op.create_table(
        "points",
        sa.Column("run_id", WHOLE, nullable=False),
        sa.Column("series", sa.String(), nullable=False),
        sa.Column("step", WHOLE, nullable=False),
        sa.Column("tokens", WHOLE, nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_points_run_id_runs"),
        sa.PrimaryKeyConstraint("run_id", "series", "step", name="pk_points"),
    )
    op.create_table(
        "publications",
        sa.Column("run_id", WHOLE, nullable=False),
        sa.Column("step", WHOLE, nullable=False),
        sa.Column("folder", sa.String(), nullable=False),
        sa.Column("url", sa.String(), nullable=True),
        sa.Column("lease_until", UtcDateTime(), nullable=True),
        sa.Column("lease", WHOLE, nullable=False),
        sa.Column("tries", WHOLE, nullable=False),
        sa.Column("not_before", UtcDateTime(), nullable=False),
        sa.Column("error", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_publications_run_id_runs"),
        sa.PrimaryKeyConstraint("run_id", "step", name="pk_publications"),
    )
    for table in APPEND_ONLY:
        _forbid_changes(table)
    op.bulk_insert(
        sa.table("streams", sa.column("key"), sa.column("head"), sa.column("head_hash")),
        [{"key": "lab", "head": 0, "head_hash": hashlib.sha256(b"lab").hexdigest()}],
    )


def downgrade() -> None:
    """Take the tables away."""
    for table in APPEND_ONLY:
        _allow_changes(table)
    op.drop_table("publications")
    op.drop_table("points")
    op.drop_index("ix_attempts_state", table_name="attempts")
    op.drop_table("attempts")
    op.drop_index("ix_runs_state", table_name="runs")
    op.drop_table("runs")
    op.drop_table("ledger")
    op.drop_table("balances")
    op.drop_table("payloads")
    op.drop_table("memberships")
    op.drop_index("ix_discord_rooms_project_id", table_name="discord_rooms")
    op.drop_table("discord_rooms")
    op.drop_table("allocations")
    op.drop_table("projects")
    op.drop_table("grants")
    op.drop_table("entries")
    op.drop_table("discord_cursors")
    op.drop_table("streams")
    op.drop_table("pools")
    op.drop_table("people")
    op.drop_table("discord_messages")
    op.drop_table("discord_leases")
    op.drop_table("discord_commands")


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
        f"CREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{table} is append-only'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table} "
        f"FOR EACH ROW EXECUTE FUNCTION {table}_append_only()"
    )


def _allow_changes(table: str) -> None:
    """Take back what `_forbid_changes` has set."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"DROP TRIGGER {table}_append_only ON {table}")
        op.execute(f"DROP FUNCTION {table}_append_only()")
