"""Allocations: GPU time that a project asks for and that a reviewer grants, in full or in part, with a reason."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any

from sqlalchemy import Index, func
from sqlalchemy.orm import Session, aliased
from sqlmodel import Field, col, select
from sqlmodel.sql.expression import SelectOfScalar

from broker.allocations import ledger, pools, tiers
from broker.allocations.endorsements import Endorsable
from broker.allocations.ledger import Account, Balance, in_hours
from broker.allocations.pools import Grant, GrantMovement, GrantRow, Pool
from broker.allocations.tiers import Tiers
from projects import people, projects, quotas, rights, text
from projects.db import transition
from projects.db.columns import foreign_key, integer, row_id, timestamp, utcnow, words
from projects.errors import ConflictError, InvalidError, NotFoundError
from projects.people import Actor, Person
from projects.policies import MOST_HOURS
from projects.projects import Project, Stage
from projects.quotas import QuotaKind
from projects.record import record

LONGEST = timedelta(days=366)
STARTER = "A starter grant, by policy."


class AllocationState(StrEnum):
    """The states of an allocation, from the request on."""

    REQUESTED = "requested"
    APPROVED = "approved"
    DECLINED = "declined"
    WITHDRAWN = "withdrawn"
    EXHAUSTED = "exhausted"
    EXPIRED = "expired"
    REVOKED = "revoked"
    RENEWED = "renewed"


_CLOSED = frozenset({AllocationState.EXPIRED, AllocationState.REVOKED, AllocationState.RENEWED})
TRANSITIONS: dict[AllocationState, frozenset[AllocationState]] = {
    AllocationState.REQUESTED: frozenset(
        {AllocationState.APPROVED, AllocationState.DECLINED, AllocationState.WITHDRAWN}
    ),
    AllocationState.APPROVED: _CLOSED | {AllocationState.EXHAUSTED},
    AllocationState.EXHAUSTED: _CLOSED | {AllocationState.APPROVED},  # a top-up, a refund or the second half
    AllocationState.DECLINED: frozenset(),
    AllocationState.WITHDRAWN: frozenset(),
    AllocationState.EXPIRED: frozenset(),
    AllocationState.REVOKED: frozenset(),
    AllocationState.RENEWED: frozenset(),
}
LIVE = (AllocationState.APPROVED, AllocationState.EXHAUSTED)
MAY_START = (Stage.PROPOSED, Stage.RECRUITING, Stage.SCOPED, Stage.ACTIVE)


class Allocation(Endorsable, table=True):
    """A request for GPU-seconds of a pool, with the decision on it.

    Policy grants a project one starter allocation: `starter_of` is then the project. `half_until` is the deadline for
    releasing a committed second half.
    """

    __tablename__ = "allocations"
    __table_args__ = (Index("uq_allocations_starter_of", "starter_of", unique=True),)

    id: int = row_id()
    request_id: str = Field(unique=True)
    project_id: int = foreign_key("projects.id")
    pool_id: int = foreign_key("pools.id")
    grant_id: int | None = foreign_key("grants.id", default=None)
    seconds: int = integer()
    until: datetime = timestamp()
    justification: str = words()
    state: str = AllocationState.REQUESTED
    decided_by: int | None = foreign_key("people.id", default=None)
    reason: str = words(default="")
    starter_of: int | None = integer(default=None)
    renews_id: int | None = foreign_key("allocations.id", default=None)
    decided_at: datetime | None = timestamp(default=None)
    half_until: datetime | None = timestamp(default=None)
    report: str = words(default="")


@dataclass(frozen=True)
class AllocationView:
    """An allocation as cards show it; amounts are GPU-seconds."""

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
    starter: bool = False
    renews: int | None = None
    endorsed_by: str | None = None
    half_until: datetime | None = None
    report: str = ""

    @property
    def size(self) -> int:
        """GPU-seconds: those asked for while the request is open, then those granted, and at the end those spent.

        A second half that is still to be released counts as granted.
        """
        if self.state in {AllocationState.REQUESTED, AllocationState.DECLINED, AllocationState.WITHDRAWN}:
            return self.seconds
        return self.account.granted + self.account.committed

    @property
    def standing(self) -> str:
        """The state in one word."""
        return "ended" if self.state == AllocationState.EXPIRED else str(self.state)


def parse_hours(value: str) -> int:
    """GPU-hours as typed, such as “1.5”, in GPU-seconds; raises InvalidError."""
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
    """The last second (UTC) of a day as typed, such as “2030-12-31”; raises InvalidError."""
    end = text.day_end(value)
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
    renews: int | None = None,
) -> int:
    """Request `hours` of a pool until a day; returns the allocation's id. A repeated request returns the same id.

    Policy approves a project's first small request at once, as its starter grant. With `renews`, an approval ends that
    earlier allocation of the project.
    """
    earlier = session.scalars(select(Allocation.id).where(Allocation.request_id == request_id)).one_or_none()
    if earlier is not None:
        return earlier
    projects.load(session, project_id)
    session.get_one(Project, project_id, with_for_update={"key_share": True}, populate_existing=True)
    project = check_may_request(session, actor, project_id)
    quotas.check(session, actor, QuotaKind.REQUEST)
    target = pools.named(session, pool)
    seconds = parse_hours(hours)
    day = parse_day(until)
    because = text.prose("The justification", justification, most=text.LONG)
    person = people.ensure(session, actor)
    bounds = tiers.current(session)
    starter = renews is None and _starts(session, project, person, seconds, bounds)
    if project.stage != Stage.ACTIVE and not starter:
        since = _last_starter(session, person)
        if since is not None and not _had_starter(session, project):
            raise ConflictError(
                f"You had a starter grant on {since:%Y-%m-%d}, and one person may have one in "
                f"{bounds.starter_period_days} days. “{project.title}” is {project.stage}; only an active project can "
                "ask for more than one starter grant."
            )
        raise ConflictError(
            f"“{project.title}” is {project.stage}; only an active project can ask for more than one starter grant of "
            f"at most {in_hours(bounds.starter)} GPU-hours."
        )
    largest = pools.largest(session, target.id)
    if seconds > largest:
        raise InvalidError(
            f"The grants of “{pool}” have {in_hours(largest)} GPU-hours left for one allocation; ask for at most that."
        )
    if renews is not None:
        _check_renewable(session, project, renews)
    allocation = Allocation(
        request_id=request_id,
        project_id=project.id,
        pool_id=target.id,
        requested_by=person.id,
        seconds=seconds,
        until=day,
        justification=because,
        starter_of=project.id if starter else None,
        renews_id=renews,
    )
    session.add(allocation)
    session.flush()
    told = {"pool": pool, "seconds": seconds, "until": day.date().isoformat()}
    if renews is not None:
        told["renews"] = renews
    # The grant's row is locked before the record's stream.
    approved = _approve(session, allocation, seconds, None, STARTER) if starter else None
    quotas.check_project(session, QuotaKind.REQUEST, project.id)
    tell(session, allocation, "allocation.requested", by=person, why=because, **told)
    if approved is not None:
        tell(session, allocation, "allocation.approved", why=STARTER, **approved)
    return allocation.id


def check_may_request(session: Session, actor: Actor, project_id: int) -> Project:
    """The project, if the actor may request compute for it; raises ForbiddenError and ConflictError. Only reads."""
    project = projects.load(session, project_id)
    rights.require_lead(session, actor, project)
    if project.stage not in MAY_START:
        raise ConflictError(f"“{project.title}” is {project.stage}; only an active project can ask for GPUs.")
    return project


def withdraw(session: Session, actor: Actor, allocation_id: int, *, reason: str) -> None:
    """Withdraw an open request; the requester and the project's lead may."""
    allocation = lock(session, allocation_id)
    person = check_may_withdraw(session, actor, allocation_id)
    because = text.prose("The reason", reason, most=text.USUAL)
    move(session, allocation, AllocationState.WITHDRAWN, decided_by=person.id, reason=because, decided_at=utcnow())
    tell(session, allocation, "allocation.withdrawn", by=person, why=because, asked=allocation.seconds)


