"""Pools of GPUs, and the grants by which sponsors give GPU time to the community."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import psutil
from sqlalchemy import CheckConstraint, ColumnElement, func
from sqlalchemy.orm import Session
from sqlmodel import Field, col, select

from broker.allocations.units import Amount, Unit
from broker.runners import registry
from projects import people, quotas, rights, text
from projects.db.columns import Base, foreign_key, integer, json_object, number, row_id, timestamp, utcnow, words
from projects.errors import ConflictError, InvalidError, NotFoundError
from projects.people import Actor
from projects.record import record
from projects.rights import Act
from trainer import gpus as gpus_by_name

LIGHTEST, HEAVIEST = 0.0001, 1000
MOST_GPUS = 1_000_000
MOST_SUBMITTED = 10_000
LARGEST_GRANT = 1_000_000_000
"""The most GPU-hours of a grant in all, which may have been added little by little."""
LONGEST_UNTIL_PREEMPTION = 30 * 86_400
LEAST_MEMORY, MOST_MEMORY = 0.25, 100_000


class Pool(Base, table=True):
    """GPUs of one kind in one place; or cores of CPUs, each for one process, which its fields call GPUs all the same.

    `gpus_a_node` divides `gpus`; None where all are on one node. `memory_gib` is the memory of a GPU, or the most for a
    process, `host_memory_gib` that of a host, both in GiB; None where nobody has said. A run that has had its
    GPUs for `preempt_after` seconds can be preempted; 0 for never.
    """

    __tablename__ = "pools"

    id: int = row_id()
    name: str = Field(unique=True)
    gpu_type: str
    gpus: int = integer()
    runner: str = registry.DEFAULT
    runner_options: dict[str, str] = json_object(default=dict)
    price_weight: float = number(default=1.0)
    most_submitted: int = integer(default=4)
    memory_gib: float | None = number(default=None)
    host_memory_gib: float | None = number(default=None)
    preempt_after: int = integer(default=0)
    gpus_a_node: int | None = integer(default=None)

    @property
    def node_gpus(self) -> int:
        """How many GPUs a node has."""
        return self.gpus_a_node or self.gpus

    @property
    def nodes(self) -> int:
        """How many nodes the pool has."""
        return self.gpus // self.node_gpus

    @property
    def unit(self) -> Unit:
        """What it counts: cores where its type says that it is of CPUs."""
        return Unit.of(self.gpu_type)

    @property
    def is_cpu(self) -> bool:
        """Whether it is a pool of CPUs."""
        return self.unit is Unit.CORE

    @property
    def has(self) -> str:
        """Its GPUs or cores: “16 × H200”, “2 cores”."""
        return Unit.of_type(self.gpu_type, self.gpus)

    @property
    def is_local(self) -> bool:
        """Whether its GPUs or cores are those of the worker's host."""
        return registry.named(self.runner).uses_host_gpus

    @property
    def shares_gpus(self) -> bool:
        """Whether the pool hands out GPUs of the worker's host, which all such pools share."""
        return self.is_local and not self.is_cpu


class Grant(Base, table=True):
    """GPU-seconds of a pool that a sponsor gives until a day; every allocation draws on one grant.

    `drawn` is granted to allocations and `committed` is kept for their second halves; only the ledger changes the two.
    """

    __tablename__ = "grants"
    __table_args__ = (
        CheckConstraint("committed >= 0 AND drawn >= 0 AND seconds - drawn - committed >= 0", name="left"),
    )

    id: int = row_id()
    pool_id: int = foreign_key("pools.id")
    sponsor: str = words()
    seconds: int = integer()
    drawn: int = integer(default=0)
    committed: int = integer(default=0)
    until: datetime = timestamp()


GRANT_LEFT = col(Grant.seconds) - Grant.drawn - Grant.committed
"""The GPU-seconds of a grant that are neither drawn nor committed, as a column of a query."""


class GrantMovement(StrEnum):
    """The kinds of movement on a grant, between what is left, committed and drawn."""

    GIVE = "give"
    DRAW = "draw"
    COMMIT = "commit"
    FULFIL = "fulfil"
    RETURN = "return"
    LAPSE = "lapse"


