"""Fences around independent parts of a loop, so that an error of one run, pool or part does not end the others' work.

An error is logged, and the admins are told of it once a day, by an entry of the lab's own stream.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import structlog
from sqlalchemy.orm import Session
from sqlmodel import col, select

from projects.db.columns import utcnow
from projects.db.database import Database, is_away
from projects.log import Seldom
from projects.record import record
from projects.record.record import Entry, Payload, Stream

KIND = "part.failed"
TELL_AGAIN = timedelta(days=1)
MOST_TOLD = 100
"""How many of the newest entries about failures are looked through for an earlier one about the same part."""

log = structlog.get_logger()


class Fence:
    """Fences of one process: `with fence("the part", run=7): …` lets no error out, unless the database is away."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self._log_again = Seldom()

    @contextmanager
    def __call__(self, part: str, **which: object) -> Iterator[None]:
        """Fence the work on `part`; `which` says in the log what it was about, such as the run."""
        try:
            yield
        except Exception as error:
            if is_away(error):
                raise
            self.failed(part, error, **which)

    def failed(self, part: str, error: Exception, **which: object) -> None:
        """Log an error of `part` and tell the admins of it. The same error is logged once a minute."""
        if not self._log_again.is_due((part, f"{error!r} {which}")):
            return
        log.error("a part failed; the rest goes on", part=part, **which, exc_info=error)
        try:
            tell(self.db, part, type(error).__name__)
        except Exception as untold:
            if is_away(untold):
                raise
            log.error("the admins could not be told", part=part, exc_info=untold)


def tell(db: Database, part: str, why: str) -> None:
    """Record that a part fails, unless that was recorded within the last day."""
    with db.read() as session:
        if _is_told(session, part):
            return
    with db.write() as session:
        # Two processes may fail alike at once: the lock on the stream's row lets one of them record it.
        session.execute(select(Stream.key).where(Stream.key == record.LAB).with_for_update())
        if not _is_told(session, part):
            record.append(session, record.LAB, KIND, by=None, part=part, error=why)


def told(session: Session) -> list[tuple[str, str]]:
    """The parts that failed within the last day, each with the error's name, the newest first."""
    bodies = session.scalars(
        select(Payload.body)
        .join(Entry, col(Entry.id) == Payload.entry_id)
        .where(Entry.stream == record.LAB, Entry.kind == KIND)
        .order_by(col(Entry.number).desc())
        .limit(MOST_TOLD)
    )
    since = utcnow() - TELL_AGAIN
    entries = [json.loads(body) for body in bodies if body is not None]
    return [(each["part"], each["error"]) for each in entries if datetime.fromisoformat(each["at"]) > since]


def _is_told(session: Session, part: str) -> bool:
    return any(known == part for known, _ in told(session))
