"""What the tests of allocations do beside the lab: review, report, spend, and let time pass."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from broker.allocations import allocations, ledger, pools, requests
from broker.allocations.allocations import AllocationState, AllocationView
from broker.allocations.pools import GrantView
from broker.reviews import allocation_expiry, changes, reviews
from projects.db.columns import utcnow
from projects.people import Actor
from projects.record import record
from tests.broker.lab import ADA, HOUR, ROSA, Lab, in_days, request_id

LARGE = "2000"
HALF = 1000 * HOUR


def view(lab: Lab, allocation: int) -> AllocationView:
    with lab.db.read() as session:
        return allocations.view(session, allocation)


def grant(lab: Lab) -> GrantView:
    """The lab's first grant, its parts held against one another and against its allocations."""
    with lab.db.read() as session:
        found = min(pools.grants(session), key=lambda grant: grant.id)
        held = [
            ledger.account(session, row.id)
            for row in session.query(allocations.Allocation).filter_by(grant_id=found.id)
        ]
    assert found.seconds == found.granted + found.committed + found.left
    assert found.granted == sum(account.granted for account in held)
    assert found.committed == sum(account.committed for account in held)
    assert min(found.granted, found.committed, found.left) >= 0
    return found


def review(lab: Lab, what: Callable[..., object], allocation: int, reviewer: Actor = ROSA, **changes: str) -> None:
    with lab.db.write() as session:
        what(session, reviewer, allocation, **({"reason": "Because."} | changes))


def told(lab: Lab, project: int, kind: str) -> list[dict[str, object]]:
    with lab.db.read() as session:
        entries = record.since(session, record.project_stream(project), 0, limit=1000)
    return [entry.payload or {} for entry in entries if entry.kind == kind]


def pass_time(lab: Lab, **later: float) -> None:
    allocation_expiry.update_all(lab.db, utcnow() + timedelta(**later))


def spend(lab: Lab, allocation: int, seconds: int, *, run: int = 1, reserved: int | None = None) -> None:
    """One attempt's reservation, of which `seconds` are charged."""
    with lab.db.write() as session:
        ledger.reserve(session, allocation, run, 1, seconds if reserved is None else reserved)
        ledger.charge(session, allocation, run, 1, 1, seconds)


def withdraw(lab: Lab, allocation: int, actor: Actor = ADA) -> None:
    with lab.db.write() as session:
        requests.withdraw(session, actor, allocation, reason="Changed our mind.")


def report(lab: Lab, allocation: int, actor: Actor = ADA, said: str = "Half of it works.") -> None:
    with lab.db.write() as session:
        requests.report(session, actor, allocation, said)


def ask_change(lab: Lab, allocation: int, actor: Actor = ADA, **asked: str) -> int:
    with lab.db.write() as session:
        return changes.request(session, actor, request_id(), allocation, **({"justification": "More."} | asked))


def large(lab: Lab) -> tuple[int, int]:
    """A project with an allocation in two halves of a thousand hours."""
    lab.pool("cluster", granted=5000 * HOUR)
    project = lab.project()
    allocation = lab.request(project, hours=LARGE, pool="cluster")
    lab.consent(allocation, LARGE)
    return project, allocation


def in_state(lab: Lab, project: int, state: AllocationState) -> int:
    """An allocation that has come to a state by the ways there are."""
    allocation = lab.request(project, hours="5")
    if state == AllocationState.DECLINED:
        lab.decline(allocation)
    elif state == AllocationState.WITHDRAWN:
        withdraw(lab, allocation)
    elif state != AllocationState.REQUESTED:
        lab.approve(allocation, hours="2")
    if state == AllocationState.EXHAUSTED:
        spend(lab, allocation, 2 * HOUR, run=allocation)
        pass_time(lab)
    elif state == AllocationState.REVOKED:
        review(lab, reviews.revoke, allocation)
    elif state == AllocationState.EXPIRED:
        with lab.db.write() as session:
            allocation_expiry.update_one(session, allocation, utcnow() + timedelta(days=40))
    elif state == AllocationState.RENEWED:
        with lab.db.write() as session:
            asked: dict[str, Any] = {"pool": "laptop", "hours": "2", "until": in_days(50), "justification": "On."}
            later = requests.request(session, ADA, request_id(), project_id=project, renews=allocation, **asked)
        lab.approve(later)
    assert view(lab, allocation).state == state
    return allocation
