"""Hosts that run workers: which pools each serves, what it has, and when it was last heard from.

A host may serve named pools, whose runs then start there alone. All other pools are served by the hosts that name none.
A drained host starts no run until it is undrained. People know a host by its name; its id, which its home keeps, tells
whether it is the same one under another name, or another one under the same name.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import Executable, and_, delete, or_, update
from sqlalchemy.orm import Session
from sqlmodel import Field, col, select

from broker.allocations import pools
from broker.allocations.pools import Pool
from projects import text
from projects.db import rows
from projects.db.columns import Base, foreign_key, json_object, timestamp, utcnow
from projects.errors import ConflictError, NotFoundError
from projects.record import record

AWAY_AFTER_SECONDS = 60.0
COMPARED = ("stoa", "torch")
"""The packages whose versions are to be the same on all hosts of a pool."""
BOOT, HOME = "boot", "home"
"""The facts of a host by which its worker tells it from another machine or container, and from a copy of its home."""


class Host(Base, table=True):
    """A host by its name. `facts` are what its worker says of it, such as its GPUs, free disk and versions.

    `id` is what its home keeps (`broker/runners/host_home.py`); None where an earlier version announced it.
    `drained_at` is since when it starts no run, and `pauses` whether its runs are asked to stop, too.
    """

    __tablename__ = "hosts"

    name: str = Field(primary_key=True)
    id: str | None = Field(default=None, unique=True, index=True)
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

    `is_away` is whether its worker has not been heard from for a minute.
    """

    name: str
    pools: Sequence[str]
    facts: Mapping[str, Any]
    seen_at: datetime
    is_away: bool
    is_drained: bool = False
    id: str | None = None

    @property
    def boot(self) -> str | None:
        """The boot and PID namespace of its worker; None where its worker has left."""
        return self.facts.get(BOOT)


def announce(
    session: Session,
    name: str,
    serves: Collection[str],
    facts: Mapping[str, Any],
    host_id: str | None = None,
    *,
    silent_seconds: float = AWAY_AFTER_SECONDS,
) -> Mapping[str, str]:
    """A worker starts on a host and serves these pools, or all that no host names.

    Returns the names by which the attempts of hosts are known from now on, by their former names: those of this host
    where it was renamed, and those of another host that had this name and has been silent for `silent_seconds`.

    Raises NotFoundError, and ConflictError for the name of a host that is there, or for GPUs of another host, whose
    numbers two hosts would both give out.
    """
    served = [pools.named(session, pool) for pool in sorted(set(serves))]
    either = or_(col(Host.name) == name, and_(col(Host.id) == host_id, col(Host.id).is_not(None)))
    known = session.scalars(select(Host).where(either).order_by(col(Host.name)).with_for_update()).all()
    host = next((one for one in known if host_id is not None and one.id == host_id), None)
    namesake = next((one for one in known if one.name == name), None)
    renamed: dict[str, str] = {}
    if namesake is not None and namesake is not host and (host is not None or namesake.id not in (None, host_id)):
        if BOOT in namesake.facts and namesake.seen_at > utcnow() - timedelta(seconds=silent_seconds):
            raise taken(name, namesake.seen_at)
        renamed[name] = f"{name}.{(namesake.id or 'former')[:8]}"
        _forget(session, namesake)
        namesake = None
    if host is not None and host.name != name:
        renamed[host.name] = name
        host = _rename(session, host, name)
    host = host or namesake
    if host is None:
        host = Host(name=name)
        session.add(host)
    host.id = host_id or host.id
    host.facts, host.seen_at = dict(facts), utcnow()
    session.flush()
    for pool in served:
        others = (HostPool.pool_id == pool.id, HostPool.host != name)
        other = session.scalars(select(HostPool.host).where(*others).limit(1)).first() if pool.shares_gpus else None
        if other is not None:
            raise ConflictError(
                f"“{pool.name}” is a pool of the GPUs of “{other}”; where that host does not come back, "
                f"`stoa host remove {other}` frees the pool."
            )
    session.execute(delete(HostPool).where(col(HostPool.host) == name))
    session.add_all(HostPool(host=name, pool_id=pool.id) for pool in served)
    return renamed


def taken(name: str, seen_at: datetime) -> ConflictError:
    """What is said to a host whose name another one has, which is there."""
    return ConflictError(
        f"Another machine or container is there as “{name}”, heard from at {seen_at:%F %T} UTC; give this one a name "
        "of its own (STOA_HOST_NAME), or stop the worker there."
    )


def _rename(session: Session, host: Host, name: str) -> Host:
    """Give a host another name, which no host has."""
    values = host.model_dump() | {"name": name}
    host.id = None
    session.flush()
    renamed = Host(**values)
    session.add(renamed)
    session.flush()
    session.execute(update(HostPool).where(col(HostPool.host) == host.name).values(host=name))
    session.delete(host)
    session.flush()
    return renamed


def _forget(session: Session, host: Host) -> None:
    session.execute(delete(HostPool).where(col(HostPool.host) == host.name))
    session.delete(host)
    session.flush()


def beat(session: Session, name: str, facts: Mapping[str, Any], host_id: str | None = None) -> bool:
    """The host's worker is still there; False where the host was removed meanwhile, or another one goes by its name or
    its id."""
    host = session.get(Host, name, with_for_update=True)
    if host is None or not _is_its(host, host_id, facts):
        return False
    host.facts, host.seen_at = dict(facts), utcnow()
    return True


