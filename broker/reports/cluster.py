"""The cluster at a glance, for everyone: what each pool is doing, and what each project has used."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import func
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker.allocations import hosts, pools, reservations, shares, units
from broker.allocations.allocations import Allocation
from broker.allocations.hosts import HostView
from broker.allocations.ledger import Balance
from broker.allocations.pools import Pool
from broker.allocations.reservations import ReservationView
from broker.allocations.units import Amounts, Unit
from broker.runners import registry
from broker.runs import attempts
from broker.runs.kinds.kind import kind_of
from broker.runs.runs import ACTIVE, Run, RunState
from broker.scheduling import fairshare, snapshot
from projects.projects import Project


@dataclass(frozen=True)
class PoolStatus:
    """What a pool is doing; `left` is what its grants have not given to allocations, in GPU-seconds.

    `under_way` names the runs and samples on each host. `queue` is the name of its runner's own queue, which decides
    when a run starts; empty where Stoa does. A run that has had its GPUs for `preempt_after` seconds can be preempted;
    0 for never.
    """

    name: str
    gpu_type: str
    gpus: int
    nodes: int
    busy: int
    runner: str
    queue: str
    hosts: Sequence[HostView]
    under_way: Mapping[str, Sequence[str]]
    price_weight: float
    working: int
    waiting: int
    left: int
    memory_gib: float | None
    host_memory_gib: float | None
    preempt_after: int
    reservations: Sequence[ReservationView]

    @property
    def unit(self) -> Unit:
        """What the pool counts: GPUs, or cores."""
        return Unit.of(self.gpu_type)


@dataclass(frozen=True)
class ProjectUse:
    """What a project was granted and has spent of all pools, or of one.

    `lately` is the part of all recent use that was the project's, from 0 to 1. Use counts half after seven days;
    fair-share goes by it, and by the project's `share`.
    """

    project_id: int
    title: str
    granted: Amounts
    spent: Amounts
    lately: float
    share: float


@dataclass(frozen=True)
class PoolOffer:
    """What somebody who chooses a pool looks at: `free` are the GPUs, or cores, that no run holds now."""

    name: str
    gpu_type: str
    gpus: int
    free: int
    price_weight: float

    @property
    def unit(self) -> Unit:
        """What the pool counts: GPUs, or cores."""
        return Unit.of(self.gpu_type)


def offers(session: Session) -> Sequence[PoolOffer]:
    """What every pool offers, by name; cheap enough to be asked with each letter that is typed."""
    holding = ACTIVE - {RunState.QUEUED}
    query = select(Run.pool_id, func.sum(col(Run.gpus))).where(col(Run.state).in_(holding)).group_by(col(Run.pool_id))
    held = {pool_id: int(gpus) for pool_id, gpus in session.execute(query)}
    return [
        PoolOffer(pool.name, pool.gpu_type, pool.gpus, max(0, pool.gpus - held.get(pool.id, 0)), pool.price_weight)
        for pool in pools.every(session)
    ]


def status(session: Session) -> Sequence[PoolStatus]:
    """The status of every pool, by name."""
    state = snapshot.load(session)
    sizes = select(Run.id, Run.gpus).where(col(Run.id).in_([held.run_id for held in state.held]))
    gpus = {row.id: row.gpus for row in session.execute(sizes)}
    available = pools.available(session)
    known, reserved = hosts.every(session), reservations.every(session)
    under_way = {
        host: [kind_of(run).short_name(run) for run in found] for host, found in attempts.under_way(session).items()
    }
    listed = []
    for pool in pools.every(session):
        held = [row for row in state.held if row.pool_id == pool.id]
        listed.append(
            PoolStatus(
                name=pool.name,
                gpu_type=pool.gpu_type,
                gpus=pool.gpus,
                nodes=pool.nodes,
                busy=min(pool.gpus, sum(gpus[row.run_id] for row in held)),
                runner=pool.runner,
                queue=registry.named(pool.runner).queue,
                hosts=hosts.of_pool(known, pool),
                under_way=under_way,
                price_weight=pool.price_weight,
                working=sum(row.open for row in held),
                waiting=sum(row.pool_id == pool.id for row in state.waiting),
                left=available.get(pool.id, 0),
                memory_gib=pool.memory_gib,
                host_memory_gib=pool.host_memory_gib,
                preempt_after=pool.preempt_after,
                reservations=[one for one in reserved if one.pool == pool.name],
            )
        )
    return listed


def usage(session: Session, pool: str | None = None, *, limit: int = 12) -> Sequence[ProjectUse]:
    """The use of the projects that were granted something, of one pool or all, the largest spender first."""
    state = snapshot.load(session)
    standings = fairshare.standings(state.usage, fairshare.among(state.usage, state.shares))
    counted = [col(Project.hidden).is_(False), col(Balance.granted) > 0]
    if pool is not None:
        counted.append(col(Allocation.pool_id) == pools.named(session, pool).id)
    balances = (
        select(Project.id, Project.title)
        .join(Allocation, col(Allocation.project_id) == Project.id)
        .join(Balance, col(Balance.allocation_id) == Allocation.id)
        .where(*counted)
    )
    largest = session.execute(
        balances.group_by(col(Project.id), col(Project.title))
        .order_by(func.sum(col(Balance.spent)).desc(), col(Project.id))
        .limit(limit)
    ).all()
    granted, spent = defaultdict[int, Amounts](dict), defaultdict[int, Amounts](dict)
    ids = [project_id for project_id, _ in largest]
    of_each = balances.join(Pool, col(Pool.id) == Allocation.pool_id).where(col(Project.id).in_(ids))
    columns = (col(Project.id), col(Pool.gpu_type), col(Balance.granted), col(Balance.spent))
    for project_id, gpu_type, given, used in session.execute(of_each.with_only_columns(*columns)):
        granted[project_id] = units.plus(granted[project_id], Unit.of(gpu_type), given)
        spent[project_id] = units.plus(spent[project_id], Unit.of(gpu_type), used)
    return [
        ProjectUse(project_id, title, granted[project_id], spent[project_id], lately.used if lately else 0.0, share)
        for project_id, title in largest
        for lately, share in [(standings.get(project_id), state.shares.get(project_id, shares.USUAL))]
    ]
