"""Requests for GPU time: who may ask, for what and until when, and what policy grants at once."""

from datetime import datetime, timedelta

from sqlalchemy import func
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker.allocations import allocations, awards, pools, tiers
from broker.allocations.allocations import Allocation, AllocationState
from broker.allocations.tiers import Tiers
from broker.allocations.units import in_hours
from projects import parse, people, projects, quotas, rights, text
from projects.db.columns import utcnow
from projects.errors import ConflictError, InvalidError, NotFoundError, OverError
from projects.people import Actor, Person
from projects.projects import Project, Stage
from projects.quotas import QuotaKind

LONGEST = timedelta(days=366)
STARTER = "A starter grant, by policy."
MAY_START = (Stage.PROPOSED, Stage.RECRUITING, Stage.SCOPED, Stage.ACTIVE)


def parse_hours(value: str, most: int | None = None) -> int:
    """Hours of GPUs or cores as typed, such as “1.5”, in seconds. Raises InvalidError, which names the bound `most`, in
    seconds, where it is known; whoever knows it says why more is too much."""
    hours = parse.hours(value)
    if hours is None or hours <= 0:
        bound = "" if most is None else f", at most {in_hours(most)}"
        raise InvalidError(f"Hours must be a number above 0{bound}, such as 1.5.")
    seconds = int(hours * 3600)
    if seconds < 1:
        raise InvalidError("That is less than a second: ask for at least 0.001 hours.")
    return seconds


def parse_day(value: str) -> datetime:
    """The last second (UTC) of a day as typed, such as “2030-12-31”; raises InvalidError."""
    end = parse.day_end(value)
    if not utcnow() < end <= utcnow() + LONGEST:
        last = (utcnow() + LONGEST).date() - timedelta(days=1)
        raise InvalidError(f"The day must lie in the future, and no later than {last}; {end.date()} does not.")
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
    corrects: int | None = None,
) -> int:
    """Request `hours` of a pool until a day; returns the allocation's id. A repeated request returns the same id.

    Policy approves a project's first small request at once, as its starter grant. With `renews`, an approval ends that
    earlier allocation of the project. `corrects` is an open request of the project, which is withdrawn for this one;
    raises ConflictError where it is not open any more.
    """
    earlier = session.scalars(select(Allocation.id).where(Allocation.request_id == request_id)).one_or_none()
    if earlier is not None:
        return earlier
    projects.load(session, project_id)
    session.get_one(Project, project_id, with_for_update={"key_share": True}, populate_existing=True)
    corrected = None if corrects is None else allocations.lock(session, corrects)
    project = check_may_request(session, actor, project_id)
    if corrected is not None:
        _check_correctable(project, corrected)
    quotas.check(session, actor, QuotaKind.REQUEST)
    target = pools.named(session, pool)
    largest = pools.largest(session, target.id)
    seconds = parse_hours(hours, largest)
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
            f"at most {target.unit.hours(bounds.starter)}."
        )
    if seconds > largest:
        raise InvalidError(
            f"The grants of “{pool}” have {target.unit.hours(largest)} left for one allocation; ask for at most that."
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
    approved = awards.approve(session, allocation, seconds, None, STARTER, size=seconds) if starter else None
    quotas.check_project(session, QuotaKind.REQUEST, project.id)
    allocations.tell(session, allocation, "allocation.requested", by=person, why=because, **told)
    if approved is not None:
        allocations.tell(session, allocation, "allocation.approved", why=STARTER, **approved)
    if corrected is not None:
        _withdraw(session, corrected, person, f"Allocation {allocation.id} is asked for in its place.")
    return allocation.id


def check_may_request(session: Session, actor: Actor, project_id: int) -> Project:
    """The project, if the actor may request compute for it; raises ForbiddenError and ConflictError. Only reads."""
    project = projects.load(session, project_id)
    rights.require_lead(session, actor, project)
    if project.stage not in MAY_START:
        raise ConflictError(f"“{project.title}” is {project.stage}; only an active project can ask for compute.")
    return project


def withdraw(session: Session, actor: Actor, allocation_id: int, *, reason: str) -> None:
    """Withdraw an open request; the requester and the project's lead may."""
    allocation = allocations.lock(session, allocation_id)
    person = check_may_withdraw(session, actor, allocation_id)
    because = text.prose("The reason", reason, most=text.USUAL)
    _withdraw(session, allocation, person, because)


def report(session: Session, actor: Actor, allocation_id: int, said: str) -> None:
    """Publish a report on the results of an allocation; a second half is released on such a report."""
    allocation = allocations.lock(session, allocation_id)
    lead = check_may_ask_more(session, actor, allocation_id)
    allocation.report = text.prose("The report", said, most=text.LONG)
    session.flush()
    quotas.check(session, actor, QuotaKind.UPDATE, allocation.project_id)
    allocations.tell(session, allocation, "allocation.reported", by=lead, why=allocation.report)


def check_may_withdraw(session: Session, actor: Actor, allocation_id: int) -> Person:
    """The person of the actor, who must be the requester or the project's lead. Only reads.

    Raises ForbiddenError, and ConflictError unless the request is open.
    """
    allocation = allocations.load(session, allocation_id)
    person = require_asker(session, actor, allocation.project_id, allocation.requested_by)
    allocations.check_move(allocation, AllocationState.WITHDRAWN)
    return person


def check_may_ask_more(session: Session, actor: Actor, allocation_id: int) -> Person:
    """The lead, who may report on a live allocation and request a change of it. Only reads.

    Raises ForbiddenError, and ConflictError unless the allocation lives.
    """
    allocation = allocations.load(session, allocation_id)
    lead = rights.require_lead(session, actor, session.get_one(Project, allocation.project_id))
    allocations.require_live(allocation)
    return lead


def require_asker(session: Session, actor: Actor, project_id: int, asked_by: int) -> Person:
    """The person of the actor: the requester, while they work on the project, or its lead. Only reads.

    Raises ForbiddenError for everyone else.
    """
    person, project = people.find(session, actor), session.get_one(Project, project_id)
    if person is not None and person.id == asked_by and projects.works_on(session, person, project):
        return person
    return rights.require_lead(session, actor, project)


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


def _withdraw(session: Session, allocation: Allocation, person: Person, because: str) -> None:
    allocations.move(
        session, allocation, AllocationState.WITHDRAWN, decided_by=person.id, reason=because, decided_at=utcnow()
    )
    allocations.tell(session, allocation, "allocation.withdrawn", by=person, why=because, asked=allocation.seconds)


def _check_correctable(project: Project, earlier: Allocation) -> None:
    if earlier.project_id != project.id:
        raise NotFoundError(f"Allocation {earlier.id} is not one of “{project.title}”.")
    if earlier.state != AllocationState.REQUESTED:
        raise OverError(
            f"Allocation {earlier.id} is {earlier.state} already and can no longer be corrected; /allocation request "
            "asks again."
        )


def _check_renewable(session: Session, project: Project, allocation_id: int) -> None:
    earlier = allocations.load(session, allocation_id)
    if earlier.project_id != project.id:
        raise NotFoundError(f"Allocation {allocation_id} is not one of “{project.title}”.")
    allocations.require_live(earlier)
