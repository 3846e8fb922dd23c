"""What each project has recently used: one decaying sum a project, so that fair-share need not read its whole history.

In weighted GPU-seconds: a pool's price weight times GPU-seconds of it. The scheduler adds what an ended attempt was
charged, once; one that is open counts with all it has reserved, from its admission on (Kueue's entry penalty), so that
many quick launches gain nothing, and begins to decay when it ends.
"""

from collections.abc import Collection
from datetime import datetime
from functools import cache

from sqlalchemy import ColumnElement, Executable, update
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker.allocations.pools import Pool
from broker.runs.attempts import Attempt, AttemptState
from broker.runs.runs import Run
from broker.scheduling.fairshare import decayed
from projects.db import rows
from projects.db.columns import Base, foreign_key, number, timestamp, utcnow


class FairUsage(Base, table=True):
    """What the ended attempts of a project come to, decayed until `at`."""

    __tablename__ = "fair_usage"

    project_id: int = foreign_key("projects.id", primary_key=True)
    seconds: float = number()
    at: datetime = timestamp()


class PoolUsage(Base, table=True):
    """What the ended attempts of a project on one pool come to, decayed until `at`."""

    __tablename__ = "pool_usage"

    pool_id: int = foreign_key("pools.id", primary_key=True)
    project_id: int = foreign_key("projects.id", primary_key=True)
    seconds: float = number()
    at: datetime = timestamp()


def of_ended(session: Session, now: datetime) -> dict[int, float]:
    """Each project's sum, decayed until `now`."""
    when = rows.times(session)
    return {
        project_id: decayed(seconds, (now - when(at)).total_seconds())
        for project_id, seconds, at in rows.plain(session, _sums())
    }


@cache
def _sums() -> Executable:
    """Made once, since each round of the scheduler asks."""
    return select(FairUsage.project_id, FairUsage.seconds, FairUsage.at)


def of_ended_on(session: Session, pool_ids: Collection[int], now: datetime) -> dict[tuple[int, int], float]:
    """The sum of each pool and project, of these pools, decayed until `now`."""
    found = session.scalars(select(PoolUsage).where(col(PoolUsage.pool_id).in_(pool_ids)))
    return {(row.pool_id, row.project_id): decayed(row.seconds, (now - row.at).total_seconds()) for row in found}


def add_ended(session: Session) -> None:
    """Add the attempts that hold nothing any more and are not part of the sums yet; two at once add each but once."""
    now = utcnow()
    session.execute(select(Pool.id).order_by(col(Pool.id)).with_for_update(key_share=True)).all()
    found = session.execute(
        update(Attempt)
        .where(_over(now))
        .values(counted=True)
        .returning(col(Attempt.run_id), col(Attempt.charged) - Attempt.refunded)
        .execution_options(synchronize_session=False)
    ).all()
    ended = session.execute(
        select(Run.id, Run.project_id, Run.pool_id, col(Run.ended_at)).where(
            col(Run.id).in_({run_id for run_id, _ in found})
        )
    )
    runs = {row.id: row for row in ended}
    weights = {pool.id: pool.price_weight for pool in session.execute(select(Pool.id, Pool.price_weight))}
    for run_id, charged in found:
        run = runs[run_id]
        age = 0.0 if run.ended_at is None else (now - run.ended_at).total_seconds()
        new = decayed(weights[run.pool_id] * charged, max(0.0, age))
        for row in (
            session.get(FairUsage, run.project_id) or FairUsage(project_id=run.project_id, seconds=0.0, at=now),
            session.get(PoolUsage, (run.pool_id, run.project_id))
            or PoolUsage(pool_id=run.pool_id, project_id=run.project_id, seconds=0.0, at=now),
        ):
            row.seconds = decayed(row.seconds, (now - row.at).total_seconds()) + new
            row.at = now
            session.add(row)
        session.flush()


def any_ended(session: Session) -> bool:
    """Whether there are attempts to add."""
    return session.scalar(select(Attempt.run_id).where(_over(utcnow())).limit(1)) is not None


def _over(now: datetime) -> ColumnElement[bool]:
    """The condition for attempts that are not in the sums yet and hold nothing any more.

    The trainer of a lost attempt may still be stopping until its lease has run out.
    """
    stopped = (col(Attempt.state) == AttemptState.LOST) & (col(Attempt.lease_until) <= now)
    return col(Attempt.counted).is_(False) & ((col(Attempt.state) == AttemptState.ENDED) | stopped)
