"""Publishing a run's checkpoints to the Hub, in the order of steps, each under a lease until the Hub has verified
it."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import false, func, or_, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker import configs, fence, publications
from broker.publications import Disk, Publication, Repository
from broker.publishing import disk, fetched, forgetting
from broker.publishing.hub import Hub, HubError
from broker.publishing.model_card import write_card
from broker.runs import entries, runs, series
from broker.runs.runs import DELAYED_AFTER, ENDED, Run
from broker.store import DamagedError, StoreError
from projects import projects
from projects.db import transition
from projects.db.columns import utcnow
from projects.db.database import Database
from projects.settings import Settings
from trainer import contract

LONGEST_BACKOFF_SECONDS = 600.0
UNREADABLE = (ValueError, FileNotFoundError, NotADirectoryError, DamagedError)
"""Errors that come from the checkpoint's folder or its copy in the store, not from a full disk or the Hub."""
LOST_AFTER = 12
"""A checkpoint is given up after so many tries, most of an hour, with one and the same of these errors."""
LONGEST_COMMIT = 64
"""Characters of a git commit: a SHA-256, or 40 of a SHA-1."""
VISIBILITY = -1
"""In the place of a step: the repository itself is to be made public or private, or its cards rewritten."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Claimed:
    """A checkpoint that this publisher has leased. `lease` is its fencing token; `first` and `final` tell whether it is
    the first published one and the last one of its run."""

    run_id: int
    step: int
    lease: int
    folder: Path
    repo: str
    private: bool
    first: bool
    final: bool


@dataclass(frozen=True)
class Uploaded:
    """A checkpoint on the Hub, with the commit there; and what its metadata say: the commit of the trainer's code, and
    how many tokens its weights have seen. These are empty and None where they are not recorded."""

    url: str
    hub_commit: str = ""
    code_commit: str = ""
    tokens: int | None = None


def waiting(session: Session) -> Sequence[tuple[int, int]]:
    """Runs with something to publish now: the step of the next checkpoint that no publisher has leased, or VISIBILITY
    where the run's repository is to be made public or private, or its cards rewritten."""
    upcoming = (
        select(Publication.run_id, func.min(col(Publication.step)).label("step"))
        .where(publications.unpublished())
        .group_by(col(Publication.run_id))
        .subquery()
    )
    rows = session.execute(
        select(Publication.run_id, Publication.step)
        .join(upcoming, (col(Publication.run_id) == upcoming.c.run_id) & (col(Publication.step) == upcoming.c.step))
        .where(
            or_(col(Publication.lease_until).is_(None), col(Publication.lease_until) < utcnow()),
            Publication.not_before <= utcnow(),
        )
    )
    found = dict.fromkeys([*_misplaced(session), *forgetting.due(session)], VISIBILITY)
    found.update((run_id, step) for run_id, step in rows)
    return sorted(found.items())


def publish_waiting(settings: Settings, db: Database, run_id: int) -> None:
    """Publish a run's waiting checkpoints in the order of steps, up to the first that cannot be published now."""
    hub = Hub(settings)
    while True:
        show_as_decided(settings, db, hub, run_id)
        renew_cards(settings, db, hub, run_id)
        with db.write() as session:
            claimed = claim(session, run_id, settings)
        if claimed is None:
            return
        try:
            with _renewing(settings, db, claimed):
                uploaded = _upload(settings, db, hub, claimed)
        except (HubError, StoreError, OSError, ValueError) as error:  # the Hub, the store, or the folder
            log.warning("not published yet", run=run_id, step=claimed.step, error=str(error))
            with db.write() as session:
                fail(
                    session,
                    claimed,
                    str(error),
                    pause_seconds=settings.publish_retry_seconds,
                    least_seconds=error.pause if isinstance(error, HubError) else 0.0,
                    unreadable=isinstance(error, UNREADABLE),
                )
            _tell_refused(db, error)
            return
        with db.write() as session:
            finish(session, claimed, uploaded)
        disk.tidy(settings, db)


