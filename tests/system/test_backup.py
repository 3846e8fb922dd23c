"""Backups taken while parts and people write, and restores that prove what they bring."""

import json
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, make_url

from cli import backup
from cli.backup import BackupError
from projects.db.database import Database
from projects.people import Actor
from projects.record import record, verification
from projects.settings import Settings
from tests.broker.lab import Lab
from tests.broker.lab import settings as settings_of
from tests.databases import create
from tests.system.forked_services import ForkedServices
from tests.system.test_command_line import stoa


@pytest.fixture(params=["sqlite", "postgresql"])
def two(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Settings, Settings]:
    """Two installations of one kind of database, both empty."""
    if request.param == "sqlite":
        return settings_of(tmp_path / "one"), settings_of(tmp_path / "two")
    maintenance = request.getfixturevalue("postgres")
    urls = [create(maintenance, f"kept_{secrets.token_hex(6)}") for _ in range(2)]
    one, two = (settings_of(tmp_path / name, database_url=url) for name, url in zip(("one", "two"), urls, strict=True))
    return one, two


@pytest.fixture
def busy(two: tuple[Settings, Settings]) -> Iterator[Lab]:
    """The first of them at work: a scheduler that admits runs, and people who propose one project after another."""
    settings = two[0]
    db = Database(settings.database)
    db.migrate()
    lab = Lab(db)
    lab.pool()
    project = lab.project()
    lab.allocation(project)
    parts = ForkedServices(settings.home / "logs")
    parts.start_stoa(settings, "scheduler")
    lab.launch(project)
    over = threading.Event()

    def propose() -> None:
        number = 1000
        while not over.wait(0.05):
            number += 1
            lab.proposal(Actor(number, f"Person {number}"), f"Question {number}")

    people = threading.Thread(target=propose)
    people.start()
    try:
        yield lab
    finally:
        over.set()
        people.join()
        parts.stop()
        db.close()


def heads(settings: Settings) -> dict[str, int]:
    db = Database(settings.database)
    with db.read() as session:
        assert all(verification.verify(session, stream).ok for stream in record.streams(session))
        found = dict(record.streams(session))
    db.close()
    return found


def test_a_backup_taken_in_full_run_is_restored_whole(
    two: tuple[Settings, Settings], busy: Lab, tmp_path: Path
) -> None:
    one, other = two
    before = heads(one)
    manifest = backup.backup(one, tmp_path / "kept")
    assert all(manifest.heads[stream] >= head for stream, head in before.items())
    assert backup.restore(other, tmp_path / "kept") == manifest
    found = heads(other)
    assert all(found[stream] >= head for stream, head in manifest.heads.items())
    if manifest.kind == "sqlite":
        assert found == manifest.heads
    db = Database(other.database)
    lab = Lab(db)
    lab.proposal(Actor(1, "Ada"), "The work goes on")
    assert lab.account(1).granted == 3600
    db.close()
    assert len(heads(other)) == len(found) + 1


def test_a_database_may_be_named_by_parameters(postgres: str, tmp_path: Path) -> None:
    def named() -> Settings:
        url = make_url(create(postgres, f"kept_{secrets.token_hex(6)}"))
        where = {"host": url.host, "port": str(url.port), "user": url.username, "password": url.password}
        query = {name: value for name, value in where.items() if value is not None} | {"sslmode": "disable"}
        told = URL.create(url.drivername, database=url.database, query=query)
        return settings_of(tmp_path, database_url=told.render_as_string(hide_password=False))

    one, other = named(), named()
    db = Database(one.database)
    db.migrate()
    Lab(db).proposal()
    db.close()
    manifest = backup.backup(one, tmp_path / "kept")
    assert backup.restore(other, tmp_path / "kept") == manifest
    assert heads(other) == heads(one)


def test_a_restore_refuses_a_database_that_is_not_empty(
    two: tuple[Settings, Settings], busy: Lab, tmp_path: Path
) -> None:
    backup.backup(two[0], tmp_path / "kept")
    with pytest.raises(BackupError, match="already holds a database"):
        backup.restore(two[0], tmp_path / "kept")
    with pytest.raises(BackupError, match="not empty"):
        backup.backup(two[0], tmp_path / "kept")


def test_a_backup_that_was_altered_is_told(two: tuple[Settings, Settings], busy: Lab, tmp_path: Path) -> None:
    backup.backup(two[0], tmp_path / "kept")
    path = tmp_path / "kept" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"heads": manifest["heads"] | {"lab": 1000}}))
    with pytest.raises(BackupError, match="lab: it should have 1000 entries"):
        backup.restore(two[1], tmp_path / "kept")


def test_what_cannot_be_kept_or_brought_back(tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="no database"):
        backup.backup(settings_of(tmp_path / "nowhere"), tmp_path / "kept")
    with pytest.raises(BackupError, match="no whole backup"):
        backup.restore(settings_of(tmp_path / "one"), tmp_path)
    (tmp_path / "manifest.json").write_text(
        json.dumps({"made_at": "", "kind": "postgresql", "revision": "", "heads": {}, "missing_folders": []})
    )
    with pytest.raises(BackupError, match="one of postgresql"):
        backup.restore(settings_of(tmp_path / "one"), tmp_path)


def test_the_commands(tmp_path: Path) -> None:
    assert stoa(tmp_path / "one", "migrate").returncode == 0
    assert stoa(tmp_path / "one", "pool", "add", "lab", "H200", "8").returncode == 0
    assert "a backup of 1 entry in 1 chain\n" in stoa(tmp_path / "one", "backup", str(tmp_path / "kept")).stdout
    done = stoa(tmp_path / "two", "restore", str(tmp_path / "kept"))
    assert done.returncode == 0
    assert "chains are whole" in done.stdout
    again = stoa(tmp_path / "two", "restore", str(tmp_path / "kept"))
    assert again.returncode == 2
    assert "already holds a database" in again.stderr
    assert "lab: 1 entry, whole" in stoa(tmp_path / "two", "record", "verify").stdout
