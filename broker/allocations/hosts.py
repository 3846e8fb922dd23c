"""Hosts that run workers: which pools each serves, what it has, and when it was last heard of.

A host may serve named pools, whose runs then start there alone. All other pools are served by the hosts that name none.
A drained host starts no run until it is undrained.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete
from sqlalchemy.orm import Session
from sqlmodel import Field, col, select

from broker.allocations import pools
from broker.allocations.pools import Pool
from projects import text
from projects.db.columns import Base, foreign_key, json_object, timestamp, utcnow
from projects.errors import ConflictError, NotFoundError
from projects.record import record

AWAY_AFTER_SECONDS = 60.0
BOOT = "boot"
"""The fact of a host by which its worker tells it from another machine or container of its name."""


class Host(Base, table=True):
    """A host by its name. `facts` are what its worker says of it, such as its GPUs, free disk and versions.

    `drained_at` is since when it starts no run, and `pauses` whether its runs are asked to stop, too.
    """

    __tablename__ = "hosts"

    name: str = Field(primary_key=True)
    facts: dict[str, Any] = json_object(default=dict)
    seen_at: datetime = timestamp(default=utcnow)
    drained_at: datetime | None = timestamp(default=None)
    pauses: bool = False


class HostPool(Base, table=True):
    """A pool that a host serves by name."""

    __tablename__ = "host_pools"

    host: str = Field(primary_key=True, foreign_key="hosts.name")
    pool_id: int = foreign_key("pools.id", primary_key=True)


@dataclass(frozen=True)
class HostView:
    """A host as lists show it; without `pools` it serves all that no host names.

    `is_away` is whether its worker has not been heard of for a minute.
    """

    name: str
    pools: Sequence[str]
    facts: Mapping[str, Any]
    seen_at: datetime
    is_away: bool
    is_drained: bool = False


def announce(session: Session, name: str, serves: Collection[str], facts: Mapping[str, Any]) -> None:
    """A worker starts on a host and serves these pools, or all that no host names.

    Raises NotFoundError, and ConflictError for GPUs of another host, whose numbers two hosts would both give out.
    """
    served = [pools.named(session, pool) for pool in sorted(set(serves))]
    for pool in served:
        others = (HostPool.pool_id == pool.id, HostPool.host != name)
        other = session.scalars(select(HostPool.host).where(*others).limit(1)).first() if pool.shares_gpus else None
        if other is not None:
            raise ConflictError(
                f"“{pool.name}” is a pool of the GPUs of “{other}”; where that host does not come back, "
                f"`stoa host remove {other}` frees the pool."
            )
    host = session.get(Host, name, with_for_update=True)
    if host is None:
        host = Host(name=name)
        session.add(host)
    host.facts, host.seen_at = dict(facts), utcnow()
    session.flush()
    session.execute(delete(HostPool).where(col(HostPool.host) == name))
    session.add_all(HostPool(host=name, pool_id=pool.id) for pool in served)


def beat(session: Session, name: str, facts: Mapping[str, Any]) -> bool:
    """The host's worker is still there; False where the host was removed meanwhile."""
    host = session.get(Host, name, with_for_update=True)
    if host is None:
        return False
    host.facts, host.seen_at = dict(facts), utcnow()
    return True


def leave(session: Session, name: str) -> None:
    """The host's worker has ended, so that another machine may go by the host's name at once."""
    host = session.get(Host, name, with_for_update=True)
    if host is not None:
        host.facts = {fact: value for fact, value in host.facts.items() if fact != BOOT}


def remove(session: Session, name: str, reason: str) -> None:
    """Forget a host that does not come back, so that other hosts serve its pools. Raises NotFoundError."""
    because = text.prose("The reason", reason, most=text.USUAL)
    host = _locked(session, name)
    session.execute(delete(HostPool).where(col(HostPool.host) == name))
    session.delete(host)
    record.append(session, record.LAB, "host.removed", by=None, why=because, host=name)


def named(session: Session, name: str) -> HostView:
    """A host by its name; raises NotFoundError."""
    for host in every(session):
        if host.name == name:
            return host
    raise _unknown(session, name)


def drain(session: Session, name: str, reason: str, *, pause: bool = False) -> bool:
    """Let a host start no run; False where it is drained already. Raises NotFoundError.

    Its runs go on to their end, or with `pause` are asked for a checkpoint and go back to the queue.
    """
    because = text.prose("The reason", reason, most=text.USUAL)
    host = _locked(session, name)
    if host.drained_at is not None and (host.pauses or not pause):
        return False
    host.drained_at, host.pauses = host.drained_at or utcnow(), pause
    record.append(session, record.LAB, "host.drained", by=None, why=because, host=name, pauses=pause)
    return True


