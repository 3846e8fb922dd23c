"""The database: engine, sessions and migrations. The database is the truth of the lab."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from weakref import WeakSet

import psycopg
from psycopg.abc import RV, PQGen
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoConnectionError
from sqlalchemy.orm import Session, sessionmaker

from projects.db import clock
from projects.errors import InvalidError

PATIENCE: dict[str, Any] = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
"""For how long libpq waits for a server that does not answer: seconds, and `tcp_user_timeout` in milliseconds."""
SILENCE_SECONDS = 60.0
"""For how long a statement may wait for the server's answer: no statement of Stoa's takes so long, but in a migration.
A proxy that acknowledges what it gets and passes nothing on would keep TCP content for ever."""
AWAY_CLASSES = ("08", "53", "57P")
"""What the SQLSTATE of a PostgreSQL begins with that cannot serve now: no connection, no resources, shut down."""
AWAY_WORDS = ("locked", "unable to open database", "disk i/o error", "disk is full")
"""What SQLite says where its file cannot be used now."""


def is_away(error: BaseException) -> bool:
    """Whether an error means that the database cannot be used now, and not that it refuses one statement."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, NoConnectionError)
    if error.connection_invalidated:
        return True
    if not isinstance(error, OperationalError | InterfaceError):
        return False
    if error.orig is not None and hasattr(error.orig, "sqlstate"):
        return error.orig.sqlstate is None or error.orig.sqlstate.startswith(AWAY_CLASSES)
    return any(word in str(error.orig).lower() for word in AWAY_WORDS)


class _Connection(psycopg.Connection[Any]):
    """A connection that is given up where the server leaves a statement unanswered."""

    is_patient = False
    """Whether it waits for ever."""

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """What a statement returns; raises OperationalError, and closes the connection, after `SILENCE_SECONDS`."""
        own = None if self.is_patient else SILENCE_SECONDS
        try:
            return super().wait(gen, interval, own if timeout is None else timeout)
        except psycopg.OperationalError as error:
            if timeout is not None or self.pgconn.transaction_status != TransactionStatus.ACTIVE:
                raise
            self.close()
            raise psycopg.OperationalError(f"the server has not answered for {SILENCE_SECONDS:g} seconds") from error


class Database:
    """Two kinds of session on one database: `read()` never writes; `write()` is short, with no network call inside."""

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        self._connections = WeakSet[psycopg.Connection[Any]]()
        if self.url.get_backend_name() == "sqlite":
            Path(self.url.database or "").parent.mkdir(parents=True, exist_ok=True)
            self._read_engine = _sqlite_engine(url, begin="BEGIN", query_only=True)
            self._write_engine = _sqlite_engine(url, begin="BEGIN IMMEDIATE", query_only=False)
        else:
            self._write_engine = create_engine(url, pool_pre_ping=True, connect_args=PATIENCE)
            event.listen(self._write_engine, "handle_error", _refuse_value)
            event.listen(self._write_engine, "connect", self._connected)
            clock.follow(self._write_engine, "SELECT clock_timestamp() AT TIME ZONE 'UTC'")
            self._read_engine = self._write_engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
        self._reads = sessionmaker(self._read_engine, expire_on_commit=False)
        self._writes = sessionmaker(self._write_engine, expire_on_commit=False)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session on one snapshot; a write inside it raises OperationalError or InternalError."""
        with self._reads() as session:
            _know_time(session)
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session in one transaction: committed at the end, rolled back on any error."""
        with self._writes.begin() as session:
            _know_time(session)
            yield session

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Hold the lock of this name, for which all other processes on this database wait. Nothing is written."""
        if self.url.get_backend_name() == "sqlite":
            with Path(f"{self.url.database}.{what}.lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        else:
            with self._read_engine.begin() as connection:
                connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:what, 0))"), {"what": what})
                yield

    def _connected(self, connection: psycopg.Connection[Any], _: object) -> None:
        """Know a new connection; it is SQLAlchemy that has made it, of psycopg's own class."""
        connection.__class__ = _Connection
        self._connections.add(connection)

    def answers(self) -> None:
        """Ask the database for nothing; raises where it cannot be reached, or is a standby that takes no writes."""
        with self.read() as session:
            if self.url.get_backend_name() == "sqlite":
                session.execute(text("SELECT 1"))
            elif session.scalar(text("SELECT pg_is_in_recovery()")):
                raise NoConnectionError("the database is a standby, which takes no writes")

    def break_off(self) -> None:
        """Break every connection that waits for a server's answer, from another thread: its statement raises what
        `is_away` knows.

        A server that is frozen, or a network that loses what is sent after it has acknowledged it, is silent for ever.
        """
        for connection in list(self._connections):
            with suppress(psycopg.Error, OSError):
                if connection.pgconn.transaction_status == TransactionStatus.ACTIVE:
                    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as broken:
                        broken.shutdown(socket.SHUT_RDWR)

    def migrate(self, revision: str = "head") -> None:
        """Upgrade or downgrade the schema to `revision`, in one transaction."""
        # Imported here: most processes never migrate, and Alembic would be a tenth of their start.
        from alembic import command
        from alembic.config import Config
        from alembic.migration import MigrationContext

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with (
            self._write_engine.connect() as connection,
            _tables_replaceable(connection),
            _patient(connection),
            connection.begin(),
        ):
            config.attributes["connection"] = connection
            current = MigrationContext.configure(connection).get_current_revision()
            older = revision.isdecimal() and current is not None and revision < current
            if older or revision == "base" or revision.startswith("-"):
                command.downgrade(config, revision)
            else:
                command.upgrade(config, revision)
            if connection.dialect.name == "sqlite":
                broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
                if broken:
                    raise RuntimeError(f"the migration would leave rows that refer to nothing: {broken[:5]}")

    def close(self) -> None:
        """Close all connections."""
        self._read_engine.dispose()
        self._write_engine.dispose()


