"""Changes of a live allocation, more GPU-hours or a later end: requests that are reviewed like new allocations."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement
from sqlalchemy.orm import Session, aliased
from sqlmodel import col, select

from broker.allocations import allocations, awards, endorsements, ledger, period_sums, requests
from broker.allocations.allocations import Allocation
from broker.allocations.change_requests import TRANSITIONS, AllocationChange, ChangeState
from broker.allocations.endorsements import RolesNow, check_second, endorse
from broker.allocations.ledger import Account
from broker.allocations.pools import GRANT_LEFT, Grant
from broker.allocations.requests import parse_day, parse_hours
from broker.reviews import reviews
from projects import people, projects, quotas, text
from projects.db import transition
from projects.db.columns import utcnow
from projects.errors import ConflictError, InvalidError, NotFoundError, OverError
from projects.people import Actor, Person
from projects.projects import Project, Stage
from projects.quotas import QuotaKind


@dataclass(frozen=True)
class ChangeView:
    """A request for a change as people read it; `seconds` are GPU-seconds on top of those granted."""

    id: int
    allocation_id: int
    requested_by: str
    seconds: int
    until: datetime | None
    justification: str
    state: ChangeState
    decided_by: str | None
    reason: str
    endorsed_by: str | None = None


def request(
    session: Session,
    actor: Actor,
    request_id: str,
    allocation_id: int,
    *,
    justification: str,
    hours: str = "",
    until: str = "",
) -> int:
    """Request more hours, a later end, or both; returns the change's id. A repeated request returns the same id."""
    earlier = session.scalars(
        select(AllocationChange.id).where(AllocationChange.request_id == request_id)
    ).one_or_none()
    if earlier is not None:
        return earlier
    allocation = allocations.lock(session, allocation_id)
    lead = check_may_request(session, actor, allocation_id)
    quotas.check(session, actor, QuotaKind.REQUEST)
    if not hours.strip() and not until.strip():
        raise InvalidError("Say what should change: more hours, a later end, or both.")
    left = session.scalar(select(GRANT_LEFT).where(Grant.id == allocation.grant_id)) or 0
    seconds = parse_hours(hours, left) if hours.strip() else 0
    if seconds > left:
        most = allocations.view(session, allocation_id).unit.hours(left)
        raise InvalidError(f"The grant that allocation {allocation_id} draws on has {most} left; ask for at most that.")
    day = parse_day(until) if until.strip() else None
    if day is not None and day <= allocation.until:
        raise InvalidError(f"The allocation ends on {allocation.until:%Y-%m-%d}; ask for a later day.")
    if not seconds:
        _check_can_last(session, allocation)
    because = text.prose("The justification", justification, most=text.LONG)
    change = AllocationChange(
        request_id=request_id,
        allocation_id=allocation_id,
        requested_by=lead.id,
        seconds=seconds,
        until=day,
        justification=because,
    )
    session.add(change)
    session.flush()
    quotas.check_project(session, QuotaKind.REQUEST, allocation.project_id)
    _tell(session, allocation, change, "allocation.change_requested", lead, because, seconds=seconds)
    return change.id


def check_may_request(session: Session, actor: Actor, allocation_id: int) -> Person:
    """The lead, if a change of the allocation can be requested now; raises DomainError. Only reads."""
    lead = requests.check_may_ask_more(session, actor, allocation_id)
    project = session.get_one(Project, allocations.load(session, allocation_id).project_id)
    if project.stage != Stage.ACTIVE:
        raise ConflictError(f"“{project.title}” is {project.stage}; only an active project can ask for a change.")
    if open_of(session, allocation_id) is not None:
        raise ConflictError(f"A change of allocation {allocation_id} is already waiting for a decision.")
    return lead


def check_may_approve(session: Session, actor: Actor, change_id: int) -> None:
    """Raise unless the actor may decide on the change and has not endorsed it already. Only reads."""
    check_may_decide(session, actor, change_id)
    check_second(session, actor, load(session, change_id))


def check_may_decide(session: Session, actor: Actor, change_id: int) -> None:
    """Raise unless the actor is a reviewer outside the project and the change is open. Only reads."""
    change = load(session, change_id)
    project_id = allocations.load(session, change.allocation_id).project_id
    reviews.require_reviewer(session, actor, project_id, change)
    if change.state != ChangeState.REQUESTED:
        by = "somebody" if change.decided_by is None else session.get_one(Person, change.decided_by).name
        raise OverError(f"This change was already {change.state}, by {by}.")