def report(session: Session, actor: Actor, allocation_id: int, said: str) -> None:
    """Publish a report on the results of an allocation; a second half is released on such a report."""
    allocation = lock(session, allocation_id)
    lead = check_may_ask_more(session, actor, allocation_id)
    allocation.report = text.prose("The report", said, most=text.LONG)
    session.flush()
    quotas.check(session, actor, QuotaKind.UPDATE, allocation.project_id)
    tell(session, allocation, "allocation.reported", by=lead, why=allocation.report)


def check_may_withdraw(session: Session, actor: Actor, allocation_id: int) -> Person:
    """The person of the actor, who must be the requester or the project's lead. Only reads.

    Raises ForbiddenError, and ConflictError unless the request is open.
    """
    allocation = load(session, allocation_id)
    person = require_asker(session, actor, allocation.project_id, allocation.requested_by)
    check_move(allocation, AllocationState.WITHDRAWN)
    return person


def check_may_ask_more(session: Session, actor: Actor, allocation_id: int) -> Person:
    """The lead, who may report on a live allocation and request a change of it. Only reads.

    Raises ForbiddenError, and ConflictError unless the allocation lives.
    """
    allocation = load(session, allocation_id)
    lead = rights.require_lead(session, actor, session.get_one(Project, allocation.project_id))
    require_live(allocation)
    return lead


