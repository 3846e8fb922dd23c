"""Disk space: removing checkpoints and data that are no longer needed here, and pausing runs on a nearly full disk.

A checkpoint is removed once it is on the Hub or whole in the store, and not needed here. Needed are the newest
checkpoints of a run, from which it goes on, and all checkpoints of a run while a run that reads it has not ended.
On a scarce disk the checkpoints of ended runs are removed too.

Data that an attempt has prepared are removed when the attempt is over, as the next one prepares its own; data that the
catalogue names, or that are registered on a pool, stay.

What a program has written beside what was posted stays for a week, or until the disk is scarce.

Each host removes what is on its own disk.
"""

import shutil
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import structlog
from sqlalchemy import func, true, update
from sqlalchemy.orm import Session, aliased
from sqlmodel import col, select

from broker.allocations.corpora import Corpus
from broker.catalogue import CatalogueEntry
from broker.publications import Disk, Publication, Repository
from broker.runs import folders, runs
from broker.runs.attempts import Attempt, AttemptState
from broker.runs.kinds.kind import kind_of, named
from broker.runs.runs import ENDED, Run, RunKind
from broker.store import Store, StoreError
from projects.db.columns import utcnow
from projects.db.database import Database
from projects.record import record
from projects.record.record import Entry, Stream
from projects.settings import Settings
from trainer.contract import CHECKPOINTS_FOLDER, DATA_FOLDER, WORK_FOLDER, checkpoint_step

GIB = 2**30
SCARCE = 2.0
"""The disk is scarce below this many times the floor."""
ENOUGH = 1.25
"""Runs start again once this many times the floor is free, so that they do not stop and start around one value."""
WORK_KEPT = timedelta(days=7)
"""What a program has written stays for so long after its end."""
PAUSED = "the disk is nearly full; the run goes on once there is room"
LOW_KINDS = ("disk.low", "disk.enough")

log = structlog.get_logger()


def free_gib(settings: Settings, place: Path | None = None) -> float:
    """Free space in GiB on the disk of a place, or the lesser of the home folder's disk and the runs' disk."""
    settings.runs_dir.mkdir(parents=True, exist_ok=True)
    places = (settings.home, settings.runs_dir) if place is None else (place,)
    return min(shutil.disk_usage(each).free for each in places) / GIB


def is_low(settings: Settings) -> bool:
    """Whether the free space is below the floor, so that runs pause."""
    return free_gib(settings) < settings.disk_floor_gib


def is_scarce(settings: Settings, place: Path | None = None) -> bool:
    """Whether the free space, on the disk of a place or on either disk, is so near to the floor that what may go goes
    early."""
    return free_gib(settings, place) < settings.disk_floor_gib * SCARCE


def admits(settings: Settings, db: Database) -> bool:
    """Whether runs may start. A change is recorded once in the lab's stream."""
    free = free_gib(settings)
    with db.read() as session:
        low = recorded_low(session)
    changed = free < settings.disk_floor_gib if not low else free >= settings.disk_floor_gib * ENOUGH
    if changed:
        with db.write() as session:
            # Two schedulers may see the change at once: the lock on the stream's row lets one of them record it.
            session.execute(select(Stream.key).where(Stream.key == record.LAB).with_for_update())
            if recorded_low(session) == low:
                kind = LOW_KINDS[low]
                record.append(
                    session, record.LAB, kind, by=None, free_gib=round(free, 2), floor_gib=settings.disk_floor_gib
                )
        low = not low
    return not low


def recorded_low(session: Session) -> bool:
    """Whether the last entry about the disk in the lab's stream says that no run starts for want of space."""
    last = session.scalars(
        select(Entry.kind)
        .where(Entry.stream == record.LAB, col(Entry.kind).in_(LOW_KINDS))
        .order_by(col(Entry.number).desc())
        .limit(1)
    ).one_or_none()
    return last == LOW_KINDS[0]


