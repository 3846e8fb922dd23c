"""The inventory of pools and grants, as admins and operators change it: in public, with a reason, from typed fields.

In all functions, `actor` None is the operator.
"""

import re
from collections.abc import Mapping, Sequence

from sqlalchemy import func
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker.allocations import hosts, nodes, pools, reservations
from broker.allocations.allocations import LIVE, Allocation
from broker.allocations.ledger import Balance
from broker.allocations.pools import HEAVIEST, LIGHTEST, MOST_GPUS, Grant, GrantMovement, GrantRow, Pool
from broker.allocations.requests import parse_hours
from broker.runners import registry
from broker.runs import attempts
from broker.runs.runs import ACTIVE, Run, RunState
from projects import parse, people, quotas, rights, text
from projects.db.columns import utcnow
from projects.errors import ConflictError, InvalidError, NotFoundError
from projects.people import Actor
from projects.record import record
from projects.rights import Act


def add_pool(
    session: Session,
    actor: Actor,
    *,
    name: str,
    gpu_type: str,
    gpus: str,
    price_weight: str,
    memory: str = "",
) -> None:
    """Add a pool of this host's GPUs, with the memory that `parse_memory` reads.

    Raises ForbiddenError, InvalidError and ConflictError.
    """
    rights.require_admin(actor, Act.MANAGE_COMPUTE)
    gpu, host = parse_memory(memory)
    pools.add_pool(
        session,
        name=name.strip(),
        gpu_type=gpu_type,
        gpus=_count(gpus),
        price_weight=_weight(price_weight),
        memory_gib=gpu,
        host_memory_gib=host,
        actor=actor,
    )


def change_pool(
    session: Session,
    actor: Actor | None,
    name: str,
    *,
    gpus: str = "",
    gpus_a_node: int | None = None,
    price_weight: str = "",
    memory_gib: float | None = None,
    host_memory_gib: float | None = None,
    preempt_after: int | None = None,
    runner_options: Mapping[str, str] | None = None,
    reason: str,
) -> None:
    """Change a pool's GPUs, in all or a node, price weight, memory and preemption; an empty field stays as it is.

    `runner_options` are those that change; jobs submitted from then on have them. Raises ConflictError where a run that
    is or will be queued would no longer fit.
    """
    rights.require_admin(actor, Act.MANAGE_COMPUTE)
    because = text.prose("The reason", reason, most=text.USUAL)
    pool = pools.named(session, name)
    session.refresh(pool, with_for_update=True)
    before = (pool.gpus, pool.gpus_a_node)
    count = _count(gpus) if gpus.strip() else pool.gpus
    each = pool.gpus_a_node if gpus_a_node is None else gpus_a_node
    pools.check_nodes(pool.runner, count, each, pool.unit)
    weight = _weight(price_weight) if price_weight.strip() else pool.price_weight
    options = pool.runner_options
    if runner_options:
        options = registry.named(pool.runner).checked_options({**options, **runner_options})
    for size in (memory_gib, host_memory_gib):
        pools.check_memory(size)
    preempts = pool.preempt_after if preempt_after is None else preempt_after
    pools.check_preempt_after(preempts)
    memory = (
        pool.memory_gib if memory_gib is None else memory_gib,
        pool.host_memory_gib if host_memory_gib is None else host_memory_gib,
    )
    same = (pool.price_weight, (pool.memory_gib, pool.host_memory_gib), pool.preempt_after)
    if (count, each) == before and (weight, memory, preempts) == same and options == pool.runner_options:
        raise ConflictError(f"The pool “{name}” already has {pool.unit.count(count)} and a price weight of {weight:g}.")
    reserved = reservations.most_reserved(session, pool.id, utcnow(), utcnow() + reservations.FARTHEST * 2)
    if count < reserved:
        raise ConflictError(
            f"Of “{name}”, {pool.unit.count(reserved)} are reserved; keep at least that many, or cancel the "
            "reservation first."
        )
    if count != pool.gpus and pool.shares_gpus:
        _check_later_rest(session, pool)
    quotas.check_admin(session, actor)
    pool.gpus, pool.gpus_a_node, pool.price_weight = count, each, weight
    pool.memory_gib, pool.host_memory_gib = memory
    preemption: dict[str, float] = {} if preempts == pool.preempt_after else {"preempt_after": preempts}
    pool.preempt_after = preempts
    pool.runner_options = options
    if (count, each) != before:
        _check_runs_fit(session, pool)
    session.flush()
    by = people.author(session, actor)
    told = {"pool": name, "gpus": count, "price_weight": weight}
    sizes = {"gpus_a_node": each, "memory_gib": pool.memory_gib, "host_memory_gib": pool.host_memory_gib}
    told |= {size: value for size, value in sizes.items() if value is not None} | preemption
    record.append(session, record.LAB, "pool.changed", by=by, why=because, **told)


def add_grant(session: Session, actor: Actor | None, *, pool: str, sponsor: str, hours: str, until: str) -> int:
    """Add a sponsor's grant; returns its id."""
    rights.require_admin(actor, Act.MANAGE_COMPUTE)
    return pools.add_grant(
        session,
        pool=pool,
        sponsor=sponsor,
        seconds=parse_hours(hours, pools.LARGEST_GRANT * 3600),
        until=parse.day_end(until),
        actor=actor,
    )


