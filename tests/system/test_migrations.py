"""Migrations go down and up again with data in every table, and nothing that the first tables hold is lost."""

import importlib
import pkgutil

import pytest
from sqlalchemy import inspect, text
from sqlalchemy.exc import DBAPIError

import bot
import broker
import projects
from bot.delivery import lease, outbox
from bot.tables import DiscordCommands, DiscordPlace
from broker import publications
from broker.reports import run_plan
from broker.runs import attempts
from broker.runs.attempts import Checkpoint, Ending, Progress
from broker.runs.launching import Order
from broker.runs.series import Measured
from projects import bans, lifecycle
from projects.db.columns import Base
from projects.db.database import Database
from projects.findings import Finding
from projects.record import record, redaction
from tests.broker.lab import ADA, GRACE, STRANGER, Lab
from tests.databases import database_url, db, postgres

__all__ = ["database_url", "db", "postgres"]

FIRST, LAST = 1, 12


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
        redaction.redact(session, None, record.project_stream(project), 2, "It was private.")
        lifecycle.propose(session, GRACE, "another", title="Another one", question="q", why="w", needs="n")
        outbox.intend(session, "project:1", "100")
        outbox.sent(session, "project:1", "200", "digest")
        outbox.open_room(session, "project:1", project, "300")
        session.merge(DiscordCommands(application_id="1", guild_id="2", digest="d"))
        session.add(DiscordPlace(guild_id="2", name="record", discord_id="400"))
        session.add(Finding(message_id="500", project_id=project, number=2))
        run_plan.plan_run(session, ADA, "draft", Order(project, "demo", "10m"))
        lease.hold(session, "2", "somebody", 60)
        for entry in record.since(session, record.project_stream(project), 0):
            outbox.told(session, entry)


def columns(database: Database) -> dict[str, list[str]]:
    """The columns of each table."""
    with database.read() as session:
        seen = inspect(session.connection())
        names = [name for name in seen.get_table_names() if name != "alembic_version"]
        return {name: sorted(column["name"] for column in seen.get_columns(name)) for name in names}


def rows(database: Database, known: dict[str, list[str]]) -> dict[str, list[str]]:
    """What stands in these columns of these tables."""
    found = {}
    with database.read() as session:
        for table, names in known.items():
            query = f"SELECT {', '.join(names)} FROM {table}"
            found[table] = sorted(repr(tuple(row)) for row in session.execute(text(query)))
    return found


def revision(database: Database) -> str:
    with database.read() as session:
        return str(session.scalar(text("SELECT version_num FROM alembic_version")))


def test_down_to_the_first_tables_and_up_again_nothing_is_lost(db: Database) -> None:
    fill(db)
    newest = columns(db)
    for number in range(LAST - 1, FIRST - 1, -1):
        db.migrate("-1")
        assert revision(db) == f"{number:04}"
    first = columns(db)
    down = rows(db, first)
    assert [table for table, found in down.items() if not found] == [], "a table that nothing was put into"
    for number in range(FIRST + 1, LAST + 1):
        db.migrate(f"{number:04}")
        assert rows(db, first) == down, f"{number:04} has changed what was there before it"
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


def whole(database: Database) -> None:
    """The chains verify, what may only grow is still watched, and work goes on."""
    with database.read() as session:
        assert all(record.verify(session, stream).ok for stream in record.streams(session))
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


def test_the_tables_are_what_the_classes_say(db: Database) -> None:
    for package in (projects, broker, bot):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.ispkg and ".migrations." not in module.name:
                importlib.import_module(module.name)
    said = {name: sorted(column.name for column in table.columns) for name, table in Base.metadata.tables.items()}
    assert columns(db) == said
