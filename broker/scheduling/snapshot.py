"""The queue's state at one moment, read by a few queries whose number does not grow with the queue."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from datetime import datetime, timedelta
from functools import cache, lru_cache
from typing import Any, NamedTuple

from sqlalchemy import (
    Executable,
    bindparam,
    case,
    func,
    select,
)  # SQLModel's own takes no more than four columns
from sqlalchemy.orm import Session
from sqlmodel import col

from broker.allocations import hosts, reservations, shares, sponsor_shares
from broker.allocations.allocations import Allocation
from broker.allocations.ledger import Balance, LedgerRow, Movement
from broker.allocations.pools import Pool, memory_of_host
from broker.fence import Fence
from broker.runners import registry
from broker.runs.attempts import OPEN, Attempt, AttemptState
from broker.runs.runs import Run, RunKind, RunState
from broker.scheduling import host_memory, usage
from broker.scheduling.backfill import Funds, Held, Limits, PoolRow, Preemptible, QueueState, Waiting
from broker.scheduling.capacity import Reserved
from broker.scheduling.fairshare import OTHERS, Groups, decayed
from projects import policies
from projects.db import rows
from projects.db.columns import UtcDateTime, utcnow
from projects.projects import Project, Stage


class _Pool(NamedTuple):
    """A pool's row, as far as a plan depends on it."""

    id: int
    name: str
    gpus: int
    runner: str
    price_weight: float
    most_submitted: int
    preempt_after: int
    gpu_type: str
    host_memory_gib: float | None


class _Uncounted(NamedTuple):
    """An attempt whose use is in no project's sum yet, with what its run says; `at` is when it was admitted.

    Its times are the driver's own.
    """

    run_id: int
    pool_id: int
    devices: str
    reserved: int
    charged: int
    charged_at_checkpoint: int
    state: str
    lease_until: Any
    at: Any
    project_id: int
    requested_by: int
    allocation_id: int
    kind: str
    gpus: int
    host_memory: int
    time_limit: int
    used: int
    step: int
    fork_step: int | None
    total_steps: int
    queued_at: Any
    ended_at: Any
    preempted_at: Any
    preempted_for: int | None
    stops_as: str | None
    run_state: str


def load(session: Session, limits: Limits | None = None, fence: Fence | None = None) -> QueueState:
    """All that a plan of this moment depends on; with a `fence`, the pools whose runner is unknown are left out.

    Raises InvalidError for a runner that is not registered.
    """
    now = utcnow()
    pools, weights = list[PoolRow](), dict[int, float]()
    for row in map(_Pool._make, rows.plain(session, _pools())):
        weights[row.id] = row.price_weight
        with fence(f"reading the pool “{row.name}”") if fence else nullcontext():
            pools.append(_pool(row))
    on_host = host_memory.together(session, {pool.id: not pool.queue for pool in pools})
    known_hosts = hosts.every(session) if hosts.any_drained(session) else ()
    pools = [pool._replace(drained=hosts.drained(known_hosts, pool.name), on_host=on_host[pool.id]) for pool in pools]
    waiting = [run for run in _waiting(session, now) if run.pool_id in on_host]
    divisions = sponsor_shares.divisions(session, now)
    preempting = {pool.id for pool in pools if pool.preempt_after}
    held, used, fading, used_on = _attempts(session, now, weights, divisions, preempting)
    return QueueState(
        now=now,
        pools=pools,
        waiting=waiting,
        held=held,
        funds=_funds(session, now),
        usage=used,
        fading=fading,
        shares=shares.of_projects(session),
        groups={
            pool_id: Groups(
                {OTHERS: 1 - sum(division.shares.values()), **division.shares}, division.of, used_on[pool_id]
            )
            for pool_id, division in divisions.items()
        },
        reserved=_reserved(session, now),
        limits=limits or bounds(session),
    )


def _pool(row: _Pool) -> PoolRow:
    queue = registry.named(row.runner).queue
    most = None if queue else memory_of_host(row.gpu_type, row.host_memory_gib)
    return PoolRow(
        row.id, row.name, row.gpus, queue, row.price_weight, row.most_submitted, row.preempt_after, host_bytes=most
    )


