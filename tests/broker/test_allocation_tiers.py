"""The tiers of a request: a starter grant by policy, one reviewer, two, and the operator's bounds."""

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from sqlmodel import select

from broker.allocations import allocations, requests
from broker.allocations.allocations import AllocationState
from broker.allocations.ledger import Account
from broker.allocations.period_sums import PeriodSum
from broker.allocations.pools import GrantMovement, GrantRow
from broker.reports import review_context
from broker.reviews import changes, reviews
from projects import lifecycle, membership, policies
from projects.db.columns import utcnow
from projects.errors import ConflictError, ForbiddenError, InvalidError
from projects.people import Actor, LabRole
from tests.at_once import allowed, at_once
from tests.broker.lab import ADA, EMMY, GRACE, HOUR, ROSA, STRANGER, Lab, in_days, request_id
from tests.broker.reviewing import ask_change, grant, pass_time, review, spend, told, view


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
    with pytest.raises(ConflictError, match="already approved, by policy"):
        lab.approve(allocation)


def test_a_person_has_one_starter_grant_in_a_period(lab: Lab) -> None:
    first, second = lab.project(), lab.project(title="Another question")
    starter = lab.request(first, hours="1")
    waits = lab.request(second, hours="1")
    assert view(lab, waits).state == AllocationState.REQUESTED
    spend(lab, starter, HOUR)
    pass_time(lab)
    assert view(lab, lab.request(second, hours="1")).state == AllocationState.REQUESTED
    begin_again(lab, days=30)
    assert view(lab, lab.request(second, hours="1")).state == AllocationState.APPROVED
    assert view(lab, lab.request(first, hours="1")).state == AllocationState.REQUESTED  # once a project ever


def begin_again(lab: Lab, *, days: int) -> None:
    """Let all that was decided have been decided so many days ago."""
    with lab.db.write() as session:
        for row in session.scalars(select(allocations.Allocation)):
            if row.decided_at is not None:
                row.decided_at -= timedelta(days=days)


def test_who_spends_a_starter_grant_and_abandons_gets_no_second_one(lab: Lab) -> None:
    project = lab.proposal()
    starter = lab.request(project, hours="1")
    spend(lab, starter, HOUR)
    with lab.db.write() as session:
        lifecycle.complete(session, ADA, project, outcome="abandoned", learnt="To end things.")
    pass_time(lab)
    assert view(lab, starter).state != AllocationState.APPROVED
    again = lab.proposal(title="Another question")
    before = lab.everything()
    with pytest.raises(ConflictError, match=r"You had a starter grant on 20.*, and one person may have one in 30 days"):
        lab.request(again, hours="1")
    assert lab.everything() == before
    assert view(lab, lab.request(lab.proposal(GRACE), GRACE, hours="1")).starter
    begin_again(lab, days=29)
    with pytest.raises(ConflictError, match="one person may have one in 30 days"):
        lab.request(again, hours="1")
    lab.let("starter_period_days", 29)
    assert view(lab, lab.request(again, hours="1")).starter


def test_of_starter_requests_at_the_same_moment_one_is_granted(lab: Lab) -> None:
    projects = [lab.proposal(title=f"Question {n}") for n in range(4)]
    asked = [partial(lab.request, projects[n % 4], hours="1") for n in range(8)]
    assert sum(allowed(asked, ConflictError)) == 1
    assert grant(lab).granted == HOUR