def show_as_decided(settings: Settings, db: Database, hub: Hub, run_id: int) -> None:
    """Make the run's repository public where reviewers have released it, private where its project is held now."""
    with db.read() as session:
        due = run_id in _misplaced(session)
        repository = session.get(Repository, run_id)
    if not due or repository is None:
        return
    try:
        url = hub.show(repository.name, private=not repository.private)
    except HubError as error:
        log.warning("not shown as decided yet", run=run_id, error=str(error))
        with db.write() as session:
            session.execute(
                update(Repository)
                .where(col(Repository.run_id) == run_id, col(Repository.private) == repository.private)
                .values(
                    tries=repository.tries + 1,
                    not_before=_later(repository.tries, settings.publish_retry_seconds, error.pause),
                )
            )
        _tell_refused(db, error)
        return
    with db.write() as session:
        _shown(session, run_id, url, private=not repository.private)


def renew_cards(settings: Settings, db: Database, hub: Hub, run_id: int) -> None:
    """Rewrite the run's model cards where words on them have changed."""
    with db.read() as session:
        if run_id not in forgetting.due(session):
            return
        tries = session.get_one(Repository, run_id).tries
    try:
        forgetting.renew_cards(db, hub, run_id)
    except (HubError, OSError) as error:
        log.warning("cards not rewritten yet", run=run_id, error=str(error))
        later = _later(tries, settings.publish_retry_seconds, error.pause if isinstance(error, HubError) else 0.0)
        with db.write() as session:
            session.execute(
                update(Repository)
                .where(col(Repository.run_id) == run_id)
                .values(tries=Repository.tries + 1, not_before=later)
            )
        _tell_refused(db, error)


def _tell_refused(db: Database, error: Exception) -> None:
    """Tell the admins, once a day, that the Hub does not take the token."""
    if isinstance(error, HubError) and error.refused:
        fence.tell(db, "publishing to the Hub", "it refuses STOA_HUB_TOKEN; checkpoints wait here until it takes one")


def _shown(session: Session, run_id: int, url: str, *, private: bool) -> None:
    """Store whether a repository is private now, and record a change once."""
    other = (col(Repository.run_id) == run_id, col(Repository.private) != private)
    if transition.write_where(session, Repository, *other, private=private, tries=0, not_before=utcnow()) is not None:
        kind = "checkpoints.withheld" if private else "checkpoints.released"
        count = len(publications.links(session, run_id))
        entries.tell(session, runs.load(session, run_id), kind, url=url, count=count)


def _misplaced(session: Session) -> Sequence[int]:
    """The runs whose repository is private though the project is released, or public though the project is held.

    A repository with an upload under way is made public after it: an upload that began as private makes it private.
    """
    held = publications.held(session)
    wanted = col(Run.project_id).in_(held) if held else false()
    uploading = select(Publication.run_id).where(
        Publication.run_id == Repository.run_id, col(Publication.url).is_(None), col(Publication.lease_until) > utcnow()
    )
    return session.scalars(
        select(Repository.run_id)
        .join(Run, col(Run.id) == Repository.run_id)
        .where(
            Repository.private != wanted,
            Repository.not_before <= utcnow(),
            ~(col(Repository.private) & uploading.exists()),
        )
    ).all()


def claim(session: Session, run_id: int, settings: Settings) -> Claimed | None:
    """Lease the run's next checkpoint; None where there is none or another publisher has leased it."""
    run = runs.load(session, run_id)
    session.refresh(run, with_for_update=True)
    upcoming = session.scalars(
        select(Publication)
        .where(Publication.run_id == run_id, publications.unpublished())
        .order_by(col(Publication.step))
        .limit(1)
    ).one_or_none()
    if upcoming is None or upcoming.not_before > utcnow():
        return None
    if upcoming.lease_until is not None and upcoming.lease_until > utcnow():
        return None
    upcoming.lease += 1
    upcoming.lease_until = utcnow() + timedelta(seconds=settings.lease_seconds)
    newest = publications.newest(session, run_id) or upcoming
    private = projects.is_held(projects.load(session, run.project_id))
    repository = session.get(Repository, run_id)
    if repository is None:
        project = projects.view(session, run.project_id)
        repository = Repository(
            run_id=run_id, name=f"{settings.hub_namespace}/{project.slug}-run-{run_id}", private=private
        )
        session.add(repository)
        session.flush()
    return Claimed(
        run_id=run_id,
        step=upcoming.step,
        lease=upcoming.lease,
        folder=Path(upcoming.folder),
        repo=repository.name,
        private=private,
        first=not publications.links(session, run_id),
        final=upcoming.step == run.total_steps or (run.state in ENDED and upcoming.step == newest.step),
    )