@cache
def _pools() -> Executable:
    """Made once, like those below: to make them takes a tenth of a round."""
    return select(
        col(Pool.id),
        col(Pool.name),
        col(Pool.gpus),
        col(Pool.runner),
        col(Pool.price_weight),
        col(Pool.most_submitted),
        col(Pool.preempt_after),
        col(Pool.gpu_type),
        col(Pool.host_memory_gib),
    ).order_by(col(Pool.id))


def bounds(session: Session) -> Limits:
    """How many runs may be under way at once, by the present policies."""
    now = policies.current(session)
    return Limits(now.most_running_a_project, now.most_running_a_person)


def _reserved(session: Session, now: datetime) -> list[Reserved]:
    return [
        Reserved(row.pool_id, row.project_id, row.gpus, row.begins_at, row.ends_at)
        for row in reservations.open_at(session, now)
    ]


def _waiting(session: Session, now: datetime) -> list[Waiting]:
    """The queued runs, with what no attempt has used of their time limits."""
    when, found = rows.times(session), rows.plain(session, _queued(), {"now": now})
    return [
        Waiting(
            number,
            project,
            person,
            allocation,
            pool,
            gpus,
            left,
            when(at),
            before and when(before),
            bool(paused),
            preempted and when(preempted),
            by,
            memory,
        )
        for number, project, person, allocation, pool, gpus, left, at, before, paused, preempted, by, memory in found
    ]


@cache
def _queued() -> Executable:
    return (
        select(
            col(Run.id),
            col(Run.project_id),
            col(Run.requested_by),
            col(Run.allocation_id),
            col(Run.pool_id),
            col(Run.gpus),
            col(Run.time_limit) - Run.used,
            col(Run.queued_at),
            case((col(Run.not_before) > bindparam("now", type_=UtcDateTime), col(Run.not_before))),
            col(Project.stage) == Stage.PAUSED,
            col(Run.preempted_at),
            col(Run.preempted_for),
            col(Run.host_memory),
        )
        .join(Project, col(Project.id) == Run.project_id)
        .where(col(Run.state) == RunState.QUEUED)
    )


def _attempts(
    session: Session, now: datetime, weights: Mapping[int, float], on: Collection[int], preempting: Collection[int]
) -> tuple[list[Held], dict[int, float], dict[int, float], dict[int, dict[int, float]]]:
    """What attempts hold, what each project has used of all pools, what of it decays, and its use of the pools `on`.

    What a preemption goes by is there for the pools `preempting` alone.

    An open attempt holds its devices until what it reserved at its admission is over (its trainer's own clock starts
    when a worker has claimed it, seconds later), or until soon where it was asked to stop; a lost one until it must
    surely have stopped.
    """
    held: list[Held] = []
    fading = defaultdict(float, usage.of_ended(session, now))
    used = fading.copy()
    used_on: dict[int, dict[int, float]] = {pool_id: defaultdict(float) for pool_id in on}
    for (pool_id, project_id), seconds in usage.of_ended_on(session, on, now).items() if on else ():
        used_on[pool_id][project_id] = seconds
    when = rows.times(session)
    for row in map(_Uncounted._make, rows.plain(session, _uncounted())):
        is_open = row.state in OPEN
        weighted = weights[row.pool_id] * (row.reserved if is_open else row.charged)
        if row.ended_at:
            weighted = decayed(weighted, max(0.0, (now - when(row.ended_at)).total_seconds()))
        used[row.project_id] += weighted
        if not is_open:
            fading[row.project_id] += weighted
        if row.pool_id in used_on:
            used_on[row.pool_id][row.project_id] += weighted
        if is_open:
            ends = when(row.at) + timedelta(0, row.reserved / row.gpus)
        elif row.state != AttemptState.LOST or (ends := when(row.lease_until)) is None or ends <= now:
            continue
        stopping = is_open and row.run_state == RunState.STOPPING
        seconds = 0.0 if stopping else (ends - now).total_seconds()
        held.append(
            Held(
                row.run_id,
                row.pool_id,
                row.project_id,
                row.requested_by,
                _devices(row.devices),
                seconds,
                is_open,
                row.gpus,
                stopping,
                row.preempted_for if stopping and row.stops_as == RunState.QUEUED else None,
                _preemptible(row, when, seconds) if row.pool_id in preempting else None,
                row.host_memory,
            )
        )
    return held, dict(used), dict(fading), used_on