def endorser(session: Session, change_id: int) -> str | None:
    """The Discord id of who has endorsed the change; None where nobody has."""
    return endorsements.endorser(session, load(session, change_id))


def approve(
    session: Session,
    actor: Actor,
    change_id: int,
    *,
    reason: str,
    hours: str = "",
    roles_now: RolesNow | None = None,
) -> ChangeState:
    """Approve the change, with fewer `hours` if these are given, or endorse it; returns the change's state.

    What decides how many reviewers it takes is the size that the allocation would have, or what the project, its lead
    and the requester come to within the period of the tiers (`period_sums`), whichever is more. `roles_now` is as in
    `endorsements.endorse`.
    """
    projects.lock(session, allocations.load(session, load(session, change_id).allocation_id).project_id)
    change, allocation = _locked(session, change_id)
    check_may_decide(session, actor, change_id)
    allocations.require_live(allocation)
    seconds = parse_hours(hours, change.seconds) if hours.strip() else change.seconds
    if seconds > change.seconds:
        asked = allocations.view(session, allocation.id).unit.hours(change.seconds)
        raise InvalidError(f"The request is for {asked} more; grant at most that.")
    if change.until is not None and change.until <= utcnow():
        raise ConflictError(f"The end asked for, {change.until:%Y-%m-%d}, has passed; only a new request helps.")
    if not seconds:
        _check_can_last(session, allocation)
    because = text.prose("The reason", reason, most=text.USUAL)
    reviewer = people.ensure(session, actor)
    beside = period_sums.of_request(session, allocation.project_id, change.requested_by).seconds
    size = size_of(ledger.account(session, allocation.id), seconds, beside)
    if endorse(session, change, allocation.project_id, reviewer, seconds, size=size, roles_now=roles_now):
        _tell(session, allocation, change, "allocation.change_endorsed", reviewer, because, seconds=seconds)
        return ChangeState.REQUESTED
    if change.endorsed_seconds is not None:
        seconds = min(seconds, change.endorsed_seconds)
    _move(session, change, ChangeState.APPROVED, reviewer, because)
    if change.until is not None and allocation.grant_id is not None:
        allocation.until = max(allocation.until, min(change.until, session.get_one(Grant, allocation.grant_id).until))
    second = awards.second_half(session, seconds, size=beside + seconds) if seconds else 0
    if seconds:
        ledger.top_up(session, allocation.id, seconds - second, committed=second)
    if second:
        now = utcnow()
        allocation.half_until, allocation.report = now + (allocation.until - now) / 2, ""
    reviews.reopen(session, allocation)
    told = {"seconds": seconds - second, "second_half": second, "ends": allocation.until.date().isoformat()}
    _tell(session, allocation, change, "allocation.changed", reviewer, because, **told)
    return ChangeState.APPROVED


def size_of(account: Account, seconds: int, beside: int) -> int:
    """The size of a change by `seconds`, for its tier; `beside` is what counts beside them (`period_sums`).

    A later end alone has no size.
    """
    return max(account.granted + account.committed, beside) + seconds if seconds else 0


def decline(session: Session, actor: Actor, change_id: int, *, reason: str) -> None:
    """Decline the change, with a reason."""
    change, allocation = _locked(session, change_id)
    check_may_decide(session, actor, change_id)
    because = text.prose("The reason", reason, most=text.USUAL)
    reviewer = people.ensure(session, actor)
    _move(session, change, ChangeState.DECLINED, reviewer, because)
    _tell(session, allocation, change, "allocation.change_declined", reviewer, because, seconds=change.seconds)


def withdraw(session: Session, actor: Actor, change_id: int, *, reason: str) -> None:
    """Withdraw an open request for a change; the requester and the project's lead may."""
    change, allocation = _locked(session, change_id)
    person = requests.require_asker(session, actor, allocation.project_id, change.requested_by)
    because = text.prose("The reason", reason, most=text.USUAL)
    _move(session, change, ChangeState.WITHDRAWN, person, because)
    _tell(session, allocation, change, "allocation.change_withdrawn", person, because, seconds=change.seconds)


def lapse(session: Session, allocation: Allocation) -> None:
    """Withdraw the open request for a change of an allocation that has ended."""
    change_id = open_of(session, allocation.id)
    if change_id is None:
        return
    change, why = load(session, change_id), f"its allocation is {allocation.state}"
    _move(session, change, ChangeState.WITHDRAWN, None, why)
    _tell(session, allocation, change, "allocation.change_withdrawn", None, why, seconds=change.seconds)