def advice(error: SQLAlchemyError) -> str:
    """What to do about a database that is not ready."""
    said = str(getattr(error, "orig", None) or error).lower()
    if "locked" in said or "busy" in said or "deadlock" in said or "lock timeout" in said:
        return "another process is writing to it, so try again in a moment"
    if "no such table" in said or "no such column" in said or ("does not exist" in said and "database" not in said):
        return "`stoa migrate` makes its tables"
    if "readonly" in said or "read-only" in said or "permission denied" in said or "unable to open" in said:
        return "let this user write to it, or correct STOA_HOME or STOA_DATABASE_URL"
    return "start it, or correct STOA_DATABASE_URL"


def _know_time(session: Session) -> None:
    """Let a process know the database's time before its first session uses a time."""
    if not clock.is_known():
        session.connection()


def _refuse_value(context: ExceptionContext) -> None:
    """Turn the driver's error about a value that no column holds, such as NUL in a text, into a sentence."""
    error = context.original_exception
    if isinstance(error, OverflowError) or type(error).__name__ == "NumericValueOutOfRange":
        raise InvalidError("A number is too large: at most 9,223,372,036,854,775,807 is stored.") from error
    if isinstance(error, UnicodeEncodeError) or isinstance(context.sqlalchemy_exception, DataError):
        raise InvalidError(f"A value cannot be stored: {str(error).partition(chr(10))[0]}.") from error


@contextmanager
def _patient(connection: Connection) -> Iterator[None]:
    """Let statements take as long as they take."""
    driver = connection.connection.driver_connection
    if not isinstance(driver, _Connection):
        yield
        return
    driver.is_patient = True
    try:
        yield
    finally:
        driver.is_patient = False


@contextmanager
def _tables_replaceable(connection: Connection) -> Iterator[None]:
    """Let Alembic replace a table of SQLite that others refer to, which is how it changes a table there.

    SQLite switches foreign keys on and off only outside a transaction.
    """
    if connection.dialect.name != "sqlite":
        yield
        return
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys=ON")


def _sqlite_engine(url: str, *, begin: str, query_only: bool) -> Engine:
    """An engine whose transactions start with `begin`; the driver's own default silently loses updates."""
    engine = create_engine(url, connect_args={"timeout": 30})
    event.listen(engine, "handle_error", _refuse_value)

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")  # a power cut must not lose what was posted
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA busy_timeout=30000")
        if query_only:
            connection.execute("PRAGMA query_only=ON")

    clock.follow(engine, "SELECT strftime('%Y-%m-%d %H:%M:%f', 'now')")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql(begin)

    return engine
