"""The memory of hosts, which all runs on a host share: what a pool's runs may take, and which pools have one host.

Stoa shares out no memory of pools whose runner has a queue of its own: that queue decides.
"""

from collections import defaultdict
from collections.abc import Mapping
from functools import cache

from sqlalchemy import Executable, func
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker.allocations import pools
from broker.allocations.hosts import HostPool
from broker.allocations.pools import Pool
from broker.runners import registry
from broker.runs import attempts
from broker.runs.attempts import Attempt
from broker.runs.runs import Run
from projects.db import rows
from projects.errors import ConflictError
from trainer.check import readable


def most(pool: Pool) -> int | None:
    """Bytes that all runs on the pool's host may take; None where nobody has said, or Stoa does not share them out."""
    return None if registry.named(pool.runner).queue else pools.most_on_host(pool)


def together(session: Session, known: Mapping[int, bool]) -> Mapping[int, tuple[int, ...]]:
    """For each pool, the pools that a host serves by name together with it, itself first; itself where none does.

    `known` says of each pool whether Stoa shares out its memory.
    """
    by_host: defaultdict[str, list[int]] = defaultdict(list)
    for host, pool_id in rows.plain(session, _served()):
        if known.get(pool_id):
            by_host[host].append(pool_id)
    found: dict[int, tuple[int, ...]] = {pool_id: (pool_id,) for pool_id in known}
    for pool_ids in by_host.values():
        for pool_id in pool_ids if len(pool_ids) > 1 else ():
            found[pool_id] = tuple(dict.fromkeys((*found[pool_id], *pool_ids)))
    return found


@cache
def _served() -> Executable:
    """Made once, since each round of the scheduler asks."""
    return select(HostPool.host, HostPool.pool_id).order_by(col(HostPool.pool_id))


def check(session: Session, run: Run, pool: Pool) -> None:
    """Raise ConflictError unless the run fits the pool's host beside the runs that are there."""
    limit = most(pool)
    if limit is None or not run.host_memory:
        return
    named = {other.id: other.runner for other in pools.every(session)}
    known = {
        pool_id: runner in registry.RUNNERS and not registry.named(runner).queue for pool_id, runner in named.items()
    }
    on_host = together(session, known)[pool.id]
    holding = col(Attempt.pool_id).in_(on_host) & attempts.holding()
    taken = session.scalar(select(func.sum(Run.host_memory)).join_from(Run, Attempt).where(holding)) or 0
    if taken + run.host_memory > limit:
        raise ConflictError(
            f"It needs about {readable(run.host_memory)} of its host's memory, and the runs there leave "
            f"{readable(max(0, limit - int(taken)))}."
        )
