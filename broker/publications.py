"""Checkpoints on their way to the Hub: each whole checkpoint of a run is one leased row until it is verified there.

A run's repository is private as long as its project holds its releases back, and opened when reviewers have so decided.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from sqlalchemy import ColumnElement, Select
from sqlalchemy.orm import Session
from sqlmodel import Field, col, select

from projects.db.columns import Base, foreign_key, integer, timestamp, utcnow
from projects.projects import Project, ReleasePolicy


class Disk(StrEnum):
    """Where the folder of a checkpoint stands: one that is `leaving` may be half removed, and nobody may read it.

    One that is `lost` could not be read when it was to be published; it is left as it is, and never published.
    """

    KEPT = "kept"
    LOST = "lost"
    LEAVING = "leaving"
    GONE = "gone"


class Publication(Base, table=True):
    """A checkpoint of a run; it pins its folder until `url` is set, or it is lost.

    The first attempt to reach a step stands for it.
    """

    __tablename__ = "publications"

    run_id: int = foreign_key("runs.id", primary_key=True)
    step: int = integer(primary_key=True)
    folder: str
    url: str | None = None
    lease_until: datetime | None = timestamp(default=None)
    lease: int = integer(default=0)
    tries: int = integer(default=0)
    not_before: datetime = timestamp(default=utcnow)
    error: str = ""
    disk: str = Field(default=Disk.KEPT, index=True)


class Repository(Base, table=True):
    """The Hub's repository of a run, its name kept for good, and whether it is private there."""

    __tablename__ = "repositories"

    run_id: int = foreign_key("runs.id", primary_key=True)
    name: str
    private: bool
    tries: int = integer(default=0)
    not_before: datetime = timestamp(default=utcnow)


def add(session: Session, run_id: int, step: int, folder: str) -> None:
    """Note a whole checkpoint; one that an earlier attempt has written for the same step stays."""
    if session.get(Publication, (run_id, step)) is None:
        session.add(Publication(run_id=run_id, step=step, folder=folder))
        session.flush()


def unpublished() -> ColumnElement[bool]:
    """Which checkpoints are still to go to the Hub."""
    return col(Publication.url).is_(None) & (col(Publication.disk) != Disk.LOST)


def links(session: Session, run_id: int) -> Sequence[tuple[int, str]]:
    """Step and address of each published checkpoint of a run, in the order of steps."""
    rows = session.execute(
        select(Publication.step, col(Publication.url))
        .where(Publication.run_id == run_id)
        .order_by(col(Publication.step))
    )
    return [(step, url) for step, url in rows if url is not None]


def newest(session: Session, run_id: int) -> Publication | None:
    """The checkpoint with the highest step, published or not, that is not lost."""
    return session.scalars(
        select(Publication)
        .where(Publication.run_id == run_id, Publication.disk != Disk.LOST)
        .order_by(col(Publication.step).desc())
        .limit(1)
    ).one_or_none()


def kept(session: Session, run_id: int) -> Sequence[int]:
    """The steps of a run whose folders are whole on this disk, in order: what it can be forked from."""
    return session.scalars(
        select(Publication.step)
        .where(Publication.run_id == run_id, Publication.disk == Disk.KEPT)
        .order_by(col(Publication.step))
    ).all()


def runs_kept() -> Select[int]:
    """The runs of which a checkpoint is whole on this disk."""
    return select(Publication.run_id).where(Publication.disk == Disk.KEPT)


@dataclass
class Published:
    """What of a run's checkpoints is on the Hub, by step and address.

    `delayed` is one sentence where the next checkpoint has failed to get there time and again, and empty otherwise.
    """

    links: list[tuple[int, str]] = field(default_factory=list)
    delayed: str = ""


def of_runs(session: Session, run_ids: Sequence[int], *, delayed_after: int) -> Mapping[int, Published]:
    """What of each run's checkpoints is on the Hub; one counts as delayed after `delayed_after` tries."""
    found = {run_id: Published() for run_id in run_ids}
    waiting: set[int] = set()
    told_of = unpublished() | col(Publication.url).is_not(None)
    rows = session.execute(
        select(Publication.run_id, Publication.step, Publication.url, Publication.tries)
        .where(col(Publication.run_id).in_(run_ids), told_of)
        .order_by(col(Publication.step))
    )
    for run_id, step, url, tries in rows:
        if url is not None:
            found[run_id].links.append((step, url))
        elif run_id not in waiting:
            waiting.add(run_id)
            if tries >= delayed_after:
                said = f"The checkpoint of step {step:,} is not on the Hub yet, after {tries} tries"
                found[run_id].delayed = f"{said}; it is tried again."
    return found


def held(session: Session) -> set[int]:
    """The projects that hold their releases back."""
    return set(session.scalars(select(Project.id).where(Project.release_policy == ReleasePolicy.HELD)))
