"""The queue's state at one moment, read by a few queries whose number does not grow with the queue."""

from collections import defaultdict
from datetime import datetime, timedelta

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from broker.allocations import Allocation
from broker.attempts import OPEN, Attempt, AttemptState
from broker.fairshare import HORIZON_SECONDS, decayed
from broker.ledger import Balance, LedgerRow, Movement
from broker.planning import Held, Limits, PoolRow, Purse, QueueState, Waiting
from broker.pools import Launcher, Pool
from broker.runs import Run, RunState
from projects.db import utcnow


def load(session: Session, limits: Limits | None = None) -> QueueState:
    """All that a plan of this moment depends on."""
    now = utcnow()
    weights: dict[int, float] = {}
    pools: list[PoolRow] = []
    for pool in session.execute(
        select(Pool.id, Pool.name, Pool.gpus, Pool.launcher, Pool.price_weight).order_by(Pool.id)
    ):
        pools.append(PoolRow(pool.id, pool.name, pool.gpus, pool.launcher == Launcher.SLURM, pool.price_weight))
        weights[pool.id] = pool.price_weight
    waiting = _waiting(session)
    return QueueState(
        now=now,
        pools=pools,
        waiting=waiting,
        held=_held(session, now),
        purses=_purses(session) if waiting else {},
        usage=usage(session, now) if waiting else {},
        limits=limits or Limits(),
    )


def usage(session: Session, now: datetime) -> dict[int, float]:
    """GPU-seconds that each project has used of all pools, decayed, each weighing as much as its pool's price.

    What is reserved counts as used from the moment of admission (Kueue's entry penalty), so that many quick launches
    gain nothing. What an attempt has not given back ages as one sum: a release never outweighs its older reservation.
    """
    kept = case((LedgerRow.movement == Movement.RESERVE, LedgerRow.seconds), else_=-LedgerRow.seconds)
    rows = session.execute(
        select(Run.project_id, func.sum(kept), func.max(LedgerRow.at), Pool.price_weight)
        .join(Run, Run.id == LedgerRow.run_id)
        .join(Pool, Pool.id == Run.pool_id)
        .where(
            LedgerRow.movement.in_((Movement.RESERVE, Movement.RELEASE)),
            LedgerRow.at > now - timedelta(seconds=HORIZON_SECONDS),
        )
        .group_by(Run.project_id, LedgerRow.run_id, LedgerRow.token, Pool.price_weight)
    )
    used: defaultdict[int, float] = defaultdict(float)
    for project_id, seconds, at, weight in rows:
        used[project_id] += decayed(weight * max(0, int(seconds)), (now - at).total_seconds())
    return dict(used)


def _waiting(session: Session) -> list[Waiting]:
    """The queued runs; what their attempts were charged is taken from their time limits."""
    queued = Run.state == RunState.QUEUED
    charged = {
        run_id: int(seconds)
        for run_id, seconds in session.execute(
            select(Attempt.run_id, func.sum(Attempt.charged))
            .join(Run, Run.id == Attempt.run_id)
            .where(queued)
            .group_by(Attempt.run_id)
        )
    }
    rows = session.execute(
        select(
            Run.id,
            Run.project_id,
            Run.requested_by,
            Run.allocation_id,
            Run.pool_id,
            Run.gpus,
            Run.time_limit,
            Run.queued_at,
            Run.not_before,
        ).where(queued)
    )
    waiting: list[Waiting] = []
    for row in rows:
        run = Waiting._make(row)
        spent = charged.get(run.id, 0)
        waiting.append(run._replace(seconds=run.seconds - spent // run.gpus) if spent else run)
    return waiting


def _held(session: Session, now: datetime) -> list[Held]:
    """What open attempts hold: until what they reserved at admission is over; lost ones until they surely stopped."""
    admission = (LedgerRow.run_id == Attempt.run_id) & (LedgerRow.token == Attempt.token)
    admission &= (LedgerRow.movement == Movement.RESERVE) & (LedgerRow.period == 0)
    rows = session.execute(
        select(
            Attempt.run_id,
            Attempt.pool_id,
            Run.project_id,
            Run.requested_by,
            Attempt.devices,
            Attempt.reserved,
            LedgerRow.at,
            Run.gpus,
            Attempt.state,
            Attempt.lease_until,
        )
        .join(Run, Run.id == Attempt.run_id)
        .join(LedgerRow, admission)
        .where(Attempt.state.in_(OPEN) | ((Attempt.state == AttemptState.LOST) & (Attempt.lease_until > now)))
    )
    held: list[Held] = []
    for run_id, pool_id, project_id, person_id, devices, reserved, at, gpus, state, until in rows:
        is_open = state != AttemptState.LOST
        ends = at + timedelta(seconds=reserved / gpus) if is_open or until is None else until
        places = tuple(int(device) for device in devices.split(",") if device)
        held.append(Held(run_id, pool_id, project_id, person_id, places, (ends - now).total_seconds(), is_open))
    return held


def _purses(session: Session) -> dict[int, Purse]:
    """Of the allocations that queued runs draw on; all zero where nothing was granted."""
    drawn_on = select(Run.allocation_id).where(Run.state == RunState.QUEUED)
    rows = session.execute(
        select(Allocation.id, Allocation.until, Balance.granted, Balance.reserved, Balance.spent)
        .outerjoin(Balance, Balance.allocation_id == Allocation.id)
        .where(Allocation.id.in_(drawn_on))
    )
    purses: dict[int, Purse] = {}
    for allocation_id, until, granted, reserved, spent in rows:
        purses[allocation_id] = Purse((granted or 0) - (reserved or 0) - (spent or 0), reserved or 0, until)
    return purses
