"""Publishing: the checkpoints of a run go to the Hub in order, each on a lease, until they are verified there."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import structlog
from sqlalchemy import func, or_, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from broker import publications, runs
from broker.card import write_card
from broker.hub import Hub, HubError
from broker.publications import Publication
from broker.runs import ENDED
from projects import pipeline
from projects.db import Database, utcnow
from projects.settings import Settings

BACKOFF_SECONDS = 5.0
LONGEST_BACKOFF_SECONDS = 600.0

log = structlog.get_logger()


@dataclass(frozen=True)
class Claimed:
    """A checkpoint that this publisher has leased; `lease` is its fencing token."""

    run_id: int
    step: int
    lease: int
    folder: Path
    repo: str
    first: bool
    final: bool


def waiting(session: Session) -> Sequence[tuple[int, int]]:
    """Runs and the step of their next checkpoint, where nobody holds it and its time has come."""
    upcoming = (
        select(Publication.run_id, func.min(Publication.step).label("step"))
        .where(Publication.url.is_(None))
        .group_by(Publication.run_id)
        .subquery()
    )
    rows = session.execute(
        select(Publication.run_id, Publication.step)
        .join(upcoming, (Publication.run_id == upcoming.c.run_id) & (Publication.step == upcoming.c.step))
        .where(
            or_(Publication.lease_until.is_(None), Publication.lease_until < utcnow()),
            Publication.not_before <= utcnow(),
        )
    )
    return [(run_id, step) for run_id, step in rows]


def publish_waiting(settings: Settings, db: Database, run_id: int) -> None:
    """Publish what waits of a run, in the order of steps; stops at the first that the Hub does not take."""
    hub = Hub(settings)
    while True:
        with db.write() as session:
            claimed = claim(session, run_id, settings)
        if claimed is None:
            return
        try:
            with _renewing(settings, db, claimed):
                url = _upload(settings, db, hub, claimed)
        except (HubError, OSError, ValueError) as error:  # the Hub refuses, or the folder is not as it should be
            log.warning("not published yet", run=run_id, step=claimed.step, error=str(error))
            with db.write() as session:
                fail(session, claimed, str(error))
            return
        with db.write() as session:
            finish(session, claimed, url)


def claim(session: Session, run_id: int, settings: Settings) -> Claimed | None:
    """Lease the run's next checkpoint; None where there is none, or another publisher is at this run."""
    run = runs.load(session, run_id)
    session.refresh(run, with_for_update=True)
    upcoming = session.scalars(
        select(Publication)
        .where(Publication.run_id == run_id, Publication.url.is_(None))
        .order_by(Publication.step)
        .limit(1)
    ).one_or_none()
    if upcoming is None or upcoming.not_before > utcnow():
        return None
    if upcoming.lease_until is not None and upcoming.lease_until > utcnow():
        return None
    upcoming.lease += 1
    upcoming.lease_until = utcnow() + timedelta(seconds=settings.lease_seconds)
    newest = publications.newest(session, run_id) or upcoming
    project = pipeline.view(session, run.project_id)
    return Claimed(
        run_id=run_id,
        step=upcoming.step,
        lease=upcoming.lease,
        folder=Path(upcoming.folder),
        repo=f"{settings.hub_namespace}/{project.slug}-run-{run_id}",
        first=not publications.links(session, run_id),
        final=upcoming.step == run.total_steps or (run.state in ENDED and upcoming.step == newest.step),
    )


def finish(session: Session, claimed: Claimed, url: str) -> None:
    """Note a verified publication, and tell it; does nothing where the lease has gone to another."""
    done = _guarded(session, claimed, url=url, lease_until=None, error="")
    if done:
        run = runs.load(session, claimed.run_id)
        runs.tell(
            session, run, "checkpoint.published", step=claimed.step, url=url, first=claimed.first, final=claimed.final
        )


def fail(session: Session, claimed: Claimed, error: str) -> None:
    """Give the lease back and try again later, ever less often."""
    publication = session.get_one(Publication, (claimed.run_id, claimed.step))
    pause = min(BACKOFF_SECONDS * 2**publication.tries, LONGEST_BACKOFF_SECONDS)
    _guarded(
        session,
        claimed,
        lease_until=None,
        tries=publication.tries + 1,
        not_before=utcnow() + timedelta(seconds=pause),
        error=error[:500],
    )


def _upload(settings: Settings, db: Database, hub: Hub, claimed: Claimed) -> str:
    with db.read() as session:
        write_card(session, claimed.run_id, claimed.repo, claimed.folder)
    message = f"step {claimed.step}"
    url = hub.publish(claimed.repo, f"step{claimed.step}", claimed.folder, message)
    if claimed.final:
        hub.publish(claimed.repo, "main", claimed.folder, message)
    return url


@contextmanager
def _renewing(settings: Settings, db: Database, claimed: Claimed) -> Iterator[None]:
    """Renew the lease in a thread while the upload takes its time."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(settings.lease_seconds / 3):
            try:
                with db.write() as session:
                    if not _guarded(session, claimed, lease_until=utcnow() + timedelta(seconds=settings.lease_seconds)):
                        return
            except DBAPIError as error:
                log.warning("a lease could not be renewed; trying again", run=claimed.run_id, error=str(error.orig))

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _guarded(session: Session, claimed: Claimed, **values: object) -> bool:
    written = session.execute(
        update(Publication)
        .where(
            Publication.run_id == claimed.run_id,
            Publication.step == claimed.step,
            Publication.lease == claimed.lease,
            Publication.url.is_(None),
        )
        .values(**values)
        .returning(Publication.step)
    ).one_or_none()
    return written is not None
