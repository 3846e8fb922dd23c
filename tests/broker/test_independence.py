"""Nobody decides on what their own project asked for, also after they left; both of two reviewers must be able to."""

from collections.abc import Callable

import pytest
from sqlalchemy.orm import Session

from broker.allocations import allocations
from broker.allocations.allocations import AllocationState
from broker.allocations.change_requests import ChangeState
from broker.reviews import changes, reviews
from projects import bans, membership
from projects.errors import ConflictError, ForbiddenError
from projects.people import Actor, LabRole
from tests.broker.lab import ADA, EMMY, GRACE, ROSA, Lab
from tests.broker.reviewing import LARGE, ask_change, large, report, review, view

KURT = Actor(7, "Kurt", frozenset({LabRole.REVIEWER}))
WAS_IN = "You were in the project when this was asked for, or since; another reviewer can decide"


def as_reviewer(actor: Actor) -> Actor:
    return Actor(actor.discord_id, actor.name, frozenset({LabRole.REVIEWER}))


def decisions(asked: int, live: int, change: int) -> list[tuple[Callable[..., object], int, dict[str, str]]]:
    """Every decision of a reviewer: on a request, on a live allocation, on a change."""
    return [
        (reviews.approve, asked, {"hours": "1"}),
        (reviews.decline, asked, {}),
        (reviews.revoke, live, {}),
        (reviews.release_half, live, {}),
        (changes.approve, change, {}),
        (changes.decline, change, {}),
    ]


def checks(asked: int, live: int, change: int) -> list[tuple[Callable[[Session, Actor, int], object], int]]:
    """What is asked before a form of these decisions opens."""
    return [
        (reviews.check_may_approve, asked),
        (reviews.check_may_decide, asked),
        (reviews.check_may_revoke, live),
        (reviews.check_may_release_half, live),
        (changes.check_may_approve, change),
        (changes.check_may_decide, change),
    ]


@pytest.mark.parametrize("how", ["left before", "left after", "came and went", "removed"])
def test_who_was_in_the_project_at_the_request_or_since_decides_nothing(lab: Lab, how: str) -> None:
    """A reviewer who leaves, approves and joins again is refused; a stay before the request does not count."""
    lab.pool("cluster", granted=5000 * 3600)
    project = lab.project()
    if how == "left before":
        lab.join(project, ROSA)
        lab.leave(project, ROSA)
    if how in {"left after", "removed"}:
        lab.join(project, ROSA)
    live = lab.request(project, hours=LARGE, pool="cluster")
    for reviewer in (EMMY, KURT):
        lab.approve(live, LARGE, reviewer)
    report(lab, live)
    asked, change = lab.request(project, hours="5"), ask_change(lab, live, hours="1")
    if how == "left after":
        lab.leave(project, ROSA)
    elif how == "removed":
        lab.remove(project, ROSA)
    elif how == "came and went":
        lab.join(project, ROSA)
        lab.leave(project, ROSA)
    if how == "left before":
        for check, about in checks(asked, live, change):
            with lab.db.read() as session:
                check(session, ROSA, about)
        lab.approve(asked)
        return
    before = lab.everything()
    for what, about, given in decisions(asked, live, change):
        with pytest.raises(ForbiddenError, match=WAS_IN):
            review(lab, what, about, ROSA, **given)
    for check, about in checks(asked, live, change):
        with pytest.raises(ForbiddenError, match=WAS_IN), lab.db.read() as session:
            check(session, ROSA, about)
    assert lab.everything() == before
    lab.join(project, ROSA)
    with pytest.raises(ForbiddenError, match="Nobody decides on a request of their own project"):
        lab.approve(asked)


def test_a_former_lead_who_has_left_decides_nothing_that_the_next_one_asked_for(lab: Lab) -> None:
    project = lab.project()
    with lab.db.write() as session:
        membership.offer_lead(session, ADA, project, to=str(GRACE.discord_id), reason="Moving on.")
        membership.accept_lead(session, GRACE, project)
    asked = lab.request(project, GRACE, hours="5")
    lab.leave(project, ADA)
    with pytest.raises(ForbiddenError, match=WAS_IN):
        lab.approve(asked, reviewer=as_reviewer(ADA))
    later = lab.request(project, GRACE, hours="6")
    lab.approve(later, reviewer=as_reviewer(ADA))  # she had left by then


def test_a_renewal_is_a_request_of_its_own(lab: Lab) -> None:
    project = lab.project()
    lab.join(project, ROSA)
    first = lab.request(project, hours="5")
    lab.approve(first, reviewer=EMMY)
    renewal = lab.request(project, hours="6", renews=first)
    lab.leave(project, ROSA)
    with pytest.raises(ForbiddenError, match=WAS_IN):
        lab.approve(renewal)


def test_an_endorsement_counts_while_its_reviewer_may_decide(lab: Lab) -> None:
    """Banned, out of the role, out of the server, or in the project since: the second consent is then the first."""

    def ban(project: int) -> None:
        with lab.db.write() as session:
            bans.ban(session, None, ROSA, "Spam.")

    def unban(project: int) -> None:
        with lab.db.write() as session:
            bans.unban(session, None, ROSA.discord_id, "A mistake.")

    def come_and_go(project: int) -> None:
        lab.join(project, ROSA)
        lab.leave(project, ROSA)

    rosa = str(ROSA.discord_id)
    nothing: Callable[[int], None] = lambda project: None  # noqa: E731
    admin = frozenset({LabRole.ADMIN})
    for meanwhile, after, roles_now, counts in (
        (nothing, nothing, None, True),
        (nothing, nothing, {}, True),
        (nothing, nothing, {rosa: ROSA.roles}, True),
        (nothing, nothing, {rosa: frozenset()}, False),
        (nothing, nothing, {rosa: admin}, False),
        (ban, unban, {rosa: ROSA.roles}, False),
        (come_and_go, nothing, {rosa: ROSA.roles}, False),
    ):
        project = lab.project()
        allocation = lab.request(project, hours="150")
        lab.approve(allocation, hours="120")
        meanwhile(project)
        with lab.db.read() as session:
            assert reviews.endorser(session, allocation) == rosa
        with lab.db.write() as session:
            state = reviews.approve(session, EMMY, allocation, hours="120", reason="Yes.", roles_now=roles_now)
        after(project)
        assert (state == AllocationState.APPROVED) == counts
        if not counts:
            assert view(lab, allocation).endorsed_by == "Emmy"
            with pytest.raises(ConflictError, match="already endorsed this request"):
                lab.approve(allocation, hours="120", reviewer=EMMY)
            lab.approve(allocation, hours="120", reviewer=KURT)
            assert view(lab, allocation).state == AllocationState.APPROVED
        review(lab, reviews.revoke, allocation, KURT)


def test_an_endorsement_of_a_change_lapses_alike(lab: Lab) -> None:
    project, live = large(lab)
    for number, roles in enumerate((frozenset[LabRole](), ROSA.roles)):
        change = ask_change(lab, live, hours="100")
        review(lab, changes.approve, change, ROSA)
        with lab.db.write() as session:
            assert changes.endorser(session, change) == str(ROSA.discord_id)
            now = {str(ROSA.discord_id): roles}
            state = changes.approve(session, EMMY, change, reason="Yes.", roles_now=now)
        assert state == (ChangeState.APPROVED if number else ChangeState.REQUESTED)
        if not number:
            review(lab, changes.approve, change, KURT)
    with lab.db.read() as session:
        assert allocations.load(session, live).project_id == project
