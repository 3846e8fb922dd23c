"""The memory of hosts, which all runs on a host share: what a pool's runs may take, and which pools have one host.

Stoa shares out no memory of pools whose runner has a queue of its own: that queue decides.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from sqlalchemy import func
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker.allocations import pools
from broker.allocations.hosts import HostPool
from broker.allocations.pools import Pool
from broker.runners import registry
from broker.runs import attempts
from broker.runs.attempts import Attempt
from broker.runs.runs import Run
from projects.errors import ConflictError
from trainer.check import readable


def most(pool: Pool) -> int | None:
    """Bytes that all runs on the pool's host may take; None where nobody has said, or Stoa does not share them out."""
    return None if registry.named(pool.runner).queue else pools.most_on_host(pool)


def together(session: Session, known: Sequence[Pool]) -> Mapping[int, tuple[int, ...]]:
    """For each pool, the pools that a host serves by name together with it, itself first; itself where none does."""
    shared = {pool.id for pool in known if pool.runner in registry.RUNNERS and not registry.named(pool.runner).queue}
    by_host: defaultdict[str, list[int]] = defaultdict(list)
    for row in session.scalars(select(HostPool).order_by(col(HostPool.pool_id))):
        if row.pool_id in shared:
            by_host[row.host].append(row.pool_id)
    found = {pool.id: {pool.id: None} for pool in known}
    for pool_ids in by_host.values():
        for pool_id in pool_ids:
            found[pool_id] |= dict.fromkeys(pool_ids)
    return {pool_id: tuple(others) for pool_id, others in found.items()}


def check(session: Session, run: Run, pool: Pool) -> None:
    """Raise ConflictError unless the run fits the pool's host beside the runs that are there."""
    limit = most(pool)
    if limit is None or not run.host_memory:
        return
    on_host = together(session, pools.every(session))[pool.id]
    holding = col(Attempt.pool_id).in_(on_host) & attempts.holding()
    taken = session.scalar(select(func.sum(Run.host_memory)).join_from(Run, Attempt).where(holding)) or 0
    if taken + run.host_memory > limit:
        raise ConflictError(
            f"It needs about {readable(run.host_memory)} of its host's memory, and the runs there leave "
            f"{readable(max(0, limit - int(taken)))}."
        )
