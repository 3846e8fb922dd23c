"""Payers: which of a project's allocations pays for a run, now and after others have ended."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker.allocations import allocations
from broker.allocations.allocations import Allocation, AllocationState
from broker.allocations.ledger import BALANCE_LEFT, Balance
from broker.allocations.pools import Pool
from projects.db.columns import utcnow
from projects.errors import ConflictError, NotFoundError
from projects.projects import Project


def successor(session: Session, allocation_id: int) -> int:
    """The allocation that now pays for the runs of `allocation_id`: itself, or what renews it on the same pool.

    An allocation that has ended may be renewed too, by a request that was approved only after its end.
    """
    pays = allocations.load(session, allocation_id)
    while not is_spendable(pays):
        renewal = session.scalars(
            select(Allocation)
            .where(
                Allocation.renews_id == pays.id,
                Allocation.pool_id == pays.pool_id,
                col(Allocation.grant_id).is_not(None),
            )
            .order_by(col(Allocation.state) != AllocationState.APPROVED, col(Allocation.decided_at))
        ).first()
        if renewal is None:
            break
        pays = renewal
    return pays.id


def is_spendable(allocation: Allocation) -> bool:
    """Whether runs may be paid from the allocation now."""
    return allocation.state == AllocationState.APPROVED and allocation.until > utcnow()


def spendable_now() -> ColumnElement[bool]:
    """What `is_spendable` says, as a condition of a query."""
    return (col(Allocation.state) == AllocationState.APPROVED) & (col(Allocation.until) > utcnow())


def able_to_pay(session: Session, project_id: int, seconds: int) -> Sequence[Allocation]:
    """The project's allocations from which `seconds` GPU-seconds can be paid now, the one with the most left first."""
    return session.scalars(
        select(Allocation)
        .join(Balance, col(Balance.allocation_id) == Allocation.id)
        .where(Allocation.project_id == project_id, spendable_now(), seconds <= BALANCE_LEFT)
        .order_by(BALANCE_LEFT.desc(), col(Allocation.id).desc())
    ).all()


def naming_another(session: Session, project_id: int, seconds: int) -> str:
    """The end of a refusal's sentence: which other allocation of the project could pay; empty where none can."""
    others = able_to_pay(session, project_id, max(seconds, 1))
    if not others:
        return ""
    return f" Allocation {others[0].id} on “{session.get_one(Pool, others[0].pool_id).name}” can pay for it."


def or_another(session: Session, allocation: Allocation, seconds: int) -> Allocation:
    """The allocation itself, or where it cannot pay `seconds` GPU-seconds, another one on its pool that can."""
    able = able_to_pay(session, allocation.project_id, seconds)
    fitting = [other for other in able if other.pool_id == allocation.pool_id]
    return allocation if not fitting or allocation in fitting else fitting[0]


def payer(session: Session, allocation_id: int, seconds: int) -> int | None:
    """The id of the allocation that can pay `seconds` GPU-seconds for more of a run that `allocation_id` paid for.

    That one comes first, or what renews it, then another one on the same pool. Where none can, it is the first again
    if runs may be paid from it at all, and else None.
    """
    own = allocations.load(session, successor(session, allocation_id))
    pays = or_another(session, own, seconds)
    return pays.id if is_spendable(pays) else None


def spendable(session: Session, project: Project, allocation_id: int | None) -> Allocation:
    """The allocation for a run of the project: the one named, or the newest approved one; raises DomainError."""
    if allocation_id is not None:
        allocation = allocations.load(session, allocation_id)
        if allocation.project_id != project.id:
            raise NotFoundError(f"Allocation {allocation_id} is not one of “{project.title}”.")
    else:
        newest = session.scalars(
            select(Allocation)
            .where(Allocation.project_id == project.id)
            .order_by(spendable_now().desc(), col(Allocation.id).desc())
        ).first()
        if newest is None:
            raise ConflictError("The project has no allocation yet: /allocation request asks for one.")
        allocation = newest
    other = "" if is_spendable(allocation) else naming_another(session, project.id, 1)
    if allocation.state != AllocationState.APPROVED:
        raise ConflictError(f"Allocation {allocation.id} is {allocation.state}; a run needs an approved one.{other}")
    if allocation.until <= utcnow():
        ended = f"Allocation {allocation.id} ended on {allocation.until:%Y-%m-%d}"
        raise ConflictError(f"{ended}; ask for a new one.{other}")
    return allocation