def require_asker(session: Session, actor: Actor, project_id: int, asked_by: int) -> Person:
    """The person of the actor: the requester, while they work on the project, or its lead. Only reads.

    Raises ForbiddenError for everyone else.
    """
    person, project = people.find(session, actor), session.get_one(Project, project_id)
    if person is not None and person.id == asked_by and projects.works_on(session, person, project):
        return person
    return rights.require_lead(session, actor, project)


def award(session: Session, allocation: Allocation, seconds: int, by: Person | None, because: str) -> None:
    """Approve a request out of one of the pool's grants; a large amount comes in two halves.

    The allocation ends with the grant at the latest. Raises ConflictError if no grant of the pool has enough left.
    """
    told = _approve(session, allocation, seconds, by, because)
    tell(session, allocation, "allocation.approved", by=by, why=because, **told)


def _approve(session: Session, allocation: Allocation, seconds: int, by: Person | None, because: str) -> dict[str, Any]:
    """Approve a request as `award` does, without the entry; returns the payload of the entry."""
    second = second_half(session, allocation.project_id, seconds)
    source = _draw(session, allocation, seconds - second, second)
    now = utcnow()
    until = min(allocation.until, source.until)
    move(
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


def second_half(session: Session, project_id: int, seconds: int) -> int:
    """How much of a grant of `seconds` waits as its second half: nothing, up to a bound on a period's grants."""
    return seconds // 2 if with_recent(session, project_id, seconds) > tiers.current(session).halves else 0


def with_recent(session: Session, project_id: int, seconds: int) -> int:
    """`seconds` with all that the project was granted within the period of the tiers, in GPU-seconds."""
    return recently_granted(session, [project_id])[project_id] + seconds


def recently_granted(session: Session, project_ids: Collection[int]) -> Mapping[int, int]:
    """GPU-seconds that each project was granted within the period of the tiers.

    Second halves that wait count too. What was returned since still counts.
    """
    since = utcnow() - tiers.current(session).period
    rows = session.execute(
        select(Allocation.project_id, func.sum(col(GrantRow.seconds)))
        .join(GrantRow, col(GrantRow.allocation_id) == Allocation.id)
        .where(
            col(Allocation.project_id).in_(project_ids),
            col(GrantRow.movement).in_((GrantMovement.DRAW, GrantMovement.COMMIT)),
            col(GrantRow.at) > since,
        )
        .group_by(col(Allocation.project_id))
    )
    return dict.fromkeys(project_ids, 0) | {project_id: int(seconds) for project_id, seconds in rows}


def has_granted(session: Session, project_id: int) -> bool:
    """Whether the project was ever granted GPU time, without which it cannot have published anything either."""
    granted = select(Allocation.id).where(Allocation.project_id == project_id, col(Allocation.grant_id).is_not(None))
    return session.scalars(granted.limit(1)).one_or_none() is not None


def close(session: Session, allocation: Allocation, to: AllocationState, **values: object) -> int:
    """End a live allocation; returns the GPU-seconds that go back to the grant: those neither spent nor reserved."""
    move(session, allocation, to, half_until=None, **values)
    return ledger.give_back(session, allocation.id, f"it was {to}") + ledger.lapse_half(session, allocation.id)


def move(session: Session, allocation: Allocation, to: AllocationState, **values: object) -> None:
    """Bring an allocation to another state by the table of transitions; raises ConflictError."""
    transition.move(session, allocation, to, TRANSITIONS, values, name=f"Allocation {allocation.id}")


def check_move(allocation: Allocation, to: AllocationState) -> None:
    """Raise ConflictError unless the table of transitions leads from the allocation's state to `to`."""
    transition.check(allocation, to, TRANSITIONS, name=f"Allocation {allocation.id}")


def tell(
    session: Session, allocation: Allocation, kind: str, *, by: Person | None = None, why: str = "", **told: object
) -> None:
    """Append an entry about the allocation to its project's record."""
    stream = record.project_stream(allocation.project_id)
    record.append(session, stream, kind, by=by, why=why, allocation=allocation.id, **told)


def require_live(allocation: Allocation) -> None:
    """Raise ConflictError unless the allocation is approved or exhausted: an exhausted one has not ended."""
    if allocation.state not in LIVE:
        raise ConflictError(f"Allocation {allocation.id} is {allocation.state}; this needs an approved one.")


def successor(session: Session, allocation_id: int) -> int:
    """The allocation that now pays for the runs of `allocation_id`: itself, or what renews it on the same pool.

    An allocation that has ended may be renewed too, by a request that was approved only after its end.
    """
    pays = load(session, allocation_id)
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


def able_to_pay(session: Session, project_id: int, seconds: int) -> Sequence[Allocation]:
    """The project's allocations from which `seconds` GPU-seconds can be paid now, the one with the most left first."""
    left = col(Balance.granted) - Balance.reserved - Balance.spent
    return session.scalars(
        select(Allocation)
        .join(Balance, col(Balance.allocation_id) == Allocation.id)
        .where(
            Allocation.project_id == project_id,
            Allocation.state == AllocationState.APPROVED,
            Allocation.until > utcnow(),
            left >= seconds,
        )
        .order_by(left.desc(), col(Allocation.id).desc())
    ).all()


def naming_another(session: Session, project_id: int, seconds: int) -> str:
    """The end of a refusal's sentence: which other allocation of the project could pay; empty where none can."""
    others = able_to_pay(session, project_id, max(seconds, 1))
    if not others:
        return ""
    return f" Allocation {others[0].id} on “{session.get_one(Pool, others[0].pool_id).name}” can pay for it."


def load(session: Session, allocation_id: int) -> Allocation:
    """The allocation's row; raises NotFoundError."""
    allocation = session.get(Allocation, allocation_id)
    if allocation is None:
        raise NotFoundError(f"There is no allocation {allocation_id}; /allocation list shows those of a project.")
    return allocation


def lock(session: Session, allocation_id: int) -> Allocation:
    """The allocation's row, locked so that two decisions on an allocation take turns; raises NotFoundError."""
    load(session, allocation_id)
    return session.get_one(Allocation, allocation_id, with_for_update={"key_share": True}, populate_existing=True)


def view(session: Session, allocation_id: int) -> AllocationView:
    """The allocation as cards show it; raises NotFoundError."""
    load(session, allocation_id)
    return _views(session, select(Allocation.id).where(Allocation.id == allocation_id))[0]


def of_project(session: Session, project_id: int) -> Sequence[AllocationView]:
    """The project's allocations, the newest first."""
    return _views(session, select(Allocation.id).where(Allocation.project_id == project_id))


def of_lead(session: Session, discord_id: int, *, limit: int = 25) -> Sequence[AllocationView]:
    """The newest allocations of all projects led by the person with this Discord id, the newest first."""
    led = (
        select(Allocation.id)
        .join(Project, col(Project.id) == Allocation.project_id)
        .join(Person, col(Person.id) == Project.lead_id)
        .where(Person.discord_id == str(discord_id))
        .order_by(col(Allocation.id).desc())
        .limit(limit)
    )
    return _views(session, led)


def _views(session: Session, ids: SelectOfScalar[int]) -> Sequence[AllocationView]:
    """The allocations whose ids a query selects, as cards show them, the newest first; one query reads them all."""
    requester, decider, endorser = aliased(Person), aliased(Person), aliased(Person)
    rows = session.execute(
        select(Allocation)
        .add_columns(col(Project.title), col(Pool.name), col(Pool.gpu_type), col(Grant.sponsor), Balance)
        .add_columns(col(requester.name), col(decider.name), col(endorser.name))
        .join(Project, col(Project.id) == Allocation.project_id)
        .join(Pool, col(Pool.id) == Allocation.pool_id)
        .join(requester, col(requester.id) == Allocation.requested_by)
        .outerjoin(Grant, col(Grant.id) == Allocation.grant_id)
        .outerjoin(Balance, col(Balance.allocation_id) == Allocation.id)
        .outerjoin(decider, col(decider.id) == Allocation.decided_by)
        .outerjoin(endorser, col(endorser.id) == Allocation.endorsed_by)
        .where(col(Allocation.id).in_(ids))
        .order_by(col(Allocation.id).desc())
        .execution_options(populate_existing=True)
    )
    return [
        AllocationView(
            id=allocation.id,
            project_id=allocation.project_id,
            project=project,
            pool=pool,
            gpu_type=gpu_type,
            requested_by=asked_by,
            seconds=allocation.seconds,
            until=allocation.until,
            justification=allocation.justification,
            state=AllocationState(allocation.state),
            decided_by=decided_by,
            reason=allocation.reason,
            sponsor=sponsor,
            account=ledger.account_of(balance),
            starter=allocation.starter_of is not None,
            renews=allocation.renews_id,
            endorsed_by=endorsed_by,
            half_until=allocation.half_until,
            report=allocation.report,
        )
        for allocation, project, pool, gpu_type, sponsor, balance, asked_by, decided_by, endorsed_by in rows
    ]


def _starts(session: Session, project: Project, person: Person, seconds: int, bounds: Tiers) -> bool:
    """Whether a request is a starter grant: small, the project's first one, and the person's first one in a while."""
    if seconds > bounds.starter:
        return False
    session.execute(select(Person.id).where(Person.id == person.id).with_for_update(key_share=True))
    return not _had_starter(session, project) and _last_starter(session, person) is None


def _had_starter(session: Session, project: Project) -> bool:
    """Whether the project has had its starter grant, which it gets once."""
    had = select(Allocation.id).where(col(Allocation.starter_of) == project.id)
    return session.scalars(had.limit(1)).one_or_none() is not None


def _last_starter(session: Session, person: Person) -> datetime | None:
    """When the person was given a starter grant that lasts, or whose period is not over; None for neither."""
    begun = utcnow() - timedelta(days=tiers.current(session).starter_period_days)
    lasts = (col(Allocation.state) == AllocationState.APPROVED) | (col(Allocation.decided_at) > begun)
    theirs = (col(Allocation.requested_by) == person.id) & col(Allocation.starter_of).is_not(None)
    return session.scalars(select(func.max(col(Allocation.decided_at))).where(theirs, lasts)).one_or_none()


def _check_renewable(session: Session, project: Project, allocation_id: int) -> None:
    earlier = load(session, allocation_id)
    if earlier.project_id != project.id:
        raise NotFoundError(f"Allocation {allocation_id} is not one of “{project.title}”.")
    require_live(earlier)


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
            col(Grant.seconds) - Grant.drawn - Grant.committed >= total,
        )
        .order_by(col(Grant.until))
    ).all()
    for source in candidates:
        with suppress(ConflictError):
            ledger.grant(session, allocation.id, source.id, seconds, committed=committed)
            session.refresh(source)  # its end may have changed before it was locked
            return source
    left = pools.largest(session, allocation.pool_id)
    raise ConflictError(f"No grant of this pool holds {in_hours(total)} GPU-hours any more; {in_hours(left)} are left.")


def _day(moment: datetime) -> str:
    return moment.date().isoformat()
