"""The tiers of a request: a starter grant by policy, one reviewer, two, and the operator's bounds."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest

from broker.allocations import allocations
from broker.allocations.allocations import AllocationState
from broker.allocations.ledger import Account
from broker.reviews import changes, reviews
from projects import membership, policies
from projects.errors import ConflictError, ForbiddenError, InvalidError
from projects.people import Actor, LabRole
from tests.broker.lab import ADA, EMMY, GRACE, HOUR, ROSA, STRANGER, Lab, in_days, request_id
from tests.broker.reviewing import ask_change, grant, pass_time, review, spend, told, view
from tests.patience import PATIENCE


def test_a_starter_grant_is_approved_by_policy_at_once(lab: Lab) -> None:
    """Once a project, also before it has a channel; a second request, or a larger one, is not by policy."""
    proposal = lab.proposal()
    allocation = lab.request(proposal, hours="1")
    shown = view(lab, allocation)
    assert (shown.state, shown.decided_by, shown.starter) == (AllocationState.APPROVED, None, True)
    assert lab.account(allocation).left == HOUR
    assert lab.kinds(proposal)[-2:] == ["allocation.requested", "allocation.approved"]
    assert told(lab, proposal, "allocation.approved")[0]["why"] == "A starter grant, by policy."
    before = lab.everything()
    for hours in ("1", "0.5", "2"):
        with pytest.raises(ConflictError, match="only an active project can ask for more than one starter grant"):
            lab.request(proposal, hours=hours)
    assert lab.everything() == before
    with pytest.raises(ConflictError, match="approved already, by policy"):
        lab.approve(allocation)


def test_a_person_has_one_open_starter_grant(lab: Lab) -> None:
    first, second = lab.project(), lab.project(title="Another question")
    starter = lab.request(first, hours="1")
    waits = lab.request(second, hours="1")
    assert view(lab, waits).state == AllocationState.REQUESTED
    spend(lab, starter, HOUR)
    pass_time(lab)
    assert view(lab, lab.request(second, hours="1")).state == AllocationState.APPROVED
    assert view(lab, lab.request(first, hours="1")).state == AllocationState.REQUESTED  # once a project ever


def test_of_starter_requests_at_the_same_moment_one_is_granted(lab: Lab) -> None:
    projects = [lab.proposal(title=f"Question {n}") for n in range(4)]
    together = Barrier(8)

    def ask(n: int) -> bool:
        together.wait(PATIENCE)
        try:
            lab.request(projects[n % 4], hours="1")
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(8))) == 1
    assert grant(lab).granted == HOUR


def test_above_the_bound_it_takes_two_reviewers(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.request(project, hours="500")
    lab.approve(allocation, hours="300", reason="Worth it.")
    shown = view(lab, allocation)
    assert (shown.state, shown.endorsed_by, shown.account) == (AllocationState.REQUESTED, "Rosa", Account(0, 0, 0))
    assert told(lab, project, "allocation.endorsed")[0]["seconds"] == 300 * HOUR
    before = lab.everything()
    with pytest.raises(ConflictError, match="endorsed this request already"):
        lab.approve(allocation, hours="50")
    assert lab.everything() == before
    lab.approve(allocation, hours="400", reviewer=EMMY)
    assert lab.account(allocation).granted == 300 * HOUR  # the lesser of both
    assert told(lab, project, "allocation.approved")[0]["endorsed_by"] == "Rosa"


def test_either_of_two_reviewers_ends_a_request_and_a_small_part_needs_one(lab: Lab) -> None:
    project = lab.project()
    ended, part = lab.request(project, hours="500"), lab.request(project, hours="500")
    lab.approve(ended, hours="500")
    lab.decline(ended, reviewer=EMMY)
    with pytest.raises(ConflictError, match="declined already, by Emmy"):
        lab.approve(ended, hours="500", reviewer=Actor(6, "Third", frozenset({LabRole.REVIEWER})))
    lab.approve(part, hours="100")
    assert lab.account(part).granted == 100 * HOUR


def test_an_endorsement_of_one_who_has_joined_the_project_no_longer_counts(lab: Lab) -> None:
    from projects import lifecycle

    project = lab.project()
    allocation = lab.request(project, hours="500")
    lab.approve(allocation, hours="500")
    with lab.db.write() as session:
        lifecycle.join(session, ROSA, project, min_people=2)
    lab.approve(allocation, hours="500", reviewer=EMMY)
    assert (view(lab, allocation).state, view(lab, allocation).endorsed_by) == (AllocationState.REQUESTED, "Emmy")


def test_two_reviewers_at_the_same_moment_make_one_grant(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.request(project, hours="500")
    together = Barrier(2)

    def approve(reviewer: Actor) -> AllocationState:
        together.wait(PATIENCE)
        with lab.db.write() as session:
            asked: dict[str, Any] = {"hours": "200", "reason": "Yes."}
            return reviews.approve(session, reviewer, allocation, **asked)

    with ThreadPoolExecutor(2) as pool:
        states = list(pool.map(approve, (ROSA, EMMY)))
    assert sorted(states) == [AllocationState.APPROVED, AllocationState.REQUESTED]
    assert grant(lab).granted == 200 * HOUR


def test_the_bounds_are_the_operators(lab: Lab) -> None:
    project = lab.project()
    with lab.db.write() as session:
        for name, value in (("starter_hours", "0"), ("one_reviewer_hours", "1.5"), ("halves_hours", "1.6")):
            policies.change(session, None, name, value, "A small lab.")
    with lab.db.write() as session:
        asked: dict[str, Any] = {"pool": "laptop", "hours": "1", "until": in_days(9), "justification": "j"}
        small = allocations.request(session, ADA, request_id(), project_id=project, **asked)
    assert view(lab, small).state == AllocationState.REQUESTED
    other = lab.request(project, hours="2")
    for reviewer in (ROSA, EMMY):
        with lab.db.write() as session:
            decided: dict[str, Any] = {"hours": "2", "reason": "r"}
            reviews.approve(session, reviewer, other, **decided)
    assert lab.account(other) == Account(HOUR, 0, 0, committed=HOUR)


def test_a_reviewers_question_is_public(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.request(project)

    def ask(reviewer: Actor, question: str) -> None:
        with lab.db.write() as session:
            reviews.ask(session, reviewer, allocation, question)

    ask(ROSA, "Which sizes?")
    assert told(lab, project, "allocation.asked")[0]["why"] == "Which sizes?"
    with pytest.raises(InvalidError, match="question is empty"):
        ask(ROSA, " ")
    with pytest.raises(ForbiddenError):
        ask(STRANGER, "Why?")
    lab.decline(allocation)
    with pytest.raises(ConflictError, match="declined already"):
        ask(ROSA, "And now?")


def as_reviewer(actor: Actor) -> Actor:
    return Actor(actor.discord_id, actor.name, frozenset({LabRole.REVIEWER}))


def test_who_has_left_the_project_decides_nothing_that_they_asked_for(lab: Lab) -> None:
    project = lab.project()
    live, asked = lab.allocation(project, hours="200"), lab.request(project, hours="200")
    change = ask_change(lab, live, hours="1")
    with lab.db.write() as session:
        membership.offer_lead(session, ADA, project, to=str(GRACE.discord_id), reason="Moving on.")
        membership.accept_lead(session, GRACE, project)
        membership.leave(session, ADA, project)
    before = lab.everything()
    for what, about in (
        *((what, asked) for what in (reviews.approve, reviews.decline)),
        *((what, live) for what in (reviews.revoke, reviews.release_half)),
        *((what, change) for what in (changes.approve, changes.decline)),
    ):
        asking = {"hours": "1"} if what is reviews.approve else {}
        with pytest.raises(ForbiddenError, match="Nobody decides on what they have asked for themselves"):
            review(lab, what, about, as_reviewer(ADA), **asking)
    assert lab.everything() == before
    lab.approve(asked, hours="1")
