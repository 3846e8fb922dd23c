"""Downsampling of what a run measures, such as its loss and speed: each series keeps a bounded number of points."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log
from typing import TypeVar

from sqlalchemy import ScalarSelect, delete, func, insert
from sqlalchemy.orm import Mapped, Session
from sqlmodel import Field, col, select

from projects.db.columns import Base, foreign_key, integer, number

START = "start"
"""A series of one point: the seconds of its trainer's life after which a run was first seen to have done a step."""
SPIKE = "spike"
"""A series with the loss of each step at which it spiked; its points have 0 tokens."""
MOST_POINTS = 2000
BUCKETS = 500
T = TypeVar("T")


class Point(Base, table=True):
    """One measured value at a step; where two attempts have measured a step, the later attempt's value counts."""

    __tablename__ = "points"

    run_id: int = foreign_key("runs.id", primary_key=True)
    series: str = Field(primary_key=True)
    step: int = integer(primary_key=True)
    tokens: int = integer()
    value: float = number()


@dataclass(frozen=True)
class Measured:
    """A value of a series, at a step after `tokens` tokens."""

    series: str
    step: int
    tokens: int
    value: float


def add(session: Session, run_id: int, points: Iterable[Measured]) -> None:
    """Add points in place of those between the first and the last of them; downsample a series that grows too long."""
    newest = {(point.series, point.step): point for point in points}
    for name in {series for series, _ in newest}:
        batch = sorted((point for (series, _), point in newest.items() if series == name), key=lambda p: p.step)
        stored = (col(Point.run_id) == run_id, col(Point.series) == name)
        session.execute(delete(Point).where(*stored, col(Point.step).between(batch[0].step, batch[-1].step)))
        if len(batch) > MOST_POINTS:
            batch = downsample(batch)
        count = session.scalar(select(func.count()).select_from(Point).where(*stored)) or 0
        if count + len(batch) > MOST_POINTS:
            batch = downsample(sorted([*read(session, run_id, name), *batch], key=lambda p: p.step))
            session.execute(delete(Point).where(*stored))
        # One statement: to construct a row of the class for each costs eight times as much.
        session.execute(insert(Point), [{"run_id": run_id, **vars(point)} for point in batch])


def read(session: Session, run_id: int, series: str) -> Sequence[Measured]:
    """A series in the order of steps."""
    columns = select(Point.step, Point.tokens, Point.value)  # a row of the class for each would cost twice as much
    rows = session.execute(columns.where(Point.run_id == run_id, Point.series == series).order_by(col(Point.step)))
    return [Measured(series, step, tokens, value) for step, tokens, value in rows]


def newest_until(session: Session, run_id: int, series: str, step: int) -> Measured | None:
    """The point of a series at its highest step that is not after `step`; None where there is none."""
    until = (Point.run_id == run_id, Point.series == series, Point.step <= step)
    row = session.scalars(select(Point).where(*until).order_by(col(Point.step).desc()).limit(1)).one_or_none()
    return None if row is None else Measured(series, row.step, row.tokens, row.value)


def has(session: Session, run_id: int, series: str) -> bool:
    """Whether a series has a point."""
    return session.scalar(select(Point.step).where(Point.run_id == run_id, Point.series == series).limit(1)) is not None


def newest(run_id: Mapped[int], series: str) -> ScalarSelect[float]:
    """The value at the highest step, as a column of a query over runs; one look into the index for each run."""
    return _newest(run_id, series, col(Point.value))


def newest_step(run_id: Mapped[int], series: str) -> ScalarSelect[int]:
    """The highest step, as a column of a query over runs."""
    return _newest(run_id, series, col(Point.step))


def _newest(run_id: Mapped[int], series: str, wanted: Mapped[T]) -> ScalarSelect[T]:
    return (
        select(wanted)
        .where(Point.run_id == run_id, Point.series == series)
        .order_by(col(Point.step).desc())
        .limit(1)
        .scalar_subquery()
    )


def downsample(points: Sequence[Measured], buckets: int = BUCKETS) -> list[Measured]:
    """The first and the last point, and the lowest and highest of each of at most `buckets` spans of steps.

    Four fifths of the bounds between spans are evenly spread over the steps, the others over their logarithm, so that
    the beginning of a long run, where the loss falls fast, keeps its shape.
    """
    first, last = points[0], points[-1]
    kept = {first.step: first, last.step: last}
    even, steps = buckets * 4 // 5, last.step - first.step + 1
    logarithm = (buckets - even) / log(steps + 1)
    spans: dict[tuple[int, int], list[Measured]] = {}
    for point in points:
        done = point.step - first.step
        spans.setdefault((done * even // steps, int(log(done + 1) * logarithm)), []).append(point)
    for span in spans.values():
        for point in (min(span, key=lambda p: p.value), max(span, key=lambda p: p.value)):
            kept[point.step] = point
    return [kept[step] for step in sorted(kept)]