class GrantRow(Base, table=True):
    """One movement on a grant for an allocation; append-only, as is the ledger of allocations."""

    __tablename__ = "grant_ledger"
    __table_args__ = (CheckConstraint("seconds > 0", name="positive"),)

    id: int = row_id()
    grant_id: int = foreign_key("grants.id", index=True)
    allocation_id: int | None = foreign_key("allocations.id", default=None)
    movement: str
    seconds: int = integer()
    at: datetime = timestamp(default=utcnow)


@dataclass(frozen=True)
class GrantView:
    """A grant as people read it, in GPU-seconds: `seconds = granted + committed + left` at every moment."""

    id: int
    pool: str
    unit: Unit
    sponsor: str
    seconds: int
    granted: int
    committed: int
    left: int
    until: datetime


def add_pool(
    session: Session,
    *,
    name: str,
    gpu_type: str,
    gpus: int,
    gpus_a_node: int | None = None,
    runner: str = registry.DEFAULT,
    price_weight: float = 1.0,
    runner_options: Mapping[str, str] | None = None,
    most_submitted: int = 4,
    memory_gib: float | None = None,
    host_memory_gib: float | None = None,
    preempt_after: int = 0,
    actor: Actor | None = None,
) -> int:
    """Add a pool and return its id; a repeat changes nothing. `actor` None is the operator.

    `gpus_a_node` is how many GPUs a node has, None where all are on one. `price_weight` is what a GPU-second of the
    pool weighs in fair-share; balances are raw GPU-seconds. `runner_options` are those that the runner declares. Where
    the runner has a queue of its own, at most `most_submitted` of the pool's jobs wait or run there at once.
    `memory_gib` is the memory of a GPU, or the most for a process of a pool of CPUs, `host_memory_gib` that of a host.
    `preempt_after` is how many seconds a run keeps its GPUs before it can be preempted, 0 for never. Raises
    InvalidError, and ConflictError where another pool has the name.
    """
    rights.require_admin(actor, Act.MANAGE_COMPUTE)
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,39}", name):
        raise InvalidError("A pool's name has up to 40 lower-case letters, digits, dots, dashes and underscores.")
    if not 1 <= gpus <= MOST_GPUS:
        raise InvalidError(
            f"A pool has at least one GPU or core, and at most {MOST_GPUS:,}; {shown(gpus)} is not such a count."
        )
    options = registry.named(runner).checked_options(runner_options or {})
    check_nodes(runner, gpus, gpus_a_node, Unit.of(gpu_type))
    if not LIGHTEST <= price_weight <= HEAVIEST:
        raise InvalidError(f"A price weight is from {LIGHTEST} to {HEAVIEST}; {price_weight:g} is not.")
    if not 1 <= most_submitted <= MOST_SUBMITTED:
        raise InvalidError(
            f"At least one job is submitted at a time, and at most {MOST_SUBMITTED:,}; {shown(most_submitted)} is not "
            "such a count."
        )
    for size in (memory_gib, host_memory_gib):
        check_memory(size)
    check_preempt_after(preempt_after)
    gpu_type = text.prose("The type of GPU or CPU", gpu_type, most=60)
    shared: dict[str, Any] = {"gpu_type": gpu_type, "gpus": gpus, "price_weight": price_weight}
    sizes: dict[str, Any] = {
        "gpus_a_node": gpus_a_node,
        "memory_gib": memory_gib,
        "host_memory_gib": host_memory_gib,
    }
    preemption: dict[str, Any] = {"preempt_after": preempt_after}
    asked = shared | sizes | {"runner": runner, "runner_options": options, "most_submitted": most_submitted}
    asked |= preemption
    earlier = session.scalars(select(Pool).where(Pool.name == name)).one_or_none()
    if earlier is not None:
        if any(getattr(earlier, field) != value for field, value in asked.items()):
            is_now = f"{earlier.has}, {earlier.runner}, weight {earlier.price_weight:g}"
            raise ConflictError(f"There is already a pool “{name}” ({is_now}); change it, or choose another name.")
        return earlier.id
    quotas.check_admin(session, actor)
    pool = Pool(name=name, **asked)
    session.add(pool)
    session.flush()
    record.append(
        session,
        record.LAB,
        "pool.added",
        by=people.author(session, actor),
        pool=name,
        launcher=runner,  # the record's word for it since its first entry
        **shared,
        **{size: value for size, value in sizes.items() if value is not None},
        **(preemption if preempt_after else {}),
    )
    return pool.id