def tidy(settings: Settings, db: Database) -> int:
    """Remove the folders of checkpoints that are not needed here; returns the number removed.

    A checkpoint is marked before it is removed, in a transaction that sees all runs that need it. A removal that was
    cut short is finished by the next call.
    """
    scarce = is_scarce(settings)
    with db.read() as session:
        spared = _here(
            settings, spare(session, keep=settings.keep_checkpoints, scarce=scarce, stored=bool(settings.store))
        )
    safe = _safe(settings, db, spared)
    for run_id in sorted({publication.run_id for publication in safe}):
        with db.write() as session:
            # A transaction that creates a fork holds the row of the run until it commits.
            session.execute(select(Run.id).where(Run.id == run_id).with_for_update())
            for each in spare(session, keep=settings.keep_checkpoints, scarce=scarce, stored=bool(settings.store)):
                if each.run_id == run_id and each.step in {other.step for other in safe if other.run_id == run_id}:
                    mark(session, run_id, each.step, Disk.LEAVING)
    with db.read() as session:
        leaving = _here(settings, session.scalars(select(Publication).where(Publication.disk == Disk.LEAVING)).all())
    for publication in leaving:
        _remove(settings, publication)
        with db.write() as session:
            mark(session, publication.run_id, publication.step, Disk.GONE)
    if leaving:
        log.info("checkpoints that are safe elsewhere were removed here", count=len(leaving))
    _remove_copies(settings, db)
    _remove_hub_copies(settings, db)
    _remove_data(settings, db)
    _remove_work(settings, db)
    return len(leaving)


def spare(session: Session, *, keep: int, scarce: bool = False, stored: bool = False) -> Sequence[Publication]:
    """The checkpoints that are published and not needed here; with `stored`, those that are not published too. `keep`
    is the number of newest checkpoints that a run needs."""
    later = aliased(Publication)
    child = aliased(Run)
    newer = (
        select(func.count())
        .where(later.run_id == Publication.run_id, later.step > Publication.step, later.disk == Disk.KEPT)
        .scalar_subquery()
    )
    pinned = select(child.id).where(child.parent_id == Run.id, col(child.state).not_in(ENDED)).exists()
    needless = newer >= keep
    if scarce:
        needless |= col(Run.state).in_(ENDED) | (newer >= 1)
    published = true() if stored else col(Publication.url).is_not(None)
    return session.scalars(
        select(Publication)
        .join(Run, col(Run.id) == Publication.run_id)
        .where(published, Publication.disk == Disk.KEPT, ~pinned, needless)
        .order_by(col(Publication.run_id), col(Publication.step))
    ).all()


def _here(settings: Settings, found: Sequence[Publication]) -> list[Publication]:
    """The checkpoints whose attempt has its folder on this host's disk."""
    places = ((each, folders.of_checkpoint(settings.runs_dir, each.run_id, each.folder)) for each in found)
    return [each for each, place in places if place.parents[1].is_dir()]


def _safe(settings: Settings, db: Database, found: Sequence[Publication]) -> list[Publication]:
    """The checkpoints that are on the Hub, or whole in the store now."""
    safe = [each for each in found if each.url is not None]
    unpublished = [each for each in found if each.url is None]
    if unpublished:
        with db.read() as session:
            owners = {each.run_id: runs.load(session, each.run_id).request_id for each in unpublished}
        try:
            there = Store(settings)
            for each in unpublished:
                place = folders.in_store(each.run_id, owners[each.run_id], each.folder)
                if place is not None and there.is_whole(place):
                    safe.append(each)
        except StoreError as error:
            log.warning("what is in the store could not be looked at; nothing is removed for it", why=str(error))
    return safe


def _remove_copies(settings: Settings, db: Database) -> None:
    """Remove the copies of removed checkpoints of ended runs that this host had fetched from the store."""
    places: dict[tuple[int, int], Path] = {}
    for path in settings.runs_dir.glob(f"*/attempt-*/{CHECKPOINTS_FOLDER}/step*"):
        number, of_run = checkpoint_step(path), path.parents[2].name
        if number is not None and of_run.isdecimal():
            places[int(of_run), number] = path
    with db.read() as session:
        child = aliased(Run)
        pinned = select(child.id).where(child.parent_id == Run.id, col(child.state).not_in(ENDED)).exists()
        gone = session.execute(
            select(Publication.run_id, Publication.step)
            .join(Run, col(Run.id) == Publication.run_id)
            .where(
                col(Publication.disk).in_((Disk.GONE, Disk.CLEARED)),
                col(Publication.run_id).in_({run_id for run_id, _ in places}),
                col(Run.state).in_(ENDED),
                ~pinned,
            )
        ).all()
    for run_id, step in gone:
        if (run_id, step) in places:
            shutil.rmtree(places[run_id, step], ignore_errors=True)


