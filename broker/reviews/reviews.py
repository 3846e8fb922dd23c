"""Reviews: reviewers' decisions on allocations, each with a public reason.

Nobody decides on a request of a project that they were in when it was made, or since. One reviewer decides up to a
size, which counts what the project, its lead and the requester were granted within a period (`period_sums`). Above it
the first consent is an endorsement, and the second reviewer grants at most the lesser of both amounts. A refusal by
either one ends the request.
"""

from sqlalchemy.orm import Session
from sqlmodel import col

from broker.allocations import allocations, awards, endorsements, ledger, period_sums, requests
from broker.allocations.allocations import LIVE, Allocation, AllocationState
from broker.allocations.endorsements import Endorsable, RolesNow, check_second, endorse
from broker.allocations.pools import Pool
from broker.allocations.requests import parse_hours
from broker.end_reasons import EndReason
from broker.runs import control
from broker.runs.runs import Run
from projects import people, projects, quotas, rights, text
from projects.db.columns import utcnow
from projects.errors import ConflictError, ForbiddenError, InvalidError, OverError
from projects.people import Actor, Person
from projects.policies import MOST_HOURS
from projects.quotas import QuotaKind
from projects.rights import Act


def require_reviewer(session: Session, actor: Actor, project_id: int, request: Endorsable) -> None:
    """Raise ForbiddenError unless the actor is a reviewer who may decide on the project's request. Only reads.

    Who was in the project when the request was made, or since, may not, also once they have left.
    """
    if actor.roles.isdisjoint(rights.MAY[Act.REVIEW]):
        raise ForbiddenError("Only compute reviewers can decide on requests; the admins assign the reviewers' role.")
    person = people.find(session, actor)
    if person is None:
        return
    if projects.is_in(session, person, project_id):
        raise ForbiddenError("Nobody decides on a request of their own project; another reviewer can.")
    if person.id == request.requested_by:  # a requester who has left the project still may not decide
        raise ForbiddenError("Nobody decides on their own request; another reviewer can.")
    if projects.was_in(session, person, project_id, since=request.created_at):
        raise ForbiddenError("You were in the project when this was asked for, or since; another reviewer can decide.")


def check_may_decide(session: Session, actor: Actor, allocation_id: int) -> None:
    """Raise unless the actor is a reviewer outside the project and the request is open. Only reads."""
    allocation = allocations.load(session, allocation_id)
    require_reviewer(session, actor, allocation.project_id, allocation)
    if allocation.state != AllocationState.REQUESTED:
        by = "policy" if allocation.decided_by is None else session.get_one(Person, allocation.decided_by).name
        raise OverError(f"This request was already {allocation.state}, by {by}.")


def check_may_approve(session: Session, actor: Actor, allocation_id: int) -> None:
    """Raise unless the actor may decide on the request and has not endorsed it already. Only reads."""
    check_may_decide(session, actor, allocation_id)
    check_second(session, actor, allocations.load(session, allocation_id))


def endorser(session: Session, allocation_id: int) -> str | None:
    """The Discord id of who has endorsed the request; None where nobody has."""
    return endorsements.endorser(session, allocations.load(session, allocation_id))


def approve(
    session: Session,
    actor: Actor,
    allocation_id: int,
    *,
    hours: str,
    reason: str,
    roles_now: RolesNow | None = None,
) -> AllocationState:
    """Approve the request in full or in part, or endorse a large one; returns the allocation's state.

    `roles_now` is as in `endorsements.endorse`.
    """
    projects.lock(session, allocations.load(session, allocation_id).project_id)  # its grants add up, one at a time
    renews = allocations.load(session, allocation_id).renews_id
    earlier = None if renews is None else allocations.lock(session, renews)
    allocation = allocations.lock(session, allocation_id)
    check_may_decide(session, actor, allocation_id)
    seconds = parse_hours(hours, allocation.seconds)
    if seconds > allocation.seconds:
        asked = allocations.view(session, allocation_id).unit.hours(allocation.seconds)
        raise InvalidError(f"The request is for {asked}; grant at most that.")
    if allocation.until <= utcnow():
        raise ConflictError(f"The end asked for, {allocation.until:%Y-%m-%d}, has passed; only a new request helps.")
    because = text.prose("The reason", reason, most=text.USUAL)
    if earlier is not None:
        control.hold(session, col(Run.allocation_id) == earlier.id)  # runs are locked before people
    reviewer = people.ensure(session, actor)
    beside = period_sums.of_request(session, allocation.project_id, allocation.requested_by).seconds
    size = beside + seconds
    if endorse(session, allocation, allocation.project_id, reviewer, seconds, size=size, roles_now=roles_now):
        pool = session.get_one(Pool, allocation.pool_id).name
        told = {"asked": allocation.seconds, "seconds": seconds, "pool": pool}
        allocations.tell(session, allocation, "allocation.endorsed", by=reviewer, why=because, **told)
        return AllocationState.REQUESTED
    if allocation.endorsed_seconds is not None:
        seconds = min(seconds, allocation.endorsed_seconds)
    awards.award(session, allocation, seconds, reviewer, because, size=beside + seconds)
    if earlier is not None:
        _renew(session, earlier, allocation)
    return AllocationState.APPROVED


def _renew(session: Session, earlier: Allocation, later: Allocation) -> None:
    """End an allocation that another one renews, unless it has ended; its runs go on with the new one."""
    carried = control.carry_over(session, earlier, later)
    if earlier.state not in LIVE:
        return
    returned = allocations.close(session, earlier, AllocationState.RENEWED)
    allocations.tell(session, earlier, "allocation.renewed", successor=later.id, returned=returned, runs=list(carried))