def change_grant(
    session: Session,
    actor: Actor | None,
    grant_id: int,
    *,
    more_hours: str = "",
    until: str = "",
    reason: str,
) -> None:
    """Add hours to a grant or change its end; an empty field stays as it is."""
    rights.require_admin(actor, Act.MANAGE_COMPUTE)
    because = text.prose("The reason", reason, most=text.USUAL)
    quotas.check_admin(session, actor)  # people are locked before grants
    grant = session.get(Grant, grant_id, with_for_update=True, populate_existing=True)
    if grant is None:
        raise NotFoundError(f"There is no grant {grant_id}.")
    most = pools.LARGEST_GRANT * 3600 - grant.seconds
    seconds = parse_hours(more_hours, most) if more_hours.strip() else 0
    ends = parse.day_end(until) if until.strip() else grant.until
    if not seconds and ends == grant.until:
        raise ConflictError(f"Nothing would change: give more hours, or another end than {grant.until:%Y-%m-%d}.")
    if ends <= utcnow():
        raise InvalidError(f"A grant ends in the future; {ends:%Y-%m-%d} has passed.")
    drawn = (col(Allocation.grant_id) == grant_id) & col(Allocation.state).in_(LIVE)
    last = session.scalar(select(func.max(col(Allocation.until))).where(drawn))
    if last is not None and ends < min(last, grant.until):
        raise ConflictError(f"Allocations that draw on this grant go on until {last:%Y-%m-%d}; it cannot end before.")
    pools.check_size(grant.seconds + seconds)
    grant.until = ends
    grant.seconds += seconds
    if seconds:
        session.add(GrantRow(grant_id=grant_id, movement=GrantMovement.GIVE, seconds=seconds))
    session.flush()
    told = {"grant": grant_id, "pool": session.get_one(Pool, grant.pool_id).name, "sponsor": grant.sponsor}
    told |= {"seconds": seconds, "until": ends.isoformat()}
    by = people.author(session, actor)
    record.append(session, record.LAB, "grant.changed", by=by, why=because, **told)


def spent_by_grant(session: Session) -> Mapping[int, int]:
    """Seconds of GPUs or cores that runs have spent of each grant."""
    rows = session.execute(select(col(Balance.grant_id), func.sum(col(Balance.spent))).group_by(col(Balance.grant_id)))
    return {grant_id: int(spent) for grant_id, spent in rows if grant_id is not None}


def sponsors(session: Session, project_id: int) -> Sequence[str]:
    """The names of the sponsors whose compute the project's runs have spent."""
    return session.scalars(
        select(Grant.sponsor)
        .join(Balance, col(Balance.grant_id) == Grant.id)
        .join(Allocation, col(Allocation.id) == Balance.allocation_id)
        .where(Allocation.project_id == project_id, Balance.spent > 0)
        .distinct()
        .order_by(col(Grant.sponsor))
    ).all()


def _check_runs_fit(session: Session, pool: Pool) -> None:
    """Raise ConflictError if a run that is active, or goes on by itself, does not fit the nodes of the pool."""
    goes_on = col(Run.state).in_(ACTIVE) | ((col(Run.state) == RunState.PAUSED) & col(Run.unfunded))
    open_run = (col(Run.pool_id) == pool.id) & goes_on
    largest = select(col(Run.gpus), func.min(col(Run.id))).where(open_run).group_by(col(Run.gpus))
    for gpus, run_id in session.execute(largest.order_by(col(Run.gpus).desc())):
        try:
            nodes.check(pool, gpus)
        except InvalidError as refused:
            raise ConflictError(
                f"Run {run_id} has or waits for {pool.unit.count(gpus)} of “{pool.name}”, which would no longer fit; "
                "leave the pool as it is, or cancel the run first."
            ) from refused


def _check_later_rest(session: Session, pool: Pool) -> None:
    """Raise ConflictError if a run holds GPUs that would get other numbers: those of the host's later pools."""
    for later in hosts.sharing(session, pool):
        if later.id <= pool.id:
            continue
        session.execute(select(Pool.id).where(Pool.id == later.id).with_for_update(key_share=True))
        if attempts.devices_in_use(session, later.id):
            raise ConflictError(
                f"“{later.name}” has the GPUs after those of “{pool.name}”, and runs hold some; pause them first."
            )


def parse_gpus(value: str) -> tuple[str, int | None]:
    """The GPUs in all, as typed, and those of a node, from “64 / 8”; empty and None for what is left out.

    Raises InvalidError.
    """
    gpus, _, each = (part.strip() for part in value.partition("/"))
    return gpus, _count(each) if each else None


def parse_memory(value: str) -> tuple[float | None, float | None]:
    """The memory of a GPU and of a host in GiB, typed as “141 / 2048”; None for what is left out.

    Raises InvalidError.
    """
    typed = re.fullmatch(r"\s*(\d{1,6}(?:\.\d{1,2})?)?\s*(?:/\s*(\d{1,6}(?:\.\d{1,2})?)?\s*)?", value, re.ASCII)
    if not typed:
        raise InvalidError(
            "Memory is written as GiB a GPU or core / GiB a host, such as 141 / 2048; either may be left out."
        )
    gpu, host = (float(size) if size else None for size in typed.groups())
    for size in (gpu, host):
        pools.check_memory(size)
    return gpu, host


def _count(value: str) -> int:
    if not re.fullmatch(r"\d{1,7}", value.strip(), re.ASCII) or not 1 <= int(value) <= MOST_GPUS:
        raise InvalidError(f"GPUs or cores are a whole number from 1 to {MOST_GPUS:,}.")
    return int(value)


def _weight(value: str) -> float:
    typed = re.fullmatch(r"\d{1,4}(\.\d{1,4})?", value.strip(), re.ASCII)
    if not typed or not LIGHTEST <= float(value) <= HEAVIEST:
        raise InvalidError(f"A price weight is a number above 0 and at most {HEAVIEST}, such as 1 or 2.5.")
    return float(value)