def _remove_hub_copies(settings: Settings, db: Database) -> None:
    """Remove what was fetched from the Hub that no unended run reads: checkpoints of runs, bases and baselines."""
    places = list((settings.home / folders.HUB_COPIES).glob("*"))
    if not places:
        return
    with db.read() as session:
        read = select(Run.parent_id).where(col(Run.state).not_in(ENDED))
        names = session.scalars(select(Repository.name).where(col(Repository.run_id).in_(read)))
        needed = {folders.hub_copies(settings, name) for name in names}
        unended = session.scalars(select(Run).where(col(Run.state).not_in(ENDED)))
        bases = {base for run in unended for base in kind_of(run).from_hub(run)}
        needed |= {folders.hub_copies(settings, base.repo) for base in bases}
    for place in places:
        if place not in needed:
            shutil.rmtree(place, ignore_errors=True)


def mark(session: Session, run_id: int, step: int, disk: Disk) -> None:
    """Say where the folder of a checkpoint is. The run's row is locked."""
    session.execute(
        update(Publication).where(col(Publication.run_id) == run_id, col(Publication.step) == step).values(disk=disk)
    )


def _remove(settings: Settings, publication: Publication) -> None:
    """Remove a checkpoint's folder, and the folders of the same step that other attempts of the run wrote."""
    run = settings.runs_dir / str(publication.run_id)
    for folder in {Path(publication.folder), *run.glob(f"attempt-*/{CHECKPOINTS_FOLDER}/step{publication.step}")}:
        if folder.is_relative_to(settings.runs_dir):  # a folder elsewhere is not the lab's to remove
            shutil.rmtree(folder, ignore_errors=True)


def _remove_data(settings: Settings, db: Database) -> None:
    """Remove the data that attempts which are over had prepared, unless the catalogue or a pool names them.

    While there is room, those of the newest attempt of a published run stay: what it was trained on can be looked at,
    and its checkpoints evaluated on what it had held out.
    """
    found: dict[tuple[int, int], list[Path]] = {}
    for folder in settings.runs_dir.glob(f"*/attempt-*/{DATA_FOLDER}"):
        _note(found, folder, folder.parents[1].name, folder.parent.name.removeprefix("attempt-"))
    for folder in settings.data_dir.glob("*/*-*"):
        _note(found, folder, *folder.name.split("-", 1))
    with db.read() as session:
        over = session.execute(
            select(Attempt.run_id, Attempt.token).where(
                col(Attempt.run_id).in_({run_id for run_id, _ in found}),
                (col(Attempt.state) == AttemptState.ENDED)
                | ((col(Attempt.state) == AttemptState.LOST) & (col(Attempt.lease_until) < utcnow())),
            )
        ).all()
        # Read after the attempts: the transaction that ends an attempt also enters its data into the catalogue or the
        # corpora. Runs that were launched with a retired corpus still read it.
        kept = {settings.data_dir / prepared for prepared in session.scalars(select(CatalogueEntry.prepared))}
        kept |= {Path(path) for path in session.scalars(select(Corpus.path))}
        published = select(Publication.run_id).where(col(Publication.url).is_not(None)).distinct()
        told = set() if is_scarce(settings) else set(session.scalars(published))
        readers = (col(Run.state).not_in(ENDED), col(Run.kind).in_(_readers()))
        told |= {run_id for run_id in session.scalars(select(Run.parent_id).where(*readers)) if run_id is not None}
    for run_id in told & {run_id for run_id, _ in found}:
        token = max(token for run, token in found if run == run_id)
        kept |= set(found[run_id, token])
    for run_id, token in over:
        for folder in found.get((run_id, token), ()):
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)


def _remove_work(settings: Settings, db: Database) -> None:
    """Remove what programs have written that ended WORK_KEPT ago, or have ended at all where the disk is scarce."""
    places = [path for path in settings.runs_dir.glob(f"*/attempt-*/{WORK_FOLDER}") if path.parents[1].name.isdecimal()]
    if not places:
        return
    before = utcnow() - (timedelta() if is_scarce(settings) else WORK_KEPT)
    with db.read() as session:
        ended = session.scalars(
            select(Run.id).where(
                Run.kind == RunKind.PROGRAM,
                col(Run.id).in_({int(path.parents[1].name) for path in places}),
                col(Run.state).in_(ENDED),
                col(Run.ended_at) < before,
            )
        ).all()
    for path in places:
        if int(path.parents[1].name) in ended:
            shutil.rmtree(path, ignore_errors=True)


def _readers() -> list[RunKind]:
    """The kinds of run that read the data which their parent has prepared."""
    return [kind for kind in RunKind if named(kind).reads_parents_data]


def _note(found: dict[tuple[int, int], list[Path]], folder: Path, run_id: str, token: str) -> None:
    """Add a folder to those found, by run and attempt, if its name is that of an attempt."""
    if run_id.isdecimal() and token.isdecimal():
        found.setdefault((int(run_id), int(token)), []).append(folder)
