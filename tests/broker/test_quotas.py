"""Quotas: what one person may have open, or ask for in a day."""

import json
from datetime import datetime, timedelta

import pytest
from sqlalchemy import update
from sqlmodel import col, select

from broker.reviews import changes
from broker.runs.launching import Origin
from projects import lifecycle, policies
from projects.errors import ConflictError
from projects.record import hash_chain
from projects.record.record import Payload
from tests.broker.lab import ADA, GRACE, Lab, request_id


def policy(lab: Lab, name: str, value: int) -> None:
    with lab.db.write() as session:
        policies.change(session, None, name, str(value), "Room for more.")


def test_nobody_has_too_many_open_proposals(lab: Lab) -> None:
    for number in range(5):
        lab.proposal(ADA, f"Question {number}")
    with pytest.raises(ConflictError, match="5 of your proposals are not active yet"):
        lab.proposal(ADA, "One more")
    lab.proposal(GRACE, "Another's")
    with lab.db.write() as session:
        lifecycle.complete(session, ADA, 1, outcome="abandoned", learnt="To end things.")
    lab.proposal(ADA, "One more")


def test_nobody_asks_for_compute_or_launches_without_end(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.allocation(project, "10")
    lab.request(project)
    policy(lab, "most_requests_a_day", 3)
    lab.request(project)
    with pytest.raises(ConflictError, match="3 requests for compute a day; the next one can be at"):
        lab.request(project)
    policy(lab, "most_launches_a_day", 6)
    for _ in range(6):
        lab.launch(project, allocation_id=allocation)
    with pytest.raises(ConflictError, match="6 launches a day"):
        lab.launch(project, allocation_id=allocation)
    lab.launch(project, GRACE, allocation_id=allocation)
    yesterday(lab)
    lab.launch(project, allocation_id=allocation)


def yesterday(lab: Lab) -> None:
    """Let all that is recorded have happened a day ago."""
    with lab.db.write() as session:
        for row in session.scalars(select(Payload)):
            assert row.body is not None
            said = json.loads(row.body)
            then = datetime.fromisoformat(said["at"]) - timedelta(days=1)
            changed = hash_chain.canonical(said | {"at": then.isoformat(timespec="milliseconds")})
            session.execute(update(Payload).where(col(Payload.entry_id) == row.entry_id).values(body=changed))


def test_forks_count_as_launches_and_changes_as_requests(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.allocation(project, "10")
    parent = lab.launch(project)
    policy(lab, "most_launches_a_day", 3)
    for _ in range(2):
        lab.launch(project, origin=Origin(parent, 5))
    for origin in (None, Origin(parent, 5)):
        with pytest.raises(ConflictError, match="3 launches a day"):
            lab.launch(project, origin=origin)
    policy(lab, "most_requests_a_day", 2)
    asked = {"justification": "More.", "hours": "1"}
    with lab.db.write() as session:
        change = changes.request(session, ADA, request_id(), allocation, **asked)
        changes.withdraw(session, ADA, change, reason="Less.")
    with pytest.raises(ConflictError, match="2 requests for compute a day"), lab.db.write() as session:
        changes.request(session, ADA, request_id(), allocation, **asked)
    with pytest.raises(ConflictError, match="2 requests for compute a day"):
        lab.request(project)
