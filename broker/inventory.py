"""What admins do with pools and grants from a form: fields come as typed, each change is public and has a reason."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from broker import pools
from broker.allocations import Allocation, AllocationState, parse_hours
from broker.ledger import Balance
from broker.pools import HEAVIEST, Grant, GrantMovement, GrantRow, Pool
from broker.runs import ACTIVE, Run
from projects import people, record, rights, text
from projects.db import utcnow
from projects.errors import ConflictError, InvalidError, NotFoundError
from projects.people import Actor
from projects.rights import Act

MOST_GPUS = 1_000_000


def add_pool(
    session: Session,
    actor: Actor,
    *,
    name: str,
    gpu_type: str,
    gpus: str,
    launcher: str,
    price_weight: str,
    admin_role_id: int,
) -> None:
    """Add a pool under a name that is free."""
    rights.require_admin(actor, Act.MANAGE_COMPUTE, admin_role_id)
    called = name.strip()
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,39}", called):
        raise InvalidError("A pool's name has up to 40 lower-case letters, digits, dots, dashes and underscores.")
    if called in pools.names(session):
        raise ConflictError(f"There is a pool “{called}” already; change it, or choose another name.")
    pools.add_pool(
        session,
        name=called,
        gpu_type=text.prose("The GPU type", gpu_type, most=60),
        gpus=_count(gpus),
        launcher=launcher,
        price_weight=_weight(price_weight),
        actor=actor,
        admin_role_id=admin_role_id,
    )


def change_pool(
    session: Session, actor: Actor, name: str, *, gpus: str, price_weight: str, reason: str, admin_role_id: int
) -> None:
    """Set a pool's count of GPUs and its price weight; a field left empty stays as it is."""
    rights.require_admin(actor, Act.MANAGE_COMPUTE, admin_role_id)
    because = text.prose("The reason", reason, most=text.USUAL)
    pool = pools.named(session, name)
    session.refresh(pool, with_for_update=True)
    count = _count(gpus) if gpus.strip() else pool.gpus
    weight = _weight(price_weight) if price_weight.strip() else pool.price_weight
    if (count, weight) == (pool.gpus, pool.price_weight):
        raise ConflictError(f"The pool “{name}” is so already: {count} GPUs, and a price weight of {weight:g}.")
    open_run = (Run.pool_id == pool.id) & Run.state.in_(ACTIVE)
    largest = session.scalar(select(func.max(Run.gpus)).where(open_run)) or 0
    if count < largest:
        raise ConflictError(
            f"A run on “{name}” has or waits for {largest} GPUs; leave it as many, or cancel that first."
        )
    pool.gpus, pool.price_weight = count, weight
    session.flush()
    by = people.ensure(session, actor)
    told = {"pool": name, "gpus": count, "price_weight": weight}
    record.append(session, record.LAB, "pool.changed", by=by, why=because, **told)


def add_grant(
    session: Session, actor: Actor, *, pool: str, sponsor: str, hours: str, until: str, admin_role_id: int
) -> int:
    """Add a sponsor's grant; returns its number."""
    rights.require_admin(actor, Act.MANAGE_COMPUTE, admin_role_id)
    return pools.add_grant(
        session,
        pool=pool,
        sponsor=text.prose("The sponsor", sponsor, most=80),
        seconds=parse_hours(hours),
        until=_day(until),
        actor=actor,
        admin_role_id=admin_role_id,
    )


def change_grant(
    session: Session, actor: Actor, grant_id: int, *, more_hours: str, until: str, reason: str, admin_role_id: int
) -> None:
    """Add GPU-hours to a grant, or move its end; a field left empty stays as it is."""
    rights.require_admin(actor, Act.MANAGE_COMPUTE, admin_role_id)
    because = text.prose("The reason", reason, most=text.USUAL)
    grant = session.get(Grant, grant_id, with_for_update=True, populate_existing=True)
    if grant is None:
        raise NotFoundError(f"There is no grant {grant_id}.")
    seconds = parse_hours(more_hours) if more_hours.strip() else 0
    ends = _day(until) if until.strip() else grant.until
    if not seconds and ends == grant.until:
        raise ConflictError(f"Nothing would change: give more GPU-hours, or another end than {grant.until:%Y-%m-%d}.")
    if ends <= utcnow():
        raise InvalidError(f"A grant ends in the future; {ends:%Y-%m-%d} has passed.")
    drawn = (Allocation.grant_id == grant_id) & (Allocation.state == AllocationState.APPROVED)
    last = session.scalar(select(func.max(Allocation.until)).where(drawn))
    if last is not None and ends < min(last, grant.until):
        raise ConflictError(f"Allocations that draw on this grant go on until {last:%Y-%m-%d}; it cannot end before.")
    grant.until = ends
    grant.seconds += seconds
    if seconds:
        session.add(GrantRow(grant_id=grant_id, movement=GrantMovement.GIVE, seconds=seconds))
    session.flush()
    told = {"grant": grant_id, "pool": session.get_one(Pool, grant.pool_id).name, "sponsor": grant.sponsor}
    told |= {"seconds": seconds, "until": ends.isoformat()}
    record.append(session, record.LAB, "grant.changed", by=people.ensure(session, actor), why=because, **told)


def spent_by_grant(session: Session) -> Mapping[int, int]:
    """GPU-seconds that runs have spent of each grant."""
    rows = session.execute(select(Balance.grant_id, func.sum(Balance.spent)).group_by(Balance.grant_id))
    return {grant_id: int(spent) for grant_id, spent in rows if grant_id is not None}


def _count(value: str) -> int:
    if not re.fullmatch(r"\d{1,7}", value.strip(), re.ASCII) or not 1 <= int(value) <= MOST_GPUS:
        raise InvalidError(f"The GPUs are a whole number from 1 to {MOST_GPUS:,}.")
    return int(value)


def _weight(value: str) -> float:
    if not re.fullmatch(r"\d{1,4}(\.\d{1,4})?", value.strip(), re.ASCII) or not 0 < float(value) <= HEAVIEST:
        raise InvalidError(f"A price weight is a number above 0 and at most {HEAVIEST}, such as 1 or 2.5.")
    return float(value)


def _day(value: str) -> datetime:
    """The last second of a day as typed, in UTC."""
    try:
        day = datetime.strptime(value.strip(), "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError as error:
        example = (utcnow() + timedelta(days=365)).date()
        raise InvalidError(f"The day must be written like {example}: year, month, day.") from error
    if day.year > 9000:
        raise InvalidError("The day lies too far ahead.")
    return day + timedelta(days=1, seconds=-1)