def check_nodes(runner: str, gpus: int, gpus_a_node: int | None, unit: Unit) -> None:
    """Raise InvalidError unless a pool of the runner may have so many GPUs a node."""
    if gpus_a_node is None:
        return
    if not registry.named(runner).several_nodes:
        several = ", ".join(name for name, known in registry.RUNNERS.items() if known.several_nodes)
        raise InvalidError(
            f"A pool of the runner {runner} is one host, which has all its {unit.plural}: add a pool for each host, or "
            f"choose a runner of several nodes ({several})."
        )
    if not 1 <= gpus_a_node <= gpus or gpus % gpus_a_node:
        raise InvalidError(
            f"A pool has whole nodes: its {unit.plural} ({gpus}) are a multiple of the {unit.plural} a node, and "
            f"{shown(gpus_a_node)} does not divide them."
        )


def check_memory(gib: float | None) -> None:
    """Raise InvalidError unless a size in GiB, if it is given, is one that a machine can have."""
    if gib is not None and not LEAST_MEMORY <= gib <= MOST_MEMORY:
        raise InvalidError(f"Memory is from {LEAST_MEMORY:g} to {MOST_MEMORY:,} GiB; {gib:g} is not.")


def check_preempt_after(seconds: int) -> None:
    """Raise InvalidError unless it is 0 or a time that a run can keep its GPUs before it can be preempted."""
    if seconds and not 60 <= seconds <= LONGEST_UNTIL_PREEMPTION:
        raise InvalidError(
            f"Runs can be preempted after 1 to {LONGEST_UNTIL_PREEMPTION // 60:,} minutes, or never with 0; "
            f"{shown(seconds // 60)} is not such a count."
        )


def memory_each(pool: Pool, gpus: int) -> int:
    """Bytes that each of the `gpus` GPUs or processes of one run on a node may take.

    Where nobody has said, it is what GPUs of the type have, or the most of any where the type is not known; for
    processes it is an equal share of the host's memory, by default of this host.
    """
    if not pool.is_cpu:
        known = gpus_by_name.named(pool.gpu_type)
        return int((pool.memory_gib or (known.memory if known else gpus_by_name.MOST_MEMORY)) * 2**30)
    each = (most_on_host(pool) or 0) // gpus
    return min(each, int(pool.memory_gib * 2**30)) if pool.memory_gib else each


def host_bytes(pool: Pool) -> int | None:
    """Bytes of the memory of a host with GPUs, which a run's processes share; None where nobody has said.

    A pool of CPUs is None too: `memory_each` has shared out its host's memory.
    """
    return None if pool.is_cpu else most_on_host(pool)


def most_on_host(pool: Pool) -> int | None:
    """Bytes that all runs on one of the pool's hosts may take; for a pool of CPUs by default the memory of this host,
    for others None where nobody has said."""
    return memory_of_host(pool.gpu_type, pool.host_memory_gib)


def memory_of_host(gpu_type: str, gib: float | None) -> int | None:
    """What `most_on_host` returns, by the type of a pool's GPUs and what somebody has said of a host's memory."""
    if gib is None:
        return psutil.virtual_memory().total if Unit.of(gpu_type) is Unit.CORE else None
    return int(gib * 2**30)


