"""Limits per person, and the ban list."""

import json
from datetime import datetime, timedelta

import pytest
from sqlalchemy import update
from sqlmodel import col, select

from broker.reviews import changes
from broker.runs.launching import Origin
from projects import lifecycle, limits, policies
from projects.errors import ConflictError, ForbiddenError, NotFoundError
from projects.people import Actor, LabRole
from projects.record import record
from projects.record.record import Payload
from tests.broker.lab import ADA, GRACE, ROSA, STRANGER, Lab, request_id

OMAR = Actor(50, "Omar", frozenset({LabRole.ADMIN}))


def ban(lab: Lab, who: Actor, by: Actor | None = OMAR) -> None:
    with lab.db.write() as session:
        limits.ban(session, by, who, "Spam.")


def unban(lab: Lab, who: Actor, by: Actor | None = OMAR) -> None:
    with lab.db.write() as session:
        limits.unban(session, by, who.discord_id, "It was a mistake.")


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
            changed = record.canonical(said | {"at": then.isoformat(timespec="milliseconds")})
            session.execute(update(Payload).where(col(Payload.entry_id) == row.entry_id).values(body=changed))


def test_who_is_banned_does_nothing_but_read(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.allocation(project)
    asked = lab.request(project)
    run = lab.launch(project, allocation_id=allocation)
    ban(lab, ADA)
    ban(lab, ROSA, None)
    ban(lab, STRANGER)
    before = lab.everything()
    acts = (
        lambda: lab.proposal(ADA, "Let me in"),
        lambda: lab.request(project),
        lambda: lab.launch(project, allocation_id=allocation),
        lambda: lab.cancel(run),
        lambda: lab.approve(asked, reviewer=ROSA),
        lambda: join(lab, STRANGER, project),
    )
    for act in acts:
        with pytest.raises(ForbiddenError, match="you are banned: Spam"):
            act()
    assert lab.everything() == before
    with lab.db.read() as session:
        assert lifecycle.view(session, project).lead.name == "Ada"
        told = [(entry.kind, entry.payload) for entry in record.since(session, record.LAB, 0)][-3:]
    assert [kind for kind, _ in told] == ["person.banned"] * 3
    assert told[0][1] is not None
    assert (told[0][1]["person"]["name"], told[0][1]["why"], told[0][1]["by"]["name"]) == ("Ada", "Spam.", "Omar")
    unban(lab, ADA)
    lab.cancel(run)


def join(lab: Lab, actor: Actor, project: int) -> None:
    with lab.db.write() as session:
        lifecycle.join(session, actor, project, min_people=2)


def test_only_admins_ban_and_nobody_twice(lab: Lab) -> None:
    lab.project()
    with pytest.raises(ForbiddenError, match="Only the admins"):
        ban(lab, ADA, GRACE)
    with pytest.raises(ConflictError, match="themselves"):
        ban(lab, OMAR, OMAR)
    with pytest.raises(ConflictError, match="not banned"):
        unban(lab, ADA)
    with pytest.raises(NotFoundError):
        unban(lab, Actor(404, "Nobody"))
    ban(lab, ADA)
    with pytest.raises(ConflictError, match="banned already"):
        ban(lab, ADA)


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