def _is_its(host: Host, host_id: str | None, facts: Mapping[str, Any]) -> bool:
    """Whether a host is the one of this id, and was announced from this boot and home, as far as these are known."""
    if host_id is None:
        return True
    return host.id in (None, host_id) and all(host.facts.get(one) in (None, facts.get(one)) for one in (BOOT, HOME))


def leave(session: Session, name: str, host_id: str | None = None) -> None:
    """The host's worker has ended, so that another machine may go by the host's name at once."""
    host = session.get(Host, name, with_for_update=True)
    if host is not None and host.id in (None, host_id):
        host.facts = {fact: value for fact, value in host.facts.items() if fact != BOOT}


def remove(session: Session, name: str, reason: str) -> None:
    """Forget a host that does not come back, so that other hosts serve its pools. Raises NotFoundError."""
    because = text.prose("The reason", reason, most=text.USUAL)
    _forget(session, _locked(session, name))
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


def why_not_start(session: Session, name: str, host_id: str | None, facts: Mapping[str, Any]) -> str:
    """Why a host may start no run now; empty where it may, and it is not drained before the transaction's end."""
    host = session.scalars(select(Host).where(Host.name == name).with_for_update(read=True)).one_or_none()
    if host is not None and host.drained_at is not None:
        return "this host is drained"
    if host is not None and not _is_its(host, host_id, facts):
        return "another host goes by the name or the id of this one"
    return ""


def is_drained(session: Session, name: str) -> bool:
    """Whether a host is drained now."""
    return session.scalar(select(Host.drained_at).where(Host.name == name)) is not None


def any_drained(session: Session) -> bool:
    """Whether some host is drained now."""
    return bool(rows.plain(session, _drained()))


@cache
def _drained() -> Executable:
    """Made once, since each round of the scheduler asks."""
    return select(Host.name).where(col(Host.drained_at).is_not(None)).limit(1)


def known_as(session: Session, host_id: str) -> str | None:
    """The name of the host of this id; None where it was never announced."""
    return session.scalars(select(Host.name).where(Host.id == host_id)).one_or_none()


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
            id=host.id,
        )
        for host in session.scalars(select(Host).order_by(col(Host.name)))
    ]


def gpu_kinds(host: HostView) -> Sequence[str]:
    """The GPUs of a host by their kind, with the measured speed of a large matrix product, where it is known, such as
    “2 × H200 (650 TFLOP/s in bf16)”."""
    gpus = host.facts.get("gpus", ())
    kinds = {str(gpu["name"]): gpu for gpu in reversed(gpus)}
    number = Counter(str(gpu["name"]) for gpu in gpus)
    return [
        f"{count} × {name}"
        + (f" ({kinds[name]['tflops']:,.0f} TFLOP/s in {kinds[name]['precision']})" if "tflops" in kinds[name] else "")
        for name, count in number.items()
    ]


def versions(host: HostView) -> Mapping[str, str]:
    """The versions that a host runs, by name: its packages, and the driver of its GPUs, where it has any."""
    driver = {"driver": str(host.facts["driver"])} if host.facts.get("driver") else {}
    return {name: str(version) for name, version in host.facts.get("versions", {}).items()} | driver


def differing(serving: Sequence[HostView]) -> Sequence[str]:
    """What differs between the hosts that are there: their versions of Stoa and torch, and the drivers of those that
    have GPUs of one kind, such as “torch differs: 2.12.0, 2.13.0”."""
    found: dict[str, set[str]] = {}
    for host in serving:
        if not host.is_away:
            has, kinds = versions(host), sorted({str(gpu["name"]) for gpu in host.facts.get("gpus", ())})
            pairs = [(name, name) for name in COMPARED] + [(f"the driver of {kind}", "driver") for kind in kinds]
            for what, name in pairs:
                found.setdefault(what, set()).add(has.get(name, "unknown"))
    return [f"{what} differs: {', '.join(sorted(has))}" for what, has in found.items() if len(has) > 1]


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
    heard from."""
    known = every(session)
    if said := drained(known, pool.name):
        return said
    serving = of_pool(known, pool)
    if not serving or not all(host.is_away for host in serving):
        return ""
    last = max(host.seen_at for host in serving)
    names = ", ".join(host.name for host in serving[:3])
    return f"No worker of the pool “{pool.name}” has been heard from since {last:%F %T} UTC ({names})."


def gpu_pools(session: Session, name: str) -> Sequence[Pool]:
    """The pools that count on the GPUs of a host: those that it names, or else those that no host names."""
    return _served(session, name, _local(session))


def core_pools(session: Session, name: str) -> Sequence[Pool]:
    """The pools that count on the cores of a host: those that it names, or else those that no host names."""
    counting = [pool for pool in pools.every(session) if pool.is_cpu and pool.is_local]
    return _served(session, name, counting)


def _served(session: Session, name: str, among: Sequence[Pool]) -> Sequence[Pool]:
    named = set(session.scalars(select(HostPool.pool_id).where(HostPool.host == name)))
    others = named_pools(session)
    return [pool for pool in among if (pool.id in named if named else pool.id not in others)]


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
