"""Publications: each complete checkpoint of a run is a leased row until the Hub has verified its upload.

A run's repository is private while its project holds its releases back. A reviewer's decision makes it public.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cache

from sqlalchemy import ColumnElement, Executable, Select, bindparam, func, update
from sqlalchemy.orm import Session
from sqlmodel import Field, col, select

from projects.db.columns import Base, foreign_key, integer, timestamp, utcnow
from projects.projects import Project, ReleasePolicy


class Disk(StrEnum):
    """The states of a checkpoint's folder. A `leaving` one may be half removed: nobody may read it.

    A `lost` one could not be read when it was to be published; it stays as it is and is never published. A `gone` one
    may still be in the store; a `cleared` one is on the Hub alone.
    """

    KEPT = "kept"
    LOST = "lost"
    LEAVING = "leaving"
    GONE = "gone"
    CLEARED = "cleared"


class Publication(Base, table=True):
    """A checkpoint of a run. Its folder stays until `url` is set or the checkpoint is lost.

    Of several attempts that reach a step, the first one's checkpoint counts. Once published, `hub_commit` is the commit
    on the Hub and `code_commit` that of the trainer's code; each is empty where it was not recorded.
    """

    __tablename__ = "publications"

    run_id: int = foreign_key("runs.id", primary_key=True)
    step: int = integer(primary_key=True)
    folder: str
    url: str | None = None
    hub_commit: str = ""
    code_commit: str = ""
    lease_until: datetime | None = timestamp(default=None)
    lease: int = integer(default=0)
    tries: int = integer(default=0)
    not_before: datetime = timestamp(default=utcnow)
    error: str = ""
    disk: str = Field(default=Disk.KEPT, index=True)


class Repository(Base, table=True):
    """A run's repository on the Hub, whose name never changes, and whether it is private there.

    `cards_due` counts what has made its model cards due to be rewritten since they last were.
    """

    __tablename__ = "repositories"

    run_id: int = foreign_key("runs.id", primary_key=True)
    name: str
    private: bool
    cards_due: int = integer(default=0)
    tries: int = integer(default=0)
    not_before: datetime = timestamp(default=utcnow)


def renew_cards(session: Session, run_ids: Collection[int] | Select[int], *, at_once: bool) -> None:
    """Have the publisher rewrite the model cards of these runs, as words on them have changed: `at_once`, or when a
    pause that the Hub's failures have made is over."""
    these = select(Repository.run_id).where(col(Repository.run_id).in_(run_ids)).order_by(col(Repository.run_id))
    locked = session.scalars(these.with_for_update(key_share=True)).all()
    due: dict[str, object] = {"cards_due": Repository.cards_due + 1}
    due |= {"tries": 0, "not_before": utcnow()} if at_once else {}
    session.execute(update(Repository).where(col(Repository.run_id).in_(locked)).values(due))


def add(session: Session, run_id: int, step: int, folder: str) -> None:
    """Add a complete checkpoint; the checkpoint of an earlier attempt at the same step stays."""
    if session.get(Publication, (run_id, step)) is None:
        session.add(Publication(run_id=run_id, step=step, folder=folder))
        session.flush()


def unpublished() -> ColumnElement[bool]:
    """The condition for checkpoints that are still to be published."""
    return col(Publication.url).is_(None) & (col(Publication.disk) != Disk.LOST)


def links(session: Session, run_id: int) -> Sequence[tuple[int, str]]:
    """Step and address of each published checkpoint of a run, in the order of steps."""
    rows = session.execute(
        select(Publication.step, col(Publication.url))
        .where(Publication.run_id == run_id)
        .order_by(col(Publication.step))
    )
    return [(step, url) for step, url in rows if url is not None]


def newest_published(session: Session, run_id: int) -> Publication | None:
    """The published checkpoint of the highest step."""
    published = select(Publication).where(Publication.run_id == run_id, col(Publication.url).is_not(None))
    return session.scalars(published.order_by(col(Publication.step).desc()).limit(1)).one_or_none()


def newest_published_before(session: Session, run_id: int, step: int) -> int:
    """The step of the newest published checkpoint of a run before `step`; -1 without one."""
    before = (Publication.run_id == run_id, Publication.step < step, col(Publication.url).is_not(None))
    found = session.scalar(select(func.max(col(Publication.step))).where(*before))
    return -1 if found is None else found


def newest(session: Session, run_id: int) -> Publication | None:
    """The checkpoint of the highest step that is not lost, published or not."""
    return session.scalars(
        select(Publication)
        .where(Publication.run_id == run_id, Publication.disk != Disk.LOST)
        .order_by(col(Publication.step).desc())
        .limit(1)
    ).one_or_none()


def state_branch(step: int) -> str:
    """The branch on the Hub that has the optimizer's state of a step, where that is published."""
    return f"step{step}-state"


def kept(session: Session, run_id: int) -> Sequence[int]:
    """The steps of the checkpoints of a run that are complete on the disk of a host, in order."""
    return session.scalars(
        select(Publication.step)
        .where(Publication.run_id == run_id, Publication.disk == Disk.KEPT)
        .order_by(col(Publication.step))
    ).all()


def readable(session: Session, run_id: int) -> Sequence[int]:
    """The steps of the checkpoints of a run whose weights can be read, in order: on this disk, or open on the Hub."""
    is_open = select(Repository.run_id).where(Repository.run_id == run_id, col(Repository.private).is_(False)).exists()
    here = col(Publication.disk) == Disk.KEPT
    on_hub = col(Publication.url).is_not(None) & is_open
    return session.scalars(
        select(Publication.step).where(Publication.run_id == run_id, here | on_hub).order_by(col(Publication.step))
    ).all()


def runs_kept() -> Select[int]:
    """The query for the runs with a complete checkpoint on this disk."""
    return select(Publication.run_id).where(Publication.disk == Disk.KEPT)


@dataclass
class Published:
    """A run's published checkpoints, as steps and addresses.

    `delayed` is a sentence if the upload of the next checkpoint keeps failing, and empty otherwise.
    """

    links: list[tuple[int, str]] = field(default_factory=list)
    delayed: str = ""


def of_runs(session: Session, run_ids: Sequence[int], *, delayed_after: int) -> Mapping[int, Published]:
    """Each run's published checkpoints; a checkpoint counts as delayed after `delayed_after` tries."""
    found = {run_id: Published() for run_id in run_ids}
    waiting: set[int] = set()
    for run_id, step, url, tries in session.execute(_told_of(), {"runs": list(run_ids)}):
        if url is not None:
            found[run_id].links.append((step, url))
        elif run_id not in waiting:
            waiting.add(run_id)
            if tries >= delayed_after:
                said = f"The checkpoint of step {step:,} is not on the Hub yet, after {tries} tries"
                found[run_id].delayed = f"{said}; it is tried again."
    return found


@cache
def _told_of() -> Executable:
    """The checkpoints of the runs in the parameter `runs`; made once, as that takes longer than an answer."""
    return (
        select(Publication.run_id, Publication.step, Publication.url, Publication.tries)
        .where(col(Publication.run_id).in_(bindparam("runs", expanding=True)))
        .where(unpublished() | col(Publication.url).is_not(None))
        .order_by(col(Publication.step))
    )


def held(session: Session) -> set[int]:
    """The projects that hold their releases back."""
    return set(session.scalars(select(Project.id).where(Project.release_policy == ReleasePolicy.HELD)))
