"""Migrations go down and up again with data in every table, and nothing that the first tables hold is lost."""

import importlib
import json
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Inspector, MetaData, create_engine, inspect, text
from sqlalchemy.exc import DBAPIError

import bot
import broker
import projects
from bot.delivery import lease, outbox
from bot.tables import DiscordCommands, DiscordForm, DiscordPurpose, DiscordRole, DiscordRoleHolder
from broker import catalogue, publications
from broker.allocations import pools, shares, sponsor_shares
from broker.publications import Repository
from broker.reports import run_plan
from broker.reviews import changes
from broker.reviews.allocation_expiry import AllocationWarning
from broker.runs import attempts, sweeps
from broker.runs.launching import Order
from broker.runs.progress import Checkpoint, Ending, Progress
from broker.runs.series import Measured
from broker.scheduling import snapshot, usage
from broker.scheduling.decisions import DecisionLog
from projects import bans, lifecycle, membership, policies
from projects.db.columns import Base
from projects.db.database import Database
from projects.db.migrations import versions
from projects.findings import Finding
from projects.record import record, redaction, verification
from tests.broker.lab import ADA, GRACE, ROSA, STRANGER, Lab

PAST_MEMBERSHIPS = 17
"""The revision that remembers past memberships."""
AUTHORSHIPS = 20
"""The revision that knows the authors of entries by a table."""
REVISIONS = sorted(module.name[:4] for module in pkgutil.iter_modules(versions.__path__))
"""Of all migrations, first to last; a number may be left out."""
RENAMED = {("runs", "dry"): "unfunded", ("attempts", "rung_at"): "notified_at", ("pools", "launcher"): "runner"}
"""Columns that a migration has renamed, with their newer names."""
MOVED = {("pools", "slurm_partition"), ("pools", "slurm_gres")}
"""Columns whose values stand in another column since; a test of its own follows them."""
ROWS_AT_0012 = Path(__file__).parent / "rows_at_0012.json"
"""A row or more of every table, as the release at revision 0012 wrote them."""


def fill(database: Database) -> None:
    """Let happen what puts rows into every table."""
    lab = Lab(database)
    lab.pool()
    project = lab.project()
    allocation = lab.allocation(project)
    lab.decline(lab.request(project))
    first, second = (lab.launch(project, allocation_id=allocation) for _ in range(2))
    token = lab.start(first)
    points = [Measured("loss", 1, 64, 2.5), Measured("loss", 2, 128, 2.25)]
    lab.renew(first, token, 30, Progress(10, 20, 2, 128, 5.0, points, [Checkpoint(2, "/tmp/nowhere/step2")]))
    lab.settle(first, token, 40, Ending(0))
    lab.start(second, 1)
    with database.write() as session:
        bans.ban(session, None, STRANGER, "Spam.")
    with database.write() as session:
        redaction.redact(session, None, record.project_stream(project), 2, "It was private.")
    with database.write() as session:
        lifecycle.propose(session, GRACE, "another", title="Another one", question="q", why="w", needs="n")
        outbox.intend(session, "project:1", "100")
        outbox.sent(session, "project:1", "200", "digest")
        outbox.open_channel(session, "project:1", project, "300")
        session.merge(DiscordCommands(application_id="1", guild_id="2", digest="d"))
        session.add(DiscordPurpose(guild_id="2", name="record", discord_id="400"))
        session.add(DiscordForm(discord_id="600", form={"form": []}))
        session.add(DiscordRole(project_id=1, role_id="500"))
        session.flush()
        session.add(DiscordRoleHolder(project_id=1, discord_id="600"))
        session.add(Finding(message_id="500", project_id=project, number=2))
    with database.write() as session:
        run_plan.plan_run(session, ADA, "draft", Order(project, "demo", "10m"))
    with database.write() as session:
        sweeps.launch(session, ADA, "sweep", Order(project, "demo", "1m"), "seed=1,2")
    with database.write() as session:
        changes.request(session, ADA, "change", allocation, justification="It grew.", hours="1")
    with database.write() as session:
        membership.offer_lead(session, ADA, project, to=str(GRACE.discord_id), reason="I travel.")
    with database.write() as session:
        catalogue.propose_dataset(
            session, ADA, "dataset", name="tiny", dataset="lab/tiny", revision="a" * 40, licence="CC-BY-4.0"
        )
    with database.write() as session:
        policies.change(session, None, "most_open_proposals", "7", "We grow.")
    with database.write() as session:
        shares.set_share(session, None, project, "2", "It waits for a paper.")
    with database.write() as session:
        sponsor_shares.set_aside(session, None, "The house", "0.25", [project], "It gave all.")
    with database.read() as session:
        state = snapshot.load(session)
    DecisionLog().keep(database, state, low=False)
    with database.write() as session:
        usage.add_ended(session)
        session.add(AllocationWarning(allocation_id=allocation, mark="7d", about="2030-01-01"))
        session.add(Repository(run_id=first, name="lab/first", private=False))
        lease.hold(session, "2", "somebody", 60)
        for entry in record.since(session, record.project_stream(project), 0):
            outbox.posted(session, entry)


