"""Checkpoints on their way to the Hub: each whole checkpoint of a run is one leased row until it is verified there."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ForeignKey, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from projects.db import Base, utcnow


class Publication(Base):
    """A checkpoint of a run; it pins its folder until `url` is set. The first attempt to reach a step stands for it."""

    __tablename__ = "publications"

    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    folder: Mapped[str]
    url: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    lease: Mapped[int] = mapped_column(default=0)
    tries: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[datetime] = mapped_column(default=utcnow)
    error: Mapped[str] = mapped_column(default="")


def add(session: Session, run_id: int, step: int, folder: str) -> None:
    """Note a whole checkpoint; one that an earlier attempt has written for the same step stays."""
    if session.get(Publication, (run_id, step)) is None:
        session.add(Publication(run_id=run_id, step=step, folder=folder))
        session.flush()


def links(session: Session, run_id: int) -> Sequence[tuple[int, str]]:
    """Step and address of each published checkpoint of a run, in the order of steps."""
    rows = session.execute(
        select(Publication.step, Publication.url).where(Publication.run_id == run_id).order_by(Publication.step)
    )
    return [(step, url) for step, url in rows if url is not None]


def newest(session: Session, run_id: int) -> Publication | None:
    """The checkpoint with the highest step, published or not."""
    return session.scalars(
        select(Publication).where(Publication.run_id == run_id).order_by(Publication.step.desc()).limit(1)
    ).one_or_none()
