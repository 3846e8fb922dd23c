"""Retention: removing from the store the checkpoints that nobody needs there any more.

A checkpoint goes once it is on the Hub, no disk has it (`disk.py` says which disks keep), and enough newer ones are
whole in the store: as many as a run keeps on its disk, or one of a run that has ended. So the newest stay, from which
a run goes on, and so does what a fork or a sample has been told to read, for that stays on the disk. Logs and metrics
stay too.

Any number of workers may do this: removing is done under a lock, and what was cut short is finished by the next.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import structlog
from sqlalchemy import ColumnElement
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker import store as stores
from broker.allocations import hosts
from broker.publications import Disk, Publication
from broker.publishing import disk
from broker.runs import folders, runs
from broker.runs.attempts import Attempt
from broker.runs.runs import ENDED, Run
from broker.store import Store
from projects.db import transition
from projects.db.columns import utcnow
from projects.db.database import Database
from projects.settings import Settings
from trainer.contract import OUTCOME_FILE

ALL = "all"
LOCK = "retention"
LOST_SECONDS = 86_400.0
"""A host that has not been heard from for so long does not come back."""
AGAIN_SECONDS = 3600.0
"""After so long, a run is looked at again though nothing is known to have changed: its checkpoints may be whole now."""

log = structlog.get_logger()


@dataclass
class Looked:
    """When each run was last looked at in vain, and what was known of it then."""

    runs: dict[int, tuple[float, int]] = field(default_factory=dict)

    def is_due(self, run_id: int, known: int) -> bool:
        """Whether a run is to be looked at: it has changed since, or that was long ago."""
        at, before = self.runs.get(run_id, (-math.inf, 0))
        return before != known or time.monotonic() - at > AGAIN_SECONDS

    def looked(self, run_id: int, known: int) -> None:
        """Note that a run has been looked at."""
        self.runs[run_id] = time.monotonic(), known


def clear(settings: Settings, db: Database, looked: Looked) -> int:
    """Remove the checkpoints that are not needed in the store; returns the number removed. Raises StoreError."""
    if not settings.store or settings.store_keep == ALL:
        return 0
    _give_up_disks(settings, db)
    with db.read() as session:
        found = sorted(set(session.scalars(select(Publication.run_id).where(_on_hub_alone()))))
    removed = 0
    for run_id in found:
        with db.read() as session:
            run = runs.load(session, run_id)
            rows = session.scalars(
                select(Publication).where(Publication.run_id == run_id).order_by(col(Publication.step).desc())
            ).all()
        known = hash((run.state, run.token, *((row.step, row.disk, row.url) for row in rows)))
        if looked.is_due(run_id, known):
            store, keep = Store(settings), 1 if run.state in ENDED else settings.keep_checkpoints
            removed += sum(_remove(store, db, run, step) for step in _needless(store, run, rows, keep))
            looked.looked(run_id, known)
    if removed:
        log.info("checkpoints that are on the Hub were removed from the store", count=removed)
    return removed


def _on_hub_alone() -> ColumnElement[bool]:
    """The condition for checkpoints that are on the Hub and on no disk, and may be in the store."""
    return col(Publication.url).is_not(None) & (col(Publication.disk) == Disk.GONE)


def _needless(store: Store, run: Run, rows: Sequence[Publication], keep: int) -> Iterator[int]:
    """The steps of a run's checkpoints, the newest first in `rows`, that may go as `keep` newer ones are whole."""
    whole = 0
    for row in rows:
        if row.url is not None and row.disk == Disk.GONE and whole >= keep:
            yield row.step
        elif whole < keep and row.disk not in (Disk.LOST, Disk.CLEARED):
            whole += any(store.is_whole(stores.checkpoint_folder(each, row.step)) for each in _attempts(run))


def _remove(store: Store, db: Database, run: Run, step: int) -> bool:
    """Remove a checkpoint, of whichever attempts have it; False where another process has done so, or where an attempt
    may still be sending it."""
    here = (col(Publication.run_id) == run.id, col(Publication.step) == step)
    with db.alone(LOCK):
        with db.read() as session:
            if session.scalars(select(Publication.step).where(*here, _on_hub_alone())).one_or_none() is None:
                return False
        for attempt in _attempts(run):
            # An attempt with an outcome sends no more.
            is_over = store.size(f"{attempt}/{OUTCOME_FILE}") is not None
            if not store.discard(stores.checkpoint_folder(attempt, step), partial=is_over):
                return False
        with db.write() as session:
            transition.write_if(session, Publication, {"run_id": run.id, "step": step}, disk=Disk.CLEARED)
    return True


def _attempts(run: Run) -> Iterator[str]:
    """The folders in the store of a run's attempts, the newest first."""
    for token in range(run.token, 0, -1):
        yield stores.attempt_folder(run.id, run.request_id, token)


def _give_up_disks(settings: Settings, db: Database) -> None:
    """Mark as gone what a host that does not come back would have removed from its disk."""
    with db.read() as session:
        lost = _lost(session, settings)
    for run_id in sorted({run_id for run_id, _ in lost}):
        with db.write() as session:
            session.execute(select(Run.id).where(Run.id == run_id).with_for_update())
            for _, step in (each for each in _lost(session, settings) if each[0] == run_id):
                disk.mark(session, run_id, step, Disk.GONE)


def _lost(session: Session, settings: Settings) -> Sequence[tuple[int, int]]:
    """The run and step of the checkpoints that are needed on no disk, whose host does not come back to remove them."""
    spared = disk.spare(session, keep=settings.keep_checkpoints)
    since = utcnow() - timedelta(seconds=LOST_SECONDS)
    there = {host.name for host in hosts.every(session) if host.seen_at > since} if spared else set()
    found = []
    for each in spared:
        attempt = session.get(Attempt, (each.run_id, folders.token_of(each.folder) or 0))
        if attempt is not None and attempt.host not in there:
            found.append((each.run_id, each.step))
    return found