def undrain(session: Session, name: str, reason: str) -> bool:
    """Let a host start runs again; False where it is not drained. Raises NotFoundError."""
    because = text.prose("The reason", reason, most=text.USUAL)
    host = _locked(session, name)
    if host.drained_at is None:
        return False
    host.drained_at, host.pauses = None, False
    record.append(session, record.LAB, "host.undrained", by=None, why=because, host=name)
    return True


def may_start(session: Session, name: str) -> bool:
    """Whether a host may start a run now; it is not drained before the transaction's end."""
    return session.scalar(select(Host.drained_at).where(Host.name == name).with_for_update(read=True)) is None


def pauses(session: Session, name: str) -> bool:
    """Whether the runs of a host are asked to stop, since it is drained."""
    return bool(session.scalar(select(Host.pauses).where(Host.name == name)))


def _locked(session: Session, name: str) -> Host:
    host = session.get(Host, name, with_for_update=True)
    if host is None:
        raise _unknown(session, name)
    return host


def _unknown(session: Session, name: str) -> NotFoundError:
    listed = ", ".join(session.scalars(select(Host.name).order_by(Host.name))) or "none yet"
    return NotFoundError(f"There is no host “{name[:60]}”; the hosts are: {listed}.")


def every(session: Session) -> Sequence[HostView]:
    """All hosts, by name."""
    served: dict[str, list[str]] = {}
    pairs = select(HostPool.host, Pool.name).join(Pool, col(Pool.id) == HostPool.pool_id).order_by(col(Pool.name))
    for host, pool in session.execute(pairs):
        served.setdefault(host, []).append(pool)
    oldest = utcnow() - timedelta(seconds=AWAY_AFTER_SECONDS)
    return [
        HostView(
            host.name,
            served.get(host.name, []),
            host.facts,
            host.seen_at,
            is_away=host.seen_at < oldest,
            is_drained=host.drained_at is not None,
        )
        for host in session.scalars(select(Host).order_by(col(Host.name)))
    ]


def of_pool(known: Sequence[HostView], pool: Pool) -> Sequence[HostView]:
    """Of the hosts that there are, those that serve a pool: those that name it, or else those that name none."""
    return _serving(known, pool.name)


def _serving(known: Sequence[HostView], pool: str) -> Sequence[HostView]:
    return [host for host in known if pool in host.pools] or [host for host in known if not host.pools]


def drained(known: Sequence[HostView], pool: str) -> str:
    """A sentence where every host that serves a pool is drained; empty where one may start its runs."""
    serving = _serving(known, pool)
    if not serving or not all(host.is_drained for host in serving):
        return ""
    names = ", ".join(host.name for host in serving[:3])
    return f"Nothing starts on “{pool}”: its hosts are drained ({names}), until an operator undrains one."


def named_pools(session: Session) -> set[int]:
    """The pools that some host names."""
    return set(session.scalars(select(HostPool.pool_id)))


def absence(session: Session, pool: Pool) -> str:
    """A sentence where every host that serves the pool is away or drained; empty where one is there or none was ever
    heard of."""
    known = every(session)
    if said := drained(known, pool.name):
        return said
    serving = of_pool(known, pool)
    if not serving or not all(host.is_away for host in serving):
        return ""
    last = max(host.seen_at for host in serving)
    names = ", ".join(host.name for host in serving[:3])
    return f"No worker of the pool “{pool.name}” has been heard of since {last:%F %T} UTC ({names})."


def gpu_pools(session: Session, name: str) -> Sequence[Pool]:
    """The pools that count on the GPUs of a host: those that it names, or else those that no host names."""
    named = set(session.scalars(select(HostPool.pool_id).where(HostPool.host == name)))
    others = named_pools(session)
    return [pool for pool in _local(session) if (pool.id in named if named else pool.id not in others)]


def sharing(session: Session, pool: Pool) -> Sequence[Pool]:
    """The pools of GPUs on the same host as `pool`, itself among them, in the order in which they get its GPUs."""
    by_pool: dict[int, set[str]] = {}
    for row in session.scalars(select(HostPool)):
        by_pool.setdefault(row.pool_id, set()).add(row.host)
    return [other for other in _local(session) if by_pool.get(other.id) == by_pool.get(pool.id)]


def _local(session: Session) -> Sequence[Pool]:
    """The pools of the GPUs of some host, in the order in which they were added."""
    return [pool for pool in session.scalars(select(Pool).order_by(col(Pool.id))) if pool.shares_gpus]


def gpu_numbers(session: Session, pool: Pool, devices: str) -> str:
    """The host's numbers of a local pool's `devices`, such as “2,3”; empty for a pool of CPUs."""
    if not pool.shares_gpus:
        return ""
    first = sum(other.gpus for other in sharing(session, pool) if other.id < pool.id)
    return ",".join(str(first + int(device)) for device in devices.split(",") if device)
