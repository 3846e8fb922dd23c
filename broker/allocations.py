"""Allocations: GPU time that a project asks for and that a reviewer grants, in full or in part, with a reason."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from enum import StrEnum

from sqlalchemy import ForeignKey, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from broker import ledger, pools
from broker.ledger import Account
from broker.pools import Grant, Pool
from projects import limits, people, pipeline, record, text
from projects.db import Base, utcnow
from projects.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError
from projects.limits import Kind
from projects.people import Actor, Person
from projects.pipeline import Membership, Project, Stage

MOST_HOURS = 1_000_000
LONGEST = timedelta(days=366)


class AllocationState(StrEnum):
    """Where a request stands."""

    REQUESTED = "requested"
    APPROVED = "approved"
    DECLINED = "declined"


class Allocation(Base):
    """A request for GPU-seconds of a pool, and what was decided on it."""

    __tablename__ = "allocations"

    id: Mapped[int] = mapped_column(primary_key=True)
    request_id: Mapped[str] = mapped_column(unique=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    pool_id: Mapped[int] = mapped_column(ForeignKey("pools.id"))
    grant_id: Mapped[int | None] = mapped_column(ForeignKey("grants.id"))
    requested_by: Mapped[int] = mapped_column(ForeignKey("people.id"))
    seconds: Mapped[int]
    until: Mapped[datetime]
    justification: Mapped[str]
    state: Mapped[str] = mapped_column(default=AllocationState.REQUESTED)
    decided_by: Mapped[int | None] = mapped_column(ForeignKey("people.id"))
    reason: Mapped[str] = mapped_column(default="")
    created_at: Mapped[datetime] = mapped_column(default=utcnow)


@dataclass(frozen=True)
class AllocationView:
    """An allocation as cards show it; times of use in GPU-seconds."""

    id: int
    project_id: int
    project: str
    pool: str
    gpu_type: str
    requested_by: str
    seconds: int
    until: datetime
    justification: str
    state: AllocationState
    decided_by: str | None
    reason: str
    sponsor: str | None
    account: Account


def parse_hours(value: str) -> int:
    """GPU-hours as typed, such as “1.5”, in GPU-seconds; raises InvalidError with what would be right."""
    try:
        hours = Decimal(value.strip())
    except InvalidOperation:
        hours = Decimal("NaN")
    if not hours.is_finite() or not 0 < hours <= MOST_HOURS:
        raise InvalidError(f"GPU-hours must be a number above 0 and at most {MOST_HOURS:,}, such as 1.5.")
    seconds = int(hours * 3600)
    if seconds < 1:
        raise InvalidError("GPU-hours must come to at least one GPU-second, such as 0.001.")
    return seconds


def parse_day(value: str) -> datetime:
    """A day as typed, such as “2030-12-31”: its last second, UTC; raises InvalidError."""
    try:
        day = datetime.strptime(value.strip(), "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError as error:
        example = (utcnow() + timedelta(days=30)).date()
        raise InvalidError(f"The day must be written like {example}: year, month, day.") from error
    end = day + timedelta(days=1, seconds=-1)
    if not utcnow() < end <= utcnow() + LONGEST:
        raise InvalidError("The day must lie in the future, at most one year from now.")
    return end


def request(
    session: Session,
    actor: Actor,
    request_id: str,
    *,
    project_id: int,
    pool: str,
    hours: str,
    until: str,
    justification: str,
) -> int:
    """Ask for `hours` of a pool until a day; returns the allocation's id, the same one for a repeat of the request."""
    earlier = session.scalars(select(Allocation.id).where(Allocation.request_id == request_id)).one_or_none()
    if earlier is not None:
        return earlier
    project = check_may_request(session, actor, project_id)
    limits.check(session, actor, Kind.REQUEST)
    target = pools.named(session, pool)
    seconds = parse_hours(hours)
    day = parse_day(until)
    because = text.prose("The justification", justification, most=1500)
    available = pools.available(session, target.id)
    if seconds > available:
        raise InvalidError(f"The grants of “{pool}” have {in_hours(available)} GPU-hours left; ask for at most that.")
    person = people.ensure(session, actor)
    allocation = Allocation(
        request_id=request_id,
        project_id=project.id,
        pool_id=target.id,
        requested_by=person.id,
        seconds=seconds,
        until=day,
        justification=because,
    )
    session.add(allocation)
    session.flush()
    record.append(
        session,
        record.project_stream(project.id),
        "allocation.requested",
        by=person,
        why=because,
        allocation=allocation.id,
        pool=pool,
        seconds=seconds,
        until=day.date().isoformat(),
    )
    return allocation.id


def check_may_request(session: Session, actor: Actor, project_id: int) -> Project:
    """The project where the actor may ask for compute for it; only reads, since a form may be opened on it."""
    project = pipeline.load(session, project_id)
    pipeline.require_lead(session, actor, project)
    if project.stage != Stage.ACTIVE:
        raise ConflictError(f"“{project.title}” is {project.stage}; only an active project can ask for GPUs.")
    return project


def check_may_decide(session: Session, actor: Actor, allocation_id: int, *, reviewer_role_id: int) -> None:
    """Raise unless the actor is a reviewer, the request is open, and it is not their own or their own project's."""
    allocation = load(session, allocation_id)
    if reviewer_role_id not in actor.role_ids:
        raise ForbiddenError("Only compute reviewers can decide requests; the reviewers' role is given by the admins.")
    person = people.find(session, actor)
    project = session.get_one(Project, allocation.project_id)
    if person is not None and session.get(Membership, (project.id, person.id)) is not None:
        raise ForbiddenError("Nobody decides on a request of their own project; another reviewer can.")
    if allocation.state != AllocationState.REQUESTED:
        raise ConflictError(_decided(session, allocation))