def finish(session: Session, claimed: Claimed, uploaded: Uploaded) -> None:
    """Store and record that a checkpoint was published and verified, unless another publisher has the lease now."""
    commits = {"hub_commit": uploaded.hub_commit, "code_commit": uploaded.code_commit}
    done = _guarded(session, claimed, url=uploaded.url, lease_until=None, error="", **commits)
    if not done:
        _came_late(session, claimed)
    else:
        run = runs.load(session, claimed.run_id)
        told: dict[str, Any] = {key: commit for key, commit in commits.items() if commit}
        told |= {} if uploaded.tokens is None else {"tokens": uploaded.tokens}
        if (held_out := series.newest_until(session, run.id, "held_out", claimed.step)) is not None:
            told |= {"held_out": f"{held_out.value:.3f}", "held_out_step": held_out.step}
        entries.tell(
            session,
            run,
            "checkpoint.published",
            step=claimed.step,
            url=uploaded.url,
            first=claimed.first,
            final=claimed.final,
            held=claimed.private,
            **told,
        )


def fail(
    session: Session,
    claimed: Claimed,
    error: str,
    *,
    pause_seconds: float,
    least_seconds: float = 0.0,
    unreadable: bool = False,
) -> None:
    """Return the lease and schedule another try, after a pause that doubles each time, of `least_seconds` at least.

    Repeated failure is recorded once.

    A checkpoint whose folder stays `unreadable` is given up as lost, which is recorded too, so that the checkpoints
    after it can be published.
    """
    publication = session.get_one(Publication, (claimed.run_id, claimed.step))
    anew = unreadable and publication.error != error[:500]
    tries = 1 if anew else publication.tries + 1
    lost = unreadable and tries >= LOST_AFTER
    noted = _guarded(
        session,
        claimed,
        lease_until=None,
        tries=tries,
        not_before=_later(tries - 1, pause_seconds, least_seconds),
        error=error[:500],
        disk=Disk.LOST if lost else publication.disk,
    )
    if not noted:
        _came_late(session, claimed)
    elif lost:
        entries.tell(session, runs.load(session, claimed.run_id), "checkpoint.lost", step=claimed.step, tries=tries)
    elif tries == DELAYED_AFTER:
        entries.tell(session, runs.load(session, claimed.run_id), "checkpoint.delayed", step=claimed.step, tries=tries)


def _came_late(session: Session, claimed: Claimed) -> None:
    """Store that the repository may be private: this upload, whose lease another publisher has now, may have made it
    so."""
    if claimed.private:
        session.execute(update(Repository).where(col(Repository.run_id) == claimed.run_id).values(private=True))


def _later(tries: int, pause_seconds: float, least_seconds: float = 0.0) -> datetime:
    """The time of the next try after `tries` earlier ones, at least `least_seconds` from now."""
    pause = min(pause_seconds * 2 ** min(tries, 20), LONGEST_BACKOFF_SECONDS)
    return utcnow() + timedelta(seconds=max(pause, least_seconds))


def _upload(settings: Settings, db: Database, hub: Hub, claimed: Claimed) -> Uploaded:
    with fetched.checkpoint(settings, db, claimed.run_id, claimed.folder) as folder:
        with db.read() as session:
            write_card(session, claimed.run_id, claimed.repo, folder)
            with_state = configs.keeps_state(runs.load(session, claimed.run_id).config, claimed.step)
        metadata = json.loads((folder / contract.CHECKPOINT_METADATA_FILE).read_text())
        message = f"step {claimed.step}"
        if with_state:
            place = publications.state_branch(claimed.step)
            hub.publish(claimed.repo, place, folder, f"{message}, state", private=claimed.private, state=True)
        branch = hub.publish(claimed.repo, f"step{claimed.step}", folder, message, private=claimed.private)
        hub.publish(claimed.repo, "main", folder, message, private=claimed.private)
    how = metadata if isinstance(metadata, dict) else {}
    tokens, code_commit = how.get("tokens"), str(how.get("code_commit", ""))[:LONGEST_COMMIT]
    return Uploaded(branch.url, branch.commit, code_commit, tokens if isinstance(tokens, int) else None)


@contextmanager
def _renewing(settings: Settings, db: Database, claimed: Claimed) -> Iterator[None]:
    """Renew the lease in a thread during the upload."""
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
    """Write values to the claimed publication; False where its lease is no longer this publisher's."""
    leased = {"run_id": claimed.run_id, "step": claimed.step, "lease": claimed.lease, "url": None}
    return transition.write_if(session, Publication, leased, **values) is not None
