"""Allocation expiry: ends of allocations, exhaustion, deadlines of second halves, and the warnings before these.

The end of a project winds up its allocations and runs. Each allocation and each ended project is updated in a
transaction of its own, on a locked row, so that two schedulers at once do nothing twice.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence, Set
from contextlib import suppress
from datetime import datetime, timedelta

from sqlalchemy.orm import Session
from sqlmodel import Field, col, select

from broker.allocations import allocations, ledger
from broker.allocations.allocations import LIVE, Allocation, AllocationState
from broker.allocations.change_requests import AllocationChange, ChangeState
from broker.allocations.ledger import BALANCE_LEFT, Balance
from broker.end_reasons import EndReason
from broker.fence import Fence
from broker.reviews import changes, reviews
from broker.runs import control
from broker.runs.runs import Run
from projects import projects
from projects.db.columns import Base, foreign_key, timestamp, utcnow
from projects.db.database import Database
from projects.errors import ConflictError
from projects.projects import Project

DAYS = (30, 14, 7)
PERCENTS = (80, 95)

Mark = tuple[str, str]


class AllocationWarning(Base, table=True):
    """A mark that was passed: `mark` is days before an end or a share of GPU-seconds, `about` that end or total."""

    __tablename__ = "allocation_warnings"

    allocation_id: int = foreign_key("allocations.id", primary_key=True)
    mark: str = Field(primary_key=True)
    about: str = Field(primary_key=True)
    at: datetime = timestamp(default=utcnow)


def update_all(db: Database, now: datetime, fence: Fence | None = None) -> None:
    """Wind up every ended project, and update every allocation on which something is due at `now`."""
    fence = fence or Fence(db)
    with db.read() as session:
        over = unsettled(session)
    for project_id in over:
        with fence("winding up an ended project", project=project_id), suppress(ConflictError), db.write() as session:
            wind_up(session, project_id)
    with db.read() as session:
        waiting = due(session, now)
    for allocation_id in waiting:
        with fence("updating an allocation", allocation=allocation_id), suppress(ConflictError), db.write() as session:
            update_one(session, allocation_id, now)


def unsettled(session: Session) -> Sequence[int]:
    """The ended projects that still have live allocations, open requests or runs. Only reads."""
    has = col(Allocation.state).in_((AllocationState.REQUESTED, *LIVE))
    allocated = select(Allocation.id).where(Allocation.project_id == Project.id, has).exists()
    running = select(Run.id).where(Run.project_id == Project.id, control.cancellable()).exists()
    query = select(Project.id).where(col(Project.stage).in_(projects.ENDED), allocated | running)
    return session.scalars(query.order_by(col(Project.id))).all()


def wind_up(session: Session, project_id: int) -> None:
    """End the allocations, open requests and runs of an ended project, all or nothing, with an entry for each.

    GPU-seconds that no run has reserved return to the grant at once, the rest when the runs have stopped.
    """
    why = f"its project is {session.get_one(Project, project_id).stage}"
    ids = select(Allocation.id).where(Allocation.project_id == project_id).order_by(col(Allocation.id))
    found = [allocations.lock(session, allocation_id) for allocation_id in session.scalars(ids).all()]
    control.hold(session, col(Run.project_id) == project_id)
    for allocation in found:
        if allocation.state == AllocationState.REQUESTED:
            allocations.move(session, allocation, AllocationState.WITHDRAWN, reason=why, decided_at=utcnow())
            allocations.tell(session, allocation, "allocation.withdrawn", why=why, asked=allocation.seconds)
        elif allocation.state in LIVE:
            returned = allocations.close(session, allocation, AllocationState.EXPIRED)
            allocations.tell(session, allocation, "allocation.ended", why=why, returned=returned)
    control.cancel_all(session, project_id, why)


def due(session: Session, now: datetime) -> list[int]:
    """The allocations on which something is due at `now`. Only reads."""
    warned: defaultdict[int, set[Mark]] = defaultdict(set)
    live = col(Allocation.state).in_(LIVE)
    marks = (
        select(AllocationWarning).join(Allocation, col(Allocation.id) == AllocationWarning.allocation_id).where(live)
    )
    for row in session.scalars(marks):
        warned[row.allocation_id].add((row.mark, row.about))
    rows = session.execute(
        select(Allocation, Balance)
        .join(Balance, col(Balance.allocation_id) == Allocation.id)
        .where(live | (BALANCE_LEFT > 0))
        .order_by(col(Allocation.id))
    )
    found = {
        allocation.id
        for allocation, balance in rows
        if _is_due(allocation, balance, now) or _passed(allocation, balance, now) - warned[allocation.id]
    }
    asked = col(AllocationChange.state) == ChangeState.REQUESTED
    outlived = select(Allocation.id).join(AllocationChange, col(AllocationChange.allocation_id) == Allocation.id)
    return sorted(found | set(session.scalars(outlived.where(asked, ~live))))


def update_one(session: Session, allocation_id: int, now: datetime) -> None:
    """Do what is due on an allocation at `now`, with an entry for each thing done."""
    allocation = allocations.lock(session, allocation_id)
    if allocation.state not in LIVE:
        _collect(session, allocation)
        return
    if allocation.until <= now:
        control.hold(session, col(Run.allocation_id) == allocation_id)
        returned = allocations.close(session, allocation, AllocationState.EXPIRED)
        allocations.tell(session, allocation, "allocation.expired", returned=returned)
        control.stop_all(session, allocation_id, EndReason.ALLOCATION_EXPIRED, "its allocation has ended")
        return
    if allocation.half_until is not None and allocation.half_until <= now:
        allocation.half_until = None
        returned = ledger.lapse_half(session, allocation_id)
        allocations.tell(session, allocation, "allocation.half_returned", returned=returned)
    account = ledger.account(session, allocation_id)
    if allocation.state == AllocationState.EXHAUSTED and account.left:
        reviews.reopen(session, allocation)
        allocations.tell(session, allocation, "allocation.reopened", left=account.left)
    elif allocation.state == AllocationState.APPROVED and not account.left and not account.reserved:
        allocations.move(session, allocation, AllocationState.EXHAUSTED)
        allocations.tell(session, allocation, "allocation.exhausted", spent=account.spent)
    _warn(session, allocation, now)


def _collect(session: Session, allocation: Allocation) -> None:
    """Return to the grant what an ended allocation was given back, and withdraw its open request for a change."""
    returned = ledger.give_back(session, allocation.id, f"it is {allocation.state}")
    changes.lapse(session, allocation)
    if returned:
        allocations.tell(session, allocation, "allocation.returned", returned=returned)


def _warn(session: Session, allocation: Allocation, now: datetime) -> None:
    """Record the nearest newly passed mark of each kind; every passed mark counts as warned of from then on."""
    balance = session.get_one(Balance, allocation.id, populate_existing=True)
    known = session.execute(
        select(AllocationWarning.mark, AllocationWarning.about).where(AllocationWarning.allocation_id == allocation.id)
    )
    fresh = _passed(allocation, balance, now) - {(mark, about) for mark, about in known}
    for mark, about in sorted(fresh):
        session.add(AllocationWarning(allocation_id=allocation.id, mark=mark, about=about))
    session.flush()
    told = {mark for mark, _ in fresh}
    days = next((days for days in sorted(DAYS) if f"{days}d" in told), None)
    percent = next((percent for percent in sorted(PERCENTS, reverse=True) if f"{percent}%" in told), None)
    if days is not None:
        ends = allocation.until.date().isoformat()
        allocations.tell(session, allocation, "allocation.warning", days=days, ends=ends)
    if percent is not None:
        left = ledger.account(session, allocation.id).left
        allocations.tell(session, allocation, "allocation.warning", percent=percent, left=left)


def _is_due(allocation: Allocation, balance: Balance, now: datetime) -> bool:
    """Whether the allocation's state no longer fits its end or its balance."""
    left = balance.granted - balance.reserved - balance.spent
    if allocation.state not in LIVE:
        return left > 0
    if allocation.until <= now or (allocation.half_until is not None and allocation.half_until <= now):
        return True
    exhausted = allocation.state == AllocationState.EXHAUSTED
    return bool(left) if exhausted else left == 0 and balance.reserved == 0


def _passed(allocation: Allocation, balance: Balance, now: datetime) -> Set[Mark]:
    """The marks that the allocation has passed; a mark before the start of a short allocation does not count."""
    if allocation.state != AllocationState.APPROVED:
        return frozenset()
    return frozenset(_of_time(allocation, now)) | frozenset(_of_hours(balance))


def _of_time(allocation: Allocation, now: datetime) -> Iterable[Mark]:
    """The marks of days before the allocation's end that have passed."""
    since = allocation.decided_at or allocation.created_at
    for days in DAYS:
        at = allocation.until - timedelta(days=days)
        if since < at <= now:
            yield f"{days}d", allocation.until.isoformat()


def _of_hours(balance: Balance) -> Iterable[Mark]:
    """The marks of shares of the granted GPU-seconds that are spent."""
    for percent in PERCENTS:
        if 100 * balance.spent >= percent * balance.granted > 0:
            yield f"{percent}%", str(balance.granted)