def load(session: Session, change_id: int) -> AllocationChange:
    """The change's row; raises NotFoundError."""
    change = session.get(AllocationChange, change_id)
    if change is None:
        raise NotFoundError(f"There is no request {change_id} for a change of an allocation.")
    return change


def open_of(session: Session, allocation_id: int) -> int | None:
    """The id of the allocation's open request for a change; None without one."""
    open_ = select(AllocationChange.id).where(
        AllocationChange.allocation_id == allocation_id, AllocationChange.state == ChangeState.REQUESTED
    )
    return session.scalars(open_).first()


def allocations_with_open(session: Session, allocation_ids: Collection[int]) -> set[int]:
    """The numbers of the given allocations that have an open request for a change."""
    open_ = col(AllocationChange.state) == ChangeState.REQUESTED
    asked = select(AllocationChange.allocation_id).where(col(AllocationChange.allocation_id).in_(allocation_ids), open_)
    return set(session.scalars(asked))


def check_may_withdraw(session: Session, actor: Actor, change_id: int) -> None:
    """Raise ForbiddenError unless the actor requested the change or leads the project. Only reads."""
    change = load(session, change_id)
    project_id = allocations.load(session, change.allocation_id).project_id
    requests.require_asker(session, actor, project_id, change.requested_by)


def of_allocation(session: Session, allocation_id: int) -> Sequence[ChangeView]:
    """The allocation's changes, the newest first."""
    return _views(session, col(AllocationChange.allocation_id) == allocation_id)


def of_project(session: Session, project_id: int) -> Sequence[ChangeView]:
    """The changes of all allocations of the project, the newest first."""
    return _views(session, col(Allocation.project_id) == project_id)


def view(session: Session, change_id: int) -> ChangeView:
    """The change as people read it; raises NotFoundError."""
    load(session, change_id)
    return _views(session, col(AllocationChange.id) == change_id)[0]


def _views(session: Session, which: ColumnElement[bool]) -> Sequence[ChangeView]:
    """The changes that meet a condition on change or allocation, the newest first; one query reads them all."""
    requester, decider, endorser = aliased(Person), aliased(Person), aliased(Person)
    rows = session.execute(
        select(AllocationChange, requester.name, decider.name, endorser.name)
        .join(Allocation, col(Allocation.id) == AllocationChange.allocation_id)
        .join(requester, col(requester.id) == AllocationChange.requested_by)
        .outerjoin(decider, col(decider.id) == AllocationChange.decided_by)
        .outerjoin(endorser, col(endorser.id) == AllocationChange.endorsed_by)
        .where(which)
        .order_by(col(AllocationChange.id).desc())
        .execution_options(populate_existing=True)
    )
    return [
        ChangeView(
            id=change.id,
            allocation_id=change.allocation_id,
            requested_by=asked_by,
            seconds=change.seconds,
            until=change.until,
            justification=change.justification,
            state=ChangeState(change.state),
            decided_by=decided_by,
            reason=change.reason,
            endorsed_by=endorsed_by,
        )
        for change, asked_by, decided_by, endorsed_by in rows
    ]


def _check_can_last(session: Session, allocation: Allocation) -> None:
    """Raise ConflictError if the allocation ends with its grant, so that a later end would change nothing."""
    if allocation.grant_id is None:
        return
    source = session.get_one(Grant, allocation.grant_id, populate_existing=True)
    if source.until <= allocation.until:
        raise ConflictError(
            f"The sponsor's grant ends on {source.until:%Y-%m-%d}, and the allocation with it; only a later end of "
            "the grant, or a request that draws on another one, helps."
        )


def _locked(session: Session, change_id: int) -> tuple[AllocationChange, Allocation]:
    """The change and its allocation, whose row is locked first, as for every decision on an allocation."""
    allocation = allocations.lock(session, load(session, change_id).allocation_id)
    return session.get_one(AllocationChange, change_id, populate_existing=True), allocation


def _move(session: Session, change: AllocationChange, to: ChangeState, by: Person | None, reason: str) -> None:
    """Close the request with a reason; `by` is the deciding person, or None if nobody decided."""
    decided = {"decided_by": None if by is None else by.id, "reason": reason}
    transition.move(session, change, to, TRANSITIONS, decided, name=f"The request {change.id} for a change")


def _tell(
    session: Session,
    allocation: Allocation,
    change: AllocationChange,
    kind: str,
    by: Person | None,
    why: str,
    **told: object,
) -> None:
    until = None if change.until is None else change.until.date().isoformat()
    allocations.tell(session, allocation, kind, by=by, why=why, change=change.id, until=until, **told)