def columns(database: Database) -> dict[str, list[str]]:
    """The columns of each table."""
    with database.read() as session:
        seen = inspect(session.connection())
        names = [name for name in seen.get_table_names() if name != "alembic_version"]
        return {name: sorted(column["name"] for column in seen.get_columns(name)) for name in names}


def rows(database: Database, known: dict[str, list[str]]) -> dict[str, list[str]]:
    """What stands in these columns of these tables, by whichever name the columns have now."""
    found, now = {}, columns(database)
    with database.read() as session:
        for table, names in known.items():
            called = [name if name in now[table] else RENAMED[table, name] for name in names]
            query = f"SELECT {', '.join(called)} FROM {table}"
            found[table] = sorted(repr(tuple(row)) for row in session.execute(text(query)))
    return found


def revision(database: Database) -> str:
    with database.read() as session:
        return str(session.scalar(text("SELECT version_num FROM alembic_version")))


def test_down_to_the_first_tables_and_up_again_nothing_is_lost(db: Database) -> None:
    fill(db)
    newest = columns(db)
    for one in reversed(REVISIONS[:-1]):
        db.migrate("-1")
        assert revision(db) == one
    first = columns(db)
    down = rows(db, first)
    assert [table for table, found in down.items() if not found] == [], "a table that nothing was put into"
    for one in REVISIONS[1:]:
        db.migrate(one)
        assert rows(db, first) == down, f"{one} has changed what was there before it"
    assert columns(db) == newest
    db.migrate("0001")
    assert rows(db, first) == down
    db.migrate()
    whole(db)


def test_what_is_there_before_the_way_down_is_there_after_it(db: Database) -> None:
    fill(db)
    db.migrate("0001")
    first = columns(db)
    db.migrate()
    before = rows(db, first)
    db.migrate("0001")
    db.migrate()
    assert rows(db, first) == before
    whole(db)


def test_the_fields_of_slurms_pools_become_options_of_their_runner(db: Database) -> None:
    db.migrate("0012")
    with db.write() as session:
        for name, launcher, partition, gres in (("near", "local", "", "gpu"), ("far", "slurm", "long", "gpu:h200")):
            session.execute(
                text(
                    "INSERT INTO pools (name, gpu_type, gpus, launcher, slurm_partition, slurm_gres) "
                    "VALUES (:name, 'H200', 8, :launcher, :partition, :gres)"
                ),
                {"name": name, "launcher": launcher, "partition": partition, "gres": gres},
            )
    before = rows(db, columns(db))["pools"]
    db.migrate()
    with db.read() as session:
        found = {pool.name: (pool.runner, pool.runner_options) for pool in pools.every(session)}
    assert found == {"near": ("local", {}), "far": ("slurm", {"partition": "long", "gres": "gpu:h200"})}
    db.migrate("0012")
    assert rows(db, columns(db))["pools"] == before


def test_who_left_a_project_before_is_known_from_its_record(db: Database) -> None:
    lab = Lab(db)
    project = lab.project()
    lab.join(project, STRANGER)
    lab.leave(project, STRANGER)
    lab.join(project, STRANGER)
    with db.write() as session:
        membership.follow(session, ROSA, project)
        membership.leave(session, ROSA, project)
    asked = "SELECT project_id, people.name, removed FROM past_memberships JOIN people ON people.id = person_id"
    roles = "SELECT people.name, role FROM memberships JOIN people ON people.id = person_id ORDER BY name"
    with db.read() as session:
        before = [tuple(row) for row in session.execute(text(asked))]
        left = session.scalar(text("SELECT left_at FROM past_memberships"))
    assert before == [(project, "Stranger", False)]
    db.migrate(f"{PAST_MEMBERSHIPS - 1:04}")
    with db.read() as session:
        assert [tuple(row) for row in session.execute(text(roles))][-1] == ("Stranger", "follower"), "not a contributor"
    db.migrate()
    with db.read() as session:
        assert [tuple(row) for row in session.execute(text(asked))] == before
        known = session.scalar(text("SELECT left_at FROM past_memberships"))
        assert abs(datetime.fromisoformat(str(known)) - datetime.fromisoformat(str(left))) < timedelta(minutes=1)
        assert {role for _, role in session.execute(text(roles))} == {"contributor", "follower"}


def test_who_has_acted_before_is_known_from_the_record(db: Database) -> None:
    fill(db)
    known = {"authorships": ["entry_id", "person_id", "stream", "kind"]}
    before = rows(db, known)
    assert len(before["authorships"]) > 10
    db.migrate(f"{AUTHORSHIPS - 1:04}")
    db.migrate()
    assert rows(db, known) == before


def whole(database: Database) -> None:
    """The chains verify, what may only grow is still watched, and work goes on."""
    with database.read() as session:
        assert all(verification.verify(session, stream).ok for stream in record.streams(session))
        assert publications.newest(session, 1) is not None
    for table in ("entries", "ledger"):
        with pytest.raises(DBAPIError, match="append-only"), database.write() as session:
            session.execute(text(f"DELETE FROM {table}"))
    lab = Lab(database)
    lab.proposal(ADA, "The work goes on")
    assert lab.account(1).spent == 40
    with database.write() as session:
        assert attempts.devices_in_use(session, 1) == {1}
    with pytest.raises(DBAPIError), database.write() as session:
        session.execute(
            text("INSERT INTO memberships (project_id, person_id, joined_at) VALUES (404, 404, '2030-01-01')")
        )


