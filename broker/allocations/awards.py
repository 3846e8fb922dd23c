"""Awards: a request is approved out of one of its pool's grants, in one piece or in two halves."""

from contextlib import suppress
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker.allocations import allocations, ledger, pools, tiers
from broker.allocations.allocations import Allocation, AllocationState
from broker.allocations.pools import GRANT_LEFT, Grant, Pool
from broker.allocations.units import in_hours
from projects.db.columns import utcnow
from projects.errors import ConflictError
from projects.people import Person


def award(session: Session, allocation: Allocation, seconds: int, by: Person, because: str, *, size: int) -> None:
    """Approve a request out of one of the pool's grants; a large amount comes in two halves.

    `size` is `seconds` with what counts beside them (`period_sums`), in GPU-seconds, and decides whether there are
    halves. The allocation ends with the grant at the latest. Raises ConflictError if no grant of the pool has enough
    left.
    """
    told = approve(session, allocation, seconds, by, because, size=size)
    allocations.tell(session, allocation, "allocation.approved", by=by, why=because, **told)


def approve(
    session: Session, allocation: Allocation, seconds: int, by: Person | None, because: str, *, size: int
) -> dict[str, Any]:
    """Approve a request as `award` does, without the entry; returns the payload of the entry."""
    second = second_half(session, seconds, size=size)
    source = _draw(session, allocation, seconds - second, second)
    now = utcnow()
    until = min(allocation.until, source.until)
    allocations.move(
        session,
        allocation,
        AllocationState.APPROVED,
        grant_id=source.id,
        until=until,
        decided_by=None if by is None else by.id,
        decided_at=now,
        reason=because,
        half_until=now + (until - now) / 2 if second else None,
    )
    told: dict[str, Any] = {
        "pool": session.get_one(Pool, allocation.pool_id).name,
        "sponsor": source.sponsor,
        "asked": allocation.seconds,
        "seconds": seconds - second,
        "until": _day(until),
    }
    if allocation.half_until is not None:
        told |= {"second_half": second, "half_until": _day(allocation.half_until)}
    if allocation.endorsed_by is not None:
        endorser = session.get_one(Person, allocation.endorsed_by)
        told |= {"endorsed_by": endorser.name, "named": [{"id": endorser.discord_id, "name": endorser.name}]}
    return told


def second_half(session: Session, seconds: int, *, size: int) -> int:
    """How much of a grant of `seconds` waits as its second half: nothing, up to a bound on `size`, as for `award`."""
    return seconds // 2 if size > tiers.current(session).halves else 0


def has_granted(session: Session, project_id: int) -> bool:
    """Whether the project was ever granted compute, without which it cannot have published anything either."""
    granted = select(Allocation.id).where(Allocation.project_id == project_id, col(Allocation.grant_id).is_not(None))
    return session.scalars(granted.limit(1)).one_or_none() is not None


def _draw(session: Session, allocation: Allocation, seconds: int, committed: int) -> Grant:
    """The grant that an allocation is drawn on: of those with enough left, the one that ends first.

    Raises ConflictError if none has enough.
    """
    total = seconds + committed
    candidates = session.scalars(
        select(Grant)
        .where(
            Grant.pool_id == allocation.pool_id,
            Grant.until > utcnow(),
            total <= GRANT_LEFT,
        )
        .order_by(col(Grant.until))
    ).all()
    for source in candidates:
        with suppress(ConflictError):
            ledger.grant(session, allocation.id, source.id, seconds, committed=committed)
            session.refresh(source)  # its end may have changed before it was locked
            return source
    left = pools.largest(session, allocation.pool_id)
    unit = session.get_one(Pool, allocation.pool_id).unit
    raise ConflictError(f"No grant of this pool holds {unit.hours(total)} any more; {in_hours(left)} are left.")


def _day(moment: datetime) -> str:
    return moment.date().isoformat()