def test_above_the_bound_it_takes_two_reviewers(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.request(project, hours="500")
    lab.approve(allocation, hours="300", reason="Worth it.")
    shown = view(lab, allocation)
    assert (shown.state, shown.endorsed_by, shown.account) == (AllocationState.REQUESTED, "Rosa", Account(0, 0, 0))
    assert told(lab, project, "allocation.endorsed")[0]["seconds"] == 300 * HOUR
    before = lab.everything()
    with pytest.raises(ConflictError, match="already endorsed this request"):
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
    with pytest.raises(ConflictError, match="already declined, by Emmy"):
        lab.approve(ended, hours="500", reviewer=Actor(6, "Third", frozenset({LabRole.REVIEWER})))
    lab.approve(part, hours="100")
    assert lab.account(part).granted == 100 * HOUR


def test_an_endorsement_of_one_who_has_joined_the_project_no_longer_counts(lab: Lab) -> None:
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

    def approve(reviewer: Actor) -> AllocationState:
        with lab.db.write() as session:
            asked: dict[str, Any] = {"hours": "200", "reason": "Yes."}
            return reviews.approve(session, reviewer, allocation, **asked)

    states = at_once([partial(approve, reviewer) for reviewer in (ROSA, EMMY)])
    assert sorted(states) == [AllocationState.APPROVED, AllocationState.REQUESTED]
    assert grant(lab).granted == 200 * HOUR


def alone(lab: Lab, project: int, hours: str, lead: Actor = ADA, *, renews: int | None = None) -> bool:
    """Whether one reviewer grants a new request of the project alone."""
    allocation = lab.request(project, lead, hours=hours, renews=renews)
    lab.approve(allocation, hours)
    return view(lab, allocation).state == AllocationState.APPROVED


def test_small_requests_pass_no_bound_that_one_large_request_does_not(lab: Lab) -> None:
    project, other = lab.project(), lab.project(EMMY, "Another question")
    assert alone(lab, project, "60")
    assert alone(lab, project, "40")  # at the bound
    assert not alone(lab, project, "2")
    assert alone(lab, lab.project(STRANGER, "A third question"), "100", STRANGER)
    asked = lab.request(other, EMMY, hours="150")
    lab.approve(asked, hours="100")  # a part within the bound
    assert lab.account(asked).granted == 100 * HOUR


def test_changes_renewals_and_other_pools_add_up_too(lab: Lab) -> None:
    lab.pool("cluster")
    project = lab.project()
    first = lab.allocation(project, "60")
    change = ask_change(lab, first, hours="30")
    review(lab, changes.approve, change)
    assert lab.account(first).granted == 90 * HOUR
    on_cluster = lab.request(project, hours="11", pool="cluster")
    lab.approve(on_cluster, hours="11")
    assert view(lab, on_cluster).endorsed_by == "Rosa"
    assert not alone(lab, project, "11", renews=first)
    review(lab, reviews.revoke, first)
    assert not alone(lab, project, "11")  # what was returned was granted all the same
    second = lab.allocation(project, "5")
    change = ask_change(lab, second, hours="10")  # the allocation comes to 15 hours, and the project to 105
    review(lab, changes.approve, change)
    assert lab.account(second).granted == 5 * HOUR
    review(lab, changes.approve, change, EMMY)
    assert lab.account(second).granted == 15 * HOUR


def test_grants_add_up_within_a_period_only(lab: Lab) -> None:
    project = lab.project()
    earlier, then = lab.request(project), utcnow() - timedelta(days=7)
    with lab.db.write() as session:
        drawn: dict[str, Any] = {"grant_id": 1, "allocation_id": earlier, "seconds": 90 * HOUR, "at": then}
        session.add(GrantRow(movement=GrantMovement.DRAW, **drawn))
    assert not alone(lab, project, "20")
    lab.let("tier_days", 8)
    assert not alone(lab, project, "20")
    lab.let("tier_days", 7)
    assert alone(lab, project, "20")


def test_small_requests_come_in_halves_where_one_large_request_would(lab: Lab) -> None:
    lab.let("halves_hours", 50)
    project = lab.project()
    first, second = lab.allocation(project, "30"), lab.allocation(project, "30")
    assert lab.account(first) == Account(30 * HOUR, 0, 0)
    assert lab.account(second) == Account(15 * HOUR, 0, 0, committed=15 * HOUR)
    review(lab, changes.approve, ask_change(lab, first, hours="10"))
    assert lab.account(first) == Account(35 * HOUR, 0, 0, committed=5 * HOUR)
    assert not alone(lab, project, "31")  # 60, 10 and 31 hours, of which halves wait


def approve_together(lab: Lab, asked: Sequence[int], hours: str) -> list[AllocationState]:
    """Approve requests at the same moment, each once, by two reviewers in turn; the states that they are in then."""

    def approve(n: int) -> AllocationState:
        with lab.db.write() as session:
            return reviews.approve(session, (ROSA, EMMY)[n % 2], asked[n], hours=hours, reason="Yes.")

    return at_once([partial(approve, n) for n in range(len(asked))])


def test_of_two_requests_approved_at_the_same_moment_one_waits_for_a_second_reviewer(lab: Lab) -> None:
    project = lab.project()
    asked = [lab.request(project, hours="60") for _ in range(4)]
    states = approve_together(lab, asked, "60")
    assert sorted(states) == [AllocationState.APPROVED, *[AllocationState.REQUESTED] * 3]
    assert grant(lab).granted == 60 * HOUR


def test_one_lead_slices_no_large_request_over_several_projects(lab: Lab) -> None:
    first, second, third = (lab.project(title=f"Question {n}") for n in range(3))
    assert alone(lab, first, "60")
    assert alone(lab, second, "40")  # at the bound
    assert not alone(lab, third, "2")
    assert alone(lab, lab.project(EMMY, "Another's"), "100", EMMY)
    lab.let("tier_days", 1)
    assert not alone(lab, third, "2")


def test_what_a_lead_asks_for_elsewhere_counts_until_it_is_decided(lab: Lab) -> None:
    first, second = lab.project(), lab.project(title="Another question")
    elsewhere, asked = lab.request(first, hours="90"), lab.request(second, hours="20")
    lab.approve(asked, "20")
    assert (view(lab, asked).state, view(lab, asked).endorsed_by) == (AllocationState.REQUESTED, "Rosa")
    lab.decline(elsewhere)
    assert alone(lab, second, "20")
    grown = ask_change(lab, lab.allocation(first, "5"), hours="60")
    assert not alone(lab, second, "20")
    review(lab, changes.withdraw, grown, ADA)
    assert alone(lab, second, "20")


def test_a_change_and_halves_count_what_the_lead_has_elsewhere(lab: Lab) -> None:
    first, second = lab.project(), lab.project(title="Another question")
    lab.allocation(first, "80")
    small = lab.allocation(second, "15")
    change = ask_change(lab, small, hours="10")
    review(lab, changes.approve, change)
    assert lab.account(small).granted == 15 * HOUR
    review(lab, changes.approve, change, EMMY)
    assert lab.account(small).granted == 25 * HOUR
    lab.let("halves_hours", 110)
    halved = lab.allocation(second, "10")
    assert lab.account(halved) == Account(5 * HOUR, 0, 0, committed=5 * HOUR)
    proposal = lab.proposal(title="A third question")
    assert lab.account(lab.request(proposal, hours="1")) == Account(HOUR, 0, 0)  # a starter grant comes in one piece


def hand_over(lab: Lab, project: int, lead: Actor, to: Actor) -> None:
    with lab.db.write() as session:
        membership.offer_lead(session, lead, project, to=str(to.discord_id), reason="Moving on.")
        membership.accept_lead(session, to, project)


def test_a_lead_who_has_handed_over_takes_their_requests_along(lab: Lab) -> None:
    """What was granted to the requester counts, whoever leads now; and what the project has counts for its lead."""
    first, second, third = lab.project(), lab.project(title="Another question"), lab.project(EMMY, "A third question")
    lab.allocation(first, "60")
    hand_over(lab, first, ADA, GRACE)
    assert not alone(lab, second, "50")
    hand_over(lab, third, EMMY, GRACE)
    assert not alone(lab, third, "50", GRACE)


def test_a_change_asked_for_by_an_interim_lead_counts_as_theirs(lab: Lab) -> None:
    first, third = lab.project(), lab.project(EMMY, "A third question")
    allocation = lab.allocation(first, "10")
    hand_over(lab, first, ADA, GRACE)
    review(lab, changes.approve, ask_change(lab, allocation, GRACE, hours="60"))
    hand_over(lab, first, GRACE, ADA)
    assert lab.account(allocation).granted == 70 * HOUR
    hand_over(lab, third, EMMY, GRACE)
    assert not alone(lab, third, "50", GRACE)


def test_of_requests_in_several_projects_approved_at_the_same_moment_none_passes_the_bound(lab: Lab) -> None:
    """No lock on a project makes these approvals take turns; the lock on the lead does."""
    asked = [lab.request(lab.project(title=f"Question {n}"), hours="26") for n in range(4)]
    assert set(approve_together(lab, asked, "26")) == {AllocationState.REQUESTED}
    assert grant(lab).granted == 0


def test_a_reviewer_is_told_what_the_grants_add_up_to(lab: Lab) -> None:
    project = lab.project()
    lab.allocation(project, "60")
    asked = lab.request(project, hours="50")
    with lab.db.read() as session:
        context = review_context.of_request(session, asked)
    assert (context.recent, context.with_this, context.days) == (60 * HOUR, 110 * HOUR, 30)
    assert (context.reviewers, context.one_reviewer, context.person) == (2, 100 * HOUR, None)
    elsewhere = lab.request(lab.project(title="Another question"), hours="30")
    with lab.db.read() as session:
        context = review_context.of_request(session, elsewhere)
    assert (context.recent, context.with_this, context.reviewers) == (0, 30 * HOUR, 2)
    assert context.person == PeriodSum(project=0, granted=60 * HOUR, asked=50 * HOUR, person="Ada")


def test_the_bounds_are_the_operators(lab: Lab) -> None:
    project = lab.project()
    with lab.db.write() as session:
        for name, value in (("starter_hours", "0"), ("one_reviewer_hours", "1.5"), ("halves_hours", "1.6")):
            policies.change(session, None, name, value, "A small lab.")
    with lab.db.write() as session:
        asked: dict[str, Any] = {"pool": "laptop", "hours": "1", "until": in_days(9), "justification": "j"}
        small = requests.request(session, ADA, request_id(), project_id=project, **asked)
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
    with pytest.raises(ConflictError, match="already declined"):
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
        with pytest.raises(ForbiddenError, match="Nobody decides on their own request"):
            review(lab, what, about, as_reviewer(ADA), **asking)
    assert lab.everything() == before
    lab.approve(asked, hours="1")