@lru_cache(maxsize=10_000)
def _devices(written: str) -> tuple[int, ...]:
    return tuple(map(int, filter(None, written.split(","))))


@cache
def _uncounted() -> Executable:
    admission = (col(LedgerRow.run_id) == Attempt.run_id) & (col(LedgerRow.token) == Attempt.token)
    admission &= (col(LedgerRow.movement) == Movement.RESERVE) & (col(LedgerRow.period) == 0)
    return (
        select(
            col(Attempt.run_id),
            col(Attempt.pool_id),
            col(Attempt.devices),
            col(Attempt.reserved),
            col(Attempt.charged) - Attempt.refunded,
            col(Attempt.charged_at_checkpoint),
            col(Attempt.state),
            col(Attempt.lease_until),
            col(LedgerRow.at),
            col(Run.project_id),
            col(Run.requested_by),
            col(Run.allocation_id),
            col(Run.kind),
            col(Run.gpus),
            col(Run.host_memory),
            col(Run.time_limit),
            col(Run.used),
            col(Run.step),
            col(Run.fork_step),
            col(Run.total_steps),
            col(Run.queued_at),
            col(Run.ended_at),
            col(Run.preempted_at),
            col(Run.preempted_for),
            col(Run.stops_as),
            col(Run.state),
        )
        .join(Run, col(Run.id) == Attempt.run_id)
        .join(LedgerRow, admission)
        .where(col(Attempt.counted).is_(False))
    )


def _preemptible(row: _Uncounted, when: rows.Reader, seconds: float) -> Preemptible | None:
    """What a preemption of an attempt goes by; None where its run does not train or its trainer has not begun.

    The run is likely to end with its last step, at its speed so far, and within the `seconds` that it has left.
    """
    if (row.state, row.run_state, row.kind) != (AttemptState.RUNNING, RunState.RUNNING, RunKind.TRAIN):
        return None
    waiting = Waiting(
        row.run_id,
        row.project_id,
        row.requested_by,
        row.allocation_id,
        row.pool_id,
        row.gpus,
        row.time_limit - row.used,
        when(row.queued_at),
        None,
        preempted_at=when(row.preempted_at),
        preempted_for=row.preempted_for,
        memory=row.host_memory,
    )
    done, left = row.step - (row.fork_step or 0), row.total_steps - row.step
    ends_in = min(seconds, row.used * left / done) if done > 0 else seconds
    return Preemptible(waiting, row.charged / row.gpus, ends_in, row.charged - row.charged_at_checkpoint)


def _funds(session: Session, now: datetime) -> dict[int, Funds]:
    """The funds of the allocations that queued runs draw on; all zero where nothing was granted."""
    when = rows.times(session)
    return {
        allocation_id: Funds(left, reserved, ended_at and when(ended_at))
        for allocation_id, ended_at, left, reserved in rows.plain(session, _drawn_on(), {"now": now})
    }


@cache
def _drawn_on() -> Executable:
    drawn_on = select(col(Run.allocation_id)).where(col(Run.state) == RunState.QUEUED)
    return (
        select(
            col(Allocation.id),
            case((col(Allocation.until) <= bindparam("now", type_=UtcDateTime), col(Allocation.until))),
            func.coalesce(col(Balance.granted) - col(Balance.reserved) - col(Balance.spent), 0),
            func.coalesce(col(Balance.reserved), 0),
        )
        .outerjoin(Balance, col(Balance.allocation_id) == Allocation.id)
        .where(col(Allocation.id).in_(drawn_on))
    )