@pytest.fixture
def at_0012(new_url: Callable[[], str]) -> Iterator[Database]:
    """A database at revision 0012 with rows in every table."""
    database = Database(new_url())
    database.migrate("0012")
    filled = json.loads(ROWS_AT_0012.read_text())
    with database.write() as session:
        connection = session.connection()
        tables = MetaData()
        tables.reflect(connection)
        session.execute(text("DELETE FROM streams"))  # the first migration makes one, which is among the rows
        for table in tables.sorted_tables:
            for row in filled.get(table.name, ()):
                given = ", ".join(f":{name}" for name in row)
                session.execute(text(f"INSERT INTO {table.name} ({', '.join(row)}) VALUES ({given})"), row)
            if "id" in table.columns and connection.dialect.name == "postgresql":
                largest = f"(SELECT MAX(id) FROM {table.name})"
                session.execute(text(f"SELECT setval(pg_get_serial_sequence('{table.name}', 'id'), {largest})"))
    yield database
    database.close()


def test_an_upgrade_from_0012_keeps_every_row(at_0012: Database) -> None:
    known = {table: [name for name in names if (table, name) not in MOVED] for table, names in columns(at_0012).items()}
    before = rows(at_0012, known)
    assert [table for table, found in before.items() if not found] == [], "a table that nothing was put into"
    at_0012.migrate()
    assert rows(at_0012, known) == before
    whole(at_0012)


def test_the_tables_are_what_the_classes_say(at_0012: Database, db: Database, new_url: Callable[[], str]) -> None:
    import_tables()
    made = create_engine(new_url())
    Base.metadata.create_all(made)
    said = schema(inspect(made))
    made.dispose()
    fill(db)
    at_0012.migrate()
    for migrated in (db, at_0012):
        with migrated.read() as session:
            seen = inspect(session.connection())
            assert schema(seen) == said
            for table, column, default in server_defaults(seen):
                assert default == class_default(table, column), f"{table}.{column}"


def import_tables() -> None:
    """Import every module that may define a table."""
    for package in (projects, broker, bot):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.ispkg and ".migrations." not in module.name:
                importlib.import_module(module.name)


def schema(seen: Inspector) -> dict[str, dict[str, Any]]:
    """Of each table: its columns, keys, constraints and indexes, with their names and all that is said of them."""
    return {
        table: {
            "columns": {each["name"]: (type_of(seen, each), each["nullable"]) for each in seen.get_columns(table)},
            "primary key": told(seen, [seen.get_pk_constraint(table)], "constrained_columns"),
            "foreign keys": told(seen, seen.get_foreign_keys(table), "constrained_columns"),
            "unique": told(seen, seen.get_unique_constraints(table), "column_names"),
            "checks": told(seen, seen.get_check_constraints(table), "name"),
            "indexes": told(seen, seen.get_indexes(table), "name"),
        }
        for table in set(seen.get_table_names()) - {"alembic_version"}
    }


def type_of(seen: Inspector, column: Any) -> str:
    """A column's type in SQL. To SQLite, which keeps any value anywhere, these names mean the same."""
    name = str(column["type"].compile(seen.dialect))
    same = {"BIGINT": "INTEGER", "TIMESTAMP": "DATETIME", "FLOAT": "DOUBLE"}
    return same.get(name, name) if seen.dialect.name == "sqlite" else name


def told(seen: Inspector, found: Sequence[Any], key: str) -> dict[str, dict[str, Any]]:
    """What the database tells of constraints or indexes, by one of their keys.

    The keys of columns that were added in place have no name in SQLite.
    """
    unnamed = seen.dialect.name == "sqlite" and key == "constrained_columns"
    return {
        str(each[key]): {
            name: {option: str(setting).replace("<>", "!=") for option, setting in value.items()}
            if isinstance(value, dict)
            else value
            for name, value in each.items()
            if name != "name" or not unnamed
        }
        for each in found
    }


def server_defaults(seen: Inspector) -> Iterator[tuple[str, str, str]]:
    """Table, column and value of each default that a migration left in the database for the rows before it."""
    for table in set(seen.get_table_names()) - {"alembic_version"}:
        for column in seen.get_columns(table):
            value = (column["default"] or "nextval").partition("::")[0].strip("'")
            if not value.startswith("nextval"):
                yield table, column["name"], {"false": "0", "true": "1"}.get(value, value)


def class_default(table: str, column: str) -> str:
    """The default that a table's class gives a column, as SQL writes it."""
    default: Any = Base.metadata.tables[table].columns[column].default
    if default.is_callable:
        return json.dumps(default.arg(None))
    return str(default.arg) if isinstance(default.arg, str) else f"{default.arg:g}"
