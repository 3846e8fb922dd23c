"""Real databases for the tests: SQLite in a file, and a PostgreSQL server of their own, started as a plain user."""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from projects.db.database import Database
from tests.absent import absent
from tests.patience import PATIENCE

ONCE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For a slow test of what the kind of database has no say in."""
TABLES = "tables"  # made once, and copied for each test: quicker than a migration


def binaries() -> Path | None:
    """The folder of PostgreSQL's server binaries, if this machine has them."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


@contextmanager
def server(programs: Path) -> Iterator[str]:
    """The URL of the maintenance database of a PostgreSQL server, which is there as long as the context."""
    folder = Path(tempfile.mkdtemp(prefix="stoa-pg-"))
    # PostgreSQL refuses to run as root.
    user = {"user": "nobody"} if os.getuid() == 0 else {}
    if user:
        os.chown(folder, pwd.getpwnam("nobody").pw_uid, -1)
    initdb = [str(programs / "initdb"), "-D", str(folder / "data"), "-A", "trust", "-U", "stoa", "-E", "UTF8"]
    subprocess.run([*initdb, "--no-sync", "--locale=C"], check=True, capture_output=True, cwd="/", **user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(programs / "postgres"), "-D", str(folder / "data"), "-h", "127.0.0.1", "-p", str(port)]
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        started = subprocess.Popen(
            [*command, "-k", "", "-F"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", **user
        )
    url = f"postgresql+psycopg://stoa@127.0.0.1:{port}/postgres"
    try:
        _wait_for(url)
        yield url
    finally:
        started.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
        started.wait(PATIENCE)
        shutil.rmtree(folder, ignore_errors=True)
        Path(log.name).unlink()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server's maintenance database."""
    found = binaries()
    if found is None:
        absent("the tests on PostgreSQL", "its server is not installed (Debian: apt-get install postgresql)")
    with server(found) as url:
        tables = Database(_create(url, TABLES))
        tables.migrate()
        tables.close()
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database with nothing in it, on each of the two kinds."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'stoa.db'}"
    maintenance: str = request.getfixturevalue("postgres")
    return _create(maintenance, f"test_{secrets.token_hex(6)}", template=TABLES)


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    """A database with its tables."""
    database = Database(database_url)
    database.migrate()
    yield database
    database.close()


def _create(maintenance: str, name: str, *, template: str = "template1") -> str:
    """The URL of a new database, a copy of another."""
    engine = create_engine(maintenance, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
    engine.dispose()
    return maintenance.removesuffix("postgres") + name


def _wait_for(url: str) -> None:
    engine = create_engine(url)
    until = time.monotonic() + PATIENCE
    while True:
        try:
            with engine.connect():
                engine.dispose()
                return
        except Exception:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
