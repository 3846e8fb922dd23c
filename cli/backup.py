"""Backups: the database whole as of one moment, taken while all parts run, and a restore that proves what it brings."""

import json
import os
import shutil
import sqlite3
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from alembic.migration import MigrationContext
from pydantic import TypeAdapter
from sqlalchemy import Engine, create_engine, inspect, make_url
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker.publications import Publication, unpublished
from broker.runs.runs import ACTIVE, Run
from projects.db.columns import utcnow
from projects.db.database import Database
from projects.record import record, verification
from projects.settings import Settings

SQLITE_FILE = "stoa.db"
POSTGRES_FILE = "stoa.dump"
MANIFEST = "manifest.json"


class BackupError(Exception):
    """A backup or a restore cannot be made; the sentence says why, and what would be right."""


@dataclass(frozen=True)
class Manifest:
    """What a backup holds: which kind of database, at which revision, and the heads of the record's chains."""

    made_at: str
    kind: str
    revision: str
    heads: dict[str, int]
    missing_folders: list[str]


def backup(settings: Settings, folder: Path) -> Manifest:
    """Write the database to a new or empty folder, and say which folders of runs are not there to go with it.

    The runs' own folders are not copied: what they hold is published, or is trained again. Raises BackupError.
    """
    if folder.exists() and any(folder.iterdir()):
        raise BackupError(f"{folder} is not empty; name a new folder for each backup.")
    if not settings.database_url and not (settings.home / SQLITE_FILE).exists():
        raise BackupError(f"There is no database in {settings.home}; is STOA_HOME right?")
    # Described first: chains only grow, so that the dump holds at least what the manifest says.
    manifest = _describe(settings, create_engine(settings.database)) if settings.database_url else None
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)  # it holds the salts of the record
    if manifest is not None:
        _run_postgres("pg_dump", settings, "--format=custom", "--no-owner", f"--file={folder / POSTGRES_FILE}")
    else:
        _copy_sqlite(settings.home / SQLITE_FILE, folder / SQLITE_FILE)
        manifest = _describe(settings, create_engine(f"sqlite:///file:{folder / SQLITE_FILE}?mode=ro&uri=true"))
    draft = folder / f"{MANIFEST}.draft"
    draft.write_text(json.dumps(asdict(manifest), indent=2) + "\n")
    draft.rename(folder / MANIFEST)
    return manifest


def restore(settings: Settings, folder: Path) -> Manifest:
    """Bring a backup into an empty database, and verify every chain of its record. Raises BackupError."""
    try:
        manifest = TypeAdapter(Manifest).validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise BackupError(f"{folder} holds no whole backup: its {MANIFEST} cannot be read.") from error
    kind = "postgresql" if settings.database_url else "sqlite"
    if kind != manifest.kind:
        raise BackupError(f"The backup is one of {manifest.kind}, and the settings name a database of {kind}.")
    _require_empty(settings)
    if settings.database_url:
        _run_postgres(
            "pg_restore", settings, "--no-owner", "--exit-on-error", "--single-transaction", str(folder / POSTGRES_FILE)
        )
    else:
        settings.home.mkdir(parents=True, exist_ok=True)
        _copy_sqlite(folder / SQLITE_FILE, settings.home / SQLITE_FILE)
    problems = _verify(settings, manifest)
    if problems:
        raise BackupError(f"What was restored is not whole: {'; '.join(problems)}. Do not start Stoa on it.")
    return manifest


def _copy_sqlite(source: Path, target: Path) -> None:
    """Copy a database by SQLite's own online backup; the target has its name only when it is whole."""
    draft = target.with_name(f"{target.name}.draft")
    draft.unlink(missing_ok=True)
    from_db, to_db = sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=30), sqlite3.connect(draft)
    try:
        from_db.backup(to_db)  # all pages in one step, so that a writer cannot make it begin again for ever
        (found,) = to_db.execute("PRAGMA quick_check").fetchone()
        if found != "ok":
            raise BackupError(f"The copy of {source} is not whole: {found}.")
        to_db.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.DatabaseError as error:
        raise BackupError(f"{source} cannot be copied: {error}.") from error
    finally:
        from_db.close()
        to_db.close()
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.rename(target)


def _run_postgres(program: str, settings: Settings, *options: str) -> None:
    """Run one of PostgreSQL's own programs; the password goes by the environment, never by the command line."""
    found = shutil.which(program)
    if found is None:
        raise BackupError(f"{program} is not installed; install PostgreSQL's client programs (postgresql-client).")
    url = make_url(settings.database_url).set(drivername="postgresql")
    password = url.password or url.query.get("password")
    environment = os.environ | ({} if password is None else {"PGPASSWORD": str(password)})
    shown = url.set(password="").difference_update_query(["password"])
    named = f"--dbname={shown.render_as_string(hide_password=False)}"
    done = subprocess.run([found, named, *options], env=environment, capture_output=True, check=False)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise BackupError(f"{program} failed: {said[-1] if said else f'status {done.returncode}'}")


def _describe(settings: Settings, engine: Engine) -> Manifest:
    """What the database of `engine` holds, and which folders of runs it still needs are not there."""
    with Session(engine) as session:
        revision = MigrationContext.configure(session.connection()).get_current_revision()
        heads = dict(record.streams(session))
        folders = list(session.scalars(select(Publication.folder).where(unpublished())))
        moving = session.scalars(select(Run.id).where(col(Run.state).in_(ACTIVE), Run.token > 0))
        folders += [str(settings.runs_dir / str(run_id)) for run_id in moving]
    kind = engine.dialect.name
    engine.dispose()
    missing = sorted({name for name in folders if not Path(name).exists()})
    return Manifest(utcnow().isoformat(timespec="seconds"), kind, revision or "", heads, missing)


def _require_empty(settings: Settings) -> None:
    refusal = "already holds a database; a restore only fills an empty one."
    if not settings.database_url:
        if (settings.home / SQLITE_FILE).exists():
            raise BackupError(f"{settings.home} {refusal} Move {SQLITE_FILE} away, or set STOA_HOME to another folder.")
        return
    db = Database(settings.database)
    try:
        with db.read() as session:
            tables = inspect(session.connection()).get_table_names()
            if tables:
                raise BackupError(f"STOA_DATABASE_URL {refusal} Make a new one (createdb).")
    finally:
        db.close()


def _verify(settings: Settings, manifest: Manifest) -> list[str]:
    """What is wrong with a restored database: a chain that is broken, or shorter than the backup says."""
    db = Database(settings.database)
    try:
        with db.read() as session:
            verdicts = {stream: verification.verify(session, stream) for stream in record.streams(session)}
    finally:
        db.close()
    problems = [f"{verdict.stream}: {verdict.problem}" for verdict in verdicts.values() if not verdict.ok]
    for stream, head in manifest.heads.items():
        if stream not in verdicts or verdicts[stream].entries < head:
            problems.append(f"{stream}: it should have {head} entries")
    return problems