def add_grant(
    session: Session,
    *,
    pool: str,
    sponsor: str,
    seconds: int,
    until: datetime,
    actor: Actor | None = None,
) -> int:
    """Add a sponsor's grant of GPU-seconds and return its id; `actor` None is the operator."""
    rights.require_admin(actor, Act.MANAGE_COMPUTE)
    check_size(seconds)
    sponsor = text.prose("The sponsor", sponsor, most=80)
    if until <= utcnow():
        raise InvalidError(f"A grant ends in the future; {until:%Y-%m-%d} has passed.")
    quotas.check_admin(session, actor)
    grant = Grant(pool_id=named(session, pool).id, sponsor=sponsor, seconds=seconds, until=until)
    session.add(grant)
    session.flush()
    session.add(GrantRow(grant_id=grant.id, movement=GrantMovement.GIVE, seconds=seconds))
    record.append(
        session,
        record.LAB,
        "grant.added",
        by=people.author(session, actor),
        pool=pool,
        sponsor=sponsor,
        seconds=seconds,
        until=until.isoformat(),
    )
    return grant.id


def check_size(seconds: int) -> None:
    """Raise InvalidError unless a grant may give so many GPU-seconds in all."""
    if seconds < 1:
        raise InvalidError("A grant gives at least one second.")
    if seconds > LARGEST_GRANT * 3600:
        raise InvalidError(f"A grant gives at most {LARGEST_GRANT:,} hours in all; another grant can give more.")


def shown(number: int) -> str:
    """A number that somebody typed, however long, for a sentence."""
    return str(number) if abs(number) < 10**12 else "such a number"


def named(session: Session, name: str) -> Pool:
    """The pool of that name; raises NotFoundError, whose sentence lists the names of all pools."""
    pool = session.scalars(select(Pool).where(Pool.name == name)).one_or_none()
    if pool is None:
        raise NotFoundError(f"There is no pool “{name}”; the pools are: {', '.join(names(session)) or 'none yet'}.")
    return pool


def largest_in(session: Session, name: str) -> Amount:
    """What `largest` returns for the pool of that name; raises NotFoundError."""
    pool = named(session, name)
    return Amount(pool.unit, largest(session, pool.id))


def most_by_name(session: Session) -> dict[str, Amount]:
    """What `largest` returns for each pool, by the pools' names."""
    return {pool.name: Amount(pool.unit, largest(session, pool.id)) for pool in every(session)}


def names(session: Session) -> list[str]:
    """The names of all pools."""
    return list(session.scalars(select(Pool.name).order_by(col(Pool.name))))


def every(session: Session) -> Sequence[Pool]:
    """All pools, by name."""
    return session.scalars(select(Pool).order_by(col(Pool.name))).all()


def grants(session: Session) -> Sequence[GrantView]:
    """All grants, in the order of their ends."""
    rows = session.execute(
        select(Grant, Pool)
        .join(Pool, col(Pool.id) == Grant.pool_id)
        .order_by(col(Grant.until), col(Grant.id))
        .execution_options(populate_existing=True)
    )
    return [
        GrantView(
            id=grant.id,
            pool=pool.name,
            unit=pool.unit,
            sponsor=grant.sponsor,
            seconds=grant.seconds,
            granted=grant.drawn,
            committed=grant.committed,
            left=grant.seconds - grant.drawn - grant.committed,
            until=grant.until,
        )
        for grant, pool in rows
    ]


def largest(session: Session, pool_id: int) -> int:
    """The most GPU-seconds for one allocation: the largest rest among the pool's running grants."""
    return largest_by_pool(session).get(pool_id, 0)


def largest_by_pool(session: Session) -> Mapping[int, int]:
    """What `largest` returns for each pool with a running grant."""
    return _of_running_grants(session, func.max)


def available(session: Session) -> Mapping[int, int]:
    """GPU-seconds left of the running grants of each pool that has such grants."""
    return _of_running_grants(session, func.sum)


def _of_running_grants(
    session: Session, aggregate: Callable[[ColumnElement[int]], ColumnElement[int]]
) -> Mapping[int, int]:
    """An aggregate, such as the sum, of what is left of each pool's running grants, in GPU-seconds."""
    left = aggregate(GRANT_LEFT)
    rows = session.execute(select(Grant.pool_id, left).where(Grant.until > utcnow()).group_by(col(Grant.pool_id)))
    return {pool_id: int(seconds) for pool_id, seconds in rows}