def approve(
    session: Session, actor: Actor, allocation_id: int, *, hours: str, reason: str, reviewer_role_id: int
) -> None:
    """Grant the request in full or in part, out of a sponsor's grant of the pool."""
    check_may_decide(session, actor, allocation_id, reviewer_role_id=reviewer_role_id)
    allocation = load(session, allocation_id)
    seconds = parse_hours(hours)
    if seconds > allocation.seconds:
        raise InvalidError(f"{in_hours(allocation.seconds)} GPU-hours were asked for; grant at most that.")
    because = text.prose("The reason", reason, most=1000)
    reviewer = people.ensure(session, actor)
    _decide(session, allocation, AllocationState.APPROVED, reviewer, because)
    source = _draw(session, allocation, seconds)
    ledger.grant(session, allocation.id, seconds)
    record.append(
        session,
        record.project_stream(allocation.project_id),
        "allocation.approved",
        by=reviewer,
        why=because,
        allocation=allocation.id,
        asked=allocation.seconds,
        seconds=seconds,
        pool=session.get_one(Pool, allocation.pool_id).name,
        sponsor=source.sponsor,
    )


def decline(session: Session, actor: Actor, allocation_id: int, *, reason: str, reviewer_role_id: int) -> None:
    """Refuse the request, with a reason."""
    check_may_decide(session, actor, allocation_id, reviewer_role_id=reviewer_role_id)
    allocation = load(session, allocation_id)
    because = text.prose("The reason", reason, most=1000)
    reviewer = people.ensure(session, actor)
    _decide(session, allocation, AllocationState.DECLINED, reviewer, because)
    record.append(
        session,
        record.project_stream(allocation.project_id),
        "allocation.declined",
        by=reviewer,
        why=because,
        allocation=allocation.id,
        asked=allocation.seconds,
        pool=session.get_one(Pool, allocation.pool_id).name,
    )


def load(session: Session, allocation_id: int) -> Allocation:
    """The allocation's row; raises NotFoundError."""
    allocation = session.get(Allocation, allocation_id)
    if allocation is None:
        raise NotFoundError(f"There is no allocation {allocation_id}; /allocation list shows those of a project.")
    return allocation


def view(session: Session, allocation_id: int) -> AllocationView:
    """The allocation as cards show it; raises NotFoundError."""
    allocation = load(session, allocation_id)
    pool = session.get_one(Pool, allocation.pool_id)
    decided_by = None if allocation.decided_by is None else session.get_one(Person, allocation.decided_by).name
    return AllocationView(
        id=allocation.id,
        project_id=allocation.project_id,
        project=session.get_one(Project, allocation.project_id).title,
        pool=pool.name,
        gpu_type=pool.gpu_type,
        requested_by=session.get_one(Person, allocation.requested_by).name,
        seconds=allocation.seconds,
        until=allocation.until,
        justification=allocation.justification,
        state=AllocationState(allocation.state),
        decided_by=decided_by,
        reason=allocation.reason,
        sponsor=None if allocation.grant_id is None else session.get_one(Grant, allocation.grant_id).sponsor,
        account=ledger.account(session, allocation.id),
    )


def of_project(session: Session, project_id: int) -> Sequence[AllocationView]:
    """The project's allocations, the newest first."""
    ids = session.scalars(
        select(Allocation.id).where(Allocation.project_id == project_id).order_by(Allocation.id.desc())
    ).all()
    return [view(session, allocation_id) for allocation_id in ids]


def in_hours(seconds: int) -> str:
    """GPU-seconds as GPU-hours with three digits at most behind the point."""
    return f"{seconds / 3600:,.3f}".rstrip("0").rstrip(".")


def _decide(session: Session, allocation: Allocation, to: AllocationState, reviewer: Person, reason: str) -> None:
    """Close the request, guarded against another reviewer's click at the same moment."""
    moved = session.execute(
        update(Allocation)
        .where(Allocation.id == allocation.id, Allocation.state == AllocationState.REQUESTED)
        .values(state=to, decided_by=reviewer.id, reason=reason)
        .returning(Allocation.id)
    ).one_or_none()
    if moved is None:
        session.refresh(allocation)
        raise ConflictError(_decided(session, allocation))


def _decided(session: Session, allocation: Allocation) -> str:
    by = "somebody" if allocation.decided_by is None else session.get_one(Person, allocation.decided_by).name
    return f"This request has been {allocation.state} already, by {by}."


def _draw(session: Session, allocation: Allocation, seconds: int) -> Grant:
    """Take `seconds` from the grant of the pool that ends first and still holds them."""
    candidates = session.scalars(
        select(Grant)
        .where(Grant.pool_id == allocation.pool_id, Grant.until > utcnow(), Grant.seconds - Grant.drawn >= seconds)
        .order_by(Grant.until)
    ).all()
    for grant in candidates:
        drawn = session.execute(
            update(Grant)
            .where(Grant.id == grant.id, Grant.seconds - Grant.drawn >= seconds)
            .values(drawn=Grant.drawn + seconds)
            .returning(Grant.id)
        ).one_or_none()
        if drawn is not None:
            allocation.grant_id = grant.id
            session.flush()
            return grant
    left = pools.available(session, allocation.pool_id)
    raise ConflictError(
        f"No grant of this pool holds {in_hours(seconds)} GPU-hours any more; {in_hours(left)} are left."
    )