def decline(session: Session, actor: Actor, allocation_id: int, *, reason: str) -> None:
    """Decline the request, with a reason."""
    allocation = allocations.lock(session, allocation_id)
    check_may_decide(session, actor, allocation_id)
    because = text.prose("The reason", reason, most=text.USUAL)
    reviewer = people.ensure(session, actor)
    decided = {"decided_by": reviewer.id, "reason": because, "decided_at": utcnow()}
    allocations.move(session, allocation, AllocationState.DECLINED, **decided)
    pool = session.get_one(Pool, allocation.pool_id).name
    told = {"asked": allocation.seconds, "pool": pool}
    allocations.tell(session, allocation, "allocation.declined", by=reviewer, why=because, **told)


def ask(session: Session, actor: Actor, allocation_id: int, question: str) -> None:
    """Ask the project about its open request, in public."""
    allocation = allocations.lock(session, allocation_id)
    check_may_decide(session, actor, allocation_id)
    asked = text.prose("The question", question, most=text.USUAL)
    quotas.check(session, actor, QuotaKind.QUESTION, allocation.project_id)
    allocations.tell(session, allocation, "allocation.asked", by=people.ensure(session, actor), why=asked)


def answer(session: Session, actor: Actor, allocation_id: int, said: str) -> None:
    """Answer a reviewer's question about an open request; the requester and the project's lead may."""
    allocation = allocations.lock(session, allocation_id)
    person = check_may_answer(session, actor, allocation_id)
    answered = text.prose("The answer", said, most=text.USUAL)
    quotas.check(session, actor, QuotaKind.QUESTION, allocation.project_id)
    allocations.tell(session, allocation, "allocation.answered", by=person, why=answered)


def check_may_answer(session: Session, actor: Actor, allocation_id: int) -> Person:
    """The person of the actor: requester or lead, while the request is open; raises DomainError. Only reads."""
    allocation = allocations.load(session, allocation_id)
    person = requests.require_asker(session, actor, allocation.project_id, allocation.requested_by)
    if allocation.state != AllocationState.REQUESTED:
        raise OverError(f"Allocation {allocation_id} is {allocation.state}; reviewers can no longer ask about it.")
    return person


def check_may_revoke(session: Session, actor: Actor, allocation_id: int) -> None:
    """Raise unless the actor is a reviewer outside the project and the allocation lives. Only reads."""
    allocation = allocations.load(session, allocation_id)
    require_reviewer(session, actor, allocation.project_id, allocation)
    allocations.require_live(allocation)


def revoke(session: Session, actor: Actor, allocation_id: int, *, reason: str) -> None:
    """Revoke an allocation; free GPU-seconds return to the grant at once, reserved ones as the runs stop."""
    allocation = allocations.lock(session, allocation_id)
    require_reviewer(session, actor, allocation.project_id, allocation)
    because = text.prose("The reason", reason, most=text.USUAL)
    reviewer = people.ensure(session, actor)
    decided = {"decided_by": reviewer.id, "reason": because}
    control.hold(session, col(Run.allocation_id) == allocation_id)
    returned = allocations.close(session, allocation, AllocationState.REVOKED, **decided)
    allocations.tell(session, allocation, "allocation.revoked", by=reviewer, why=because, returned=returned)
    control.stop_all(session, allocation_id, EndReason.ALLOCATION_REVOKED, "its allocation was revoked")


def check_may_release_half(session: Session, actor: Actor, allocation_id: int) -> None:
    """Raise unless the actor is a reviewer, and a second half waits and was reported on. Only reads."""
    allocation = allocations.load(session, allocation_id)
    require_reviewer(session, actor, allocation.project_id, allocation)
    allocations.require_live(allocation)
    if allocation.half_until is None or allocation.half_until <= utcnow():
        raise ConflictError(f"Allocation {allocation_id} has no second half waiting.")
    if not allocation.report:
        raise ConflictError("The second half is released on a public report of progress; the lead writes it first.")


def release_half(session: Session, actor: Actor, allocation_id: int, *, reason: str) -> None:
    """Grant the second half of a large allocation, after a public report and before its deadline."""
    allocation = allocations.lock(session, allocation_id)
    check_may_release_half(session, actor, allocation_id)
    because = text.prose("The reason", reason, most=text.USUAL)
    reviewer = people.ensure(session, actor)
    seconds = ledger.release_half(session, allocation_id)
    allocation.half_until = None
    reopen(session, allocation)
    allocations.tell(session, allocation, "allocation.half_released", by=reviewer, why=because, seconds=seconds)


def adjust(session: Session, allocation_id: int, seconds: int, reason: str) -> None:
    """An operator's correction of a live allocation, by positive or negative GPU-seconds out of its grant or back."""
    allocation = allocations.lock(session, allocation_id)
    allocations.require_live(allocation)
    if abs(seconds) > MOST_HOURS * 3600:
        raise InvalidError(f"An adjustment is of at most {MOST_HOURS:,} hours, which are {MOST_HOURS * 3600:,} s.")
    because = text.prose("The reason", reason, most=text.USUAL)
    ledger.adjust(session, allocation_id, seconds, because)
    reopen(session, allocation)
    allocations.tell(session, allocation, "allocation.adjusted", why=because, seconds=seconds)


def reopen(session: Session, allocation: Allocation) -> None:
    """Make an exhausted allocation approved again if some GPU-seconds are left."""
    session.flush()
    if allocation.state == AllocationState.EXHAUSTED and ledger.account(session, allocation.id).left:
        allocations.move(session, allocation, AllocationState.APPROVED)
