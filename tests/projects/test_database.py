"""A database that does not answer: a connection is given up after a bound, and the next one is a new one."""

import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from broker.scheduling.scheduler import Scheduler
from projects.db import database
from projects.db.database import Database, is_away
from tests import databases
from tests.broker.lab import settings
from tests.outage import relayed


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> float:
    """A minute's patience is a second here."""
    monkeypatch.setattr(database, "SILENCE_SECONDS", 1.0)
    return 1.0


@pytest.fixture
def url(postgres: str) -> str:
    """A database with its tables, on PostgreSQL."""
    return databases.create(postgres, f"test_{secrets.token_hex(6)}", template=databases.TABLES)


@pytest.mark.usefixtures("patience")
def test_a_connection_that_swallows_what_it_gets_is_given_up(url: str) -> None:
    with relayed(url) as (wire, by_way_of_it):
        db = Database(by_way_of_it)
        with db.write() as session:
            assert session.scalar(text("SELECT 1")) == 1
        wire.swallow()
        # SQLAlchemy asks whether the connection lives, and then tries to make another.
        with pytest.raises(OperationalError, match="timeout expired") as refused, db.write() as session:
            session.execute(text("SELECT 1"))
        assert is_away(refused.value)
        wire.pass_on()
        with db.write() as session:
            assert session.scalar(text("SELECT 1")) == 1
        db.close()


@pytest.mark.usefixtures("patience")
def test_the_answer_to_a_commit_is_not_waited_for_without_end(url: str) -> None:
    with relayed(url) as (wire, by_way_of_it):
        db = Database(by_way_of_it)

        def write() -> None:
            with db.write() as session:
                session.execute(text("SELECT 1"))
                wire.swallow()

        with pytest.raises(OperationalError, match="has not answered") as refused:
            write()
        assert is_away(refused.value)
        db.close()


@pytest.mark.usefixtures("patience")
def test_a_statement_that_waits_for_a_lock_is_given_up_as_well(url: str) -> None:
    db, other = Database(url), Database(url)
    with other.write() as holder:
        holder.execute(text("LOCK TABLE pools"))
        with pytest.raises(OperationalError, match="has not answered") as refused, db.write() as session:
            session.execute(text("SELECT * FROM pools"))
        assert is_away(refused.value)
    with db.read() as session:
        assert session.execute(text("SELECT * FROM pools")).all() == []
    for each in (db, other):
        each.close()


@pytest.mark.usefixtures("patience")
def test_a_migration_takes_as_long_as_it_takes(url: str) -> None:
    db, other = Database(url), Database(url)
    with ThreadPoolExecutor() as threads:
        with other.write() as holder:
            holder.execute(text("LOCK TABLE alembic_version"))  # which every migration writes
            migrating = threads.submit(db.migrate, "-1")
            time.sleep(3)
            assert not migrating.done()
        migrating.result()
    with pytest.raises(OperationalError, match="has not answered"), db.write() as session:
        session.execute(text("SELECT pg_sleep(30)"))
    for each in (db, other):
        each.close()


@pytest.mark.usefixtures("patience")
def test_the_scheduler_gives_a_silent_connection_up_and_goes_on(url: str, tmp_path: Path) -> None:
    with relayed(url) as (wire, by_way_of_it):
        db = Database(by_way_of_it)
        scheduler = Scheduler(settings(tmp_path), db)
        scheduler.round()
        wire.swallow()
        with pytest.raises(OperationalError) as refused:
            scheduler.round()
        assert is_away(refused.value)
        wire.pass_on()
        scheduler.round()
        db.close()
