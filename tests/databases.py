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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from sqlalchemy import create_engine, event, make_url, text
from sqlalchemy.engine import Dialect

from projects.db.database import Database
from tests import lock_order
from tests.absent import absent
from tests.patience import PATIENCE

ONCE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For a slow test of what the kind of database has no say in."""
QUICK = ["-F", "-c", "full_page_writes=off", "-c", "synchronous_commit=off", "-c", "autovacuum=off"]
"""Options of a PostgreSQL server of which nothing is kept, and whose hundreds of databases each live for one test."""
TABLES = "tables"  # made once, and copied: quicker than a migration
END_CONNECTIONS = "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = %s"
CATALOGUE = """
    SELECT (SELECT version_num FROM alembic_version),
           (SELECT (count(*), max(oid))::text FROM pg_class), (SELECT (count(*), max(oid))::text FROM pg_constraint),
           (SELECT (count(*), count(*) FILTER (WHERE attnotnull))::text FROM pg_attribute WHERE NOT attisdropped),
           (SELECT (count(*), max(oid))::text FROM pg_attrdef), (SELECT (count(*), max(oid))::text FROM pg_proc),
           (SELECT string_agg(oid || tgenabled::text, ' ' ORDER BY oid) FROM pg_trigger),
           (SELECT count(*) FROM pg_db_role_setting)
"""
MOST_BYTES = 2**18
"""The size of a table from which its deleted rows would slow the next tests down."""
RESTART = """
    SELECT setval(seqrelid::regclass, seqstart, false) FROM pg_sequence
    WHERE pg_sequence_last_value(seqrelid) IS NOT NULL
"""
WRITTEN = """
    SELECT relname, pg_relation_size(oid) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
        AND pg_relation_size(oid) > 0 AND relname <> 'alembic_version'
"""


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
    user = "nobody" if os.getuid() == 0 else None
    if user:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    initdb = [str(programs / "initdb"), "-D", str(folder / "data"), "-A", "trust", "-U", "stoa", "-E", "UTF8"]
    subprocess.run([*initdb, "--no-sync", "--locale=C"], check=True, capture_output=True, cwd="/", user=user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(programs / "postgres"), "-D", str(folder / "data"), "-h", "127.0.0.1", "-p", str(port)]
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        started = subprocess.Popen(
            [*command, "-k", "", *QUICK], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", user=user
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
        tables = Database(create(url, TABLES))
        tables.migrate()
        tables.close()
        yield url


@cache
def sqlite_tables() -> bytes:
    """A SQLite database with its tables and no rows, as a file holds it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stoa.db"
        tables = Database(f"sqlite:///{path}")
        tables.migrate()
        tables.close()
        return path.read_bytes()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database with its tables and no rows, on each of the two kinds."""
    if request.param == "sqlite":
        path = tmp_path / "stoa.db"
        path.write_bytes(sqlite_tables())
        yield f"sqlite:///{path}"
        return
    emptied: Emptied = request.getfixturevalue("emptied")
    url = emptied.take()
    yield url
    emptied.give_back(url)


class Emptied:
    """The databases of a PostgreSQL server that tests are done with: emptying one is quicker than making one."""

    def __init__(self, maintenance: str) -> None:
        self._maintenance = maintenance
        self._urls: list[str] = []
        with _connection(create(maintenance, "untouched", template=TABLES)) as connection:
            self._catalogue = connection.execute(CATALOGUE).fetchone()
            self._rows = {
                table: connection.execute(f"SELECT json_agg({table})::text FROM {table}").fetchall()[0][0]
                for table, _ in connection.execute(WRITTEN).fetchall()
            }

    def take(self) -> str:
        """The URL of a database that no other test has known by this name."""
        if self._urls:
            return self._urls.pop()
        return create(self._maintenance, _any_name(), template=TABLES)

    def give_back(self, url: str) -> None:
        """Empty the database for another test, unless the one before changed its tables, filled or removed it.

        It has a new name first, by which nothing that the test has left running finds it.
        """
        before, name = make_url(url).database, _any_name()
        renamed = self._maintenance.removesuffix("postgres") + name
        with suppress(psycopg.Error):
            with _connection(self._maintenance) as connection:
                connection.execute(END_CONNECTIONS, [before])
                connection.execute(f"ALTER DATABASE {before} RENAME TO {name}")
            with _connection(renamed) as connection:
                if self._empty(connection):
                    self._urls.append(renamed)

    def _empty(self, connection: Connection) -> bool:
        """Delete all rows but those of a new database; False where that would not make it like a new one."""
        if connection.execute(CATALOGUE).fetchone() != self._catalogue:
            return False
        written = connection.execute(WRITTEN).fetchall()
        if any(size > MOST_BYTES for _, size in written):
            return False
        connection.execute("SET session_replication_role = replica")  # rows go in any order
        for table, _ in written:
            connection.execute(f"DELETE FROM {table}")
        for table, rows in self._rows.items():
            from_json = f"json_populate_recordset(NULL::{table}, CAST(%s AS json))"
            connection.execute(f"INSERT INTO {table} SELECT * FROM {from_json}", [rows])
        connection.execute(RESTART)
        return True


def _any_name() -> str:
    return f"test_{secrets.token_hex(6)}"


@pytest.fixture(scope="session")
def emptied(postgres: str) -> Emptied:
    """The databases that tests of this process are done with."""
    return Emptied(postgres)


@pytest.fixture
def new_url(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> Callable[[], str]:
    """Makes a database without tables, of the same kind as the test's other one, and returns its URL."""

    def new() -> str:
        name = _any_name()
        if database_url.startswith("sqlite"):
            return f"sqlite:///{tmp_path / name}.db"
        return create(request.getfixturevalue("postgres"), name)

    return new


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    """A database with its tables."""
    database = _kept(make_url(database_url).get_backend_name())
    database.url = make_url(database_url)
    with lock_order.held():
        yield database
    database.close()


@cache
def _kept(kind: str) -> Database:
    """A database of this kind that connects to whatever its `url` names.

    The tests of a process share it, because its engines keep the SQL that they have compiled.
    """
    database = Database("sqlite:///unnamed.db" if kind == "sqlite" else "postgresql+psycopg://unnamed")

    def connect(dialect: Dialect, _record: object, positional: list[Any], named: dict[str, Any]) -> None:
        positional[:], named_by_url = dialect.create_connect_args(database.url)
        named.update(named_by_url)

    for opened in (database.read, database.write):
        with opened() as session:
            event.listen(session.get_bind(), "do_connect", connect)
    return database


def create(maintenance: str, name: str, *, template: str = "template1") -> str:
    """The URL of a new database, a copy of another."""
    with _connection(maintenance) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    return maintenance.removesuffix("postgres") + name


def _connection(url: str) -> Connection:
    """A connection of its own, whose statements commit by themselves; an engine would cost three times as much."""
    return Connection.connect(url.replace("+psycopg", "", 1), autocommit=True)


def until_one_waits_for_a_lock(db: Database) -> None:
    """Waits until a transaction waits for another one's lock in this database, which is PostgreSQL's."""
    waits = "datname = current_database() AND wait_event_type = 'Lock'"
    waiting = text(f"SELECT count(*) FROM pg_stat_activity WHERE {waits}")
    while True:
        with db.read() as session:
            if session.scalar(waiting):
                return
        time.sleep(0.02)


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
