"""Changes to an allocation: asked for, decided once, and adjusted by an operator."""

from collections.abc import Callable
from typing import Any

import pytest

from broker.allocations import allocations, pools, requests
from broker.allocations.change_requests import ChangeState
from broker.allocations.ledger import Account
from broker.reviews import changes, reviews
from projects import lifecycle
from projects.errors import ConflictError, DomainError, ForbiddenError, InvalidError
from projects.people import Actor, LabRole
from tests.broker.lab import ADA, EMMY, GRACE, HOUR, STRANGER, Lab, in_days, request_id
from tests.broker.reviewing import ask_change, grant, pass_time, review, spend, told, view


def test_a_change_that_cannot_stand_changes_nothing(lab: Lab, subtests: pytest.Subtests) -> None:
    project = lab.project()
    allocation = lab.allocation(project, hours="2")
    asked = lab.request(project)
    refused: list[tuple[dict[str, str], str]] = [
        ({}, "more hours, a later end, or both"),
        *(({"hours": hours}, "above 0") for hours in ("-5", "0", "NaN", "inf")),
        *(({"hours": hours}, "draws on has 998 core-hours left; ask for at most that") for hours in ("999", "1e99")),
        ({"hours": "many"}, "Hours must be a number above 0, at most 998, such as"),
        ({"until": in_days(10)}, "ask for a later day"),
        ({"until": "soon"}, "year, month, day"),
        ({"hours": "1", "justification": " "}, "justification is empty"),
    ]
    before = lab.everything()
    for changed, sentence in refused:
        with subtests.test(**changed):
            with pytest.raises(InvalidError, match=sentence):
                ask_change(lab, allocation, ADA, **changed)
            assert lab.everything() == before
    with pytest.raises(ForbiddenError, match="Only the lead"):
        ask_change(lab, allocation, GRACE, hours="1")
    with pytest.raises(ConflictError, match="needs an approved one"):
        ask_change(lab, asked, hours="1")
    change = ask_change(lab, allocation, hours="1")
    with pytest.raises(ConflictError, match="already waiting"):
        ask_change(lab, allocation, hours="1")
    before = lab.everything()
    for hours in ("1.1", "-5", "NaN", "1e9"):
        with subtests.test(granted=hours):
            with pytest.raises(InvalidError):
                review(lab, changes.approve, change, hours=hours)
            assert lab.everything() == before
    with pytest.raises(ForbiddenError, match="Nobody decides"):
        review(lab, changes.approve, change, Actor(2, "Grace", frozenset({LabRole.REVIEWER})))
    assert lab.everything() == before


@pytest.mark.parametrize("end", ["approve", "decline", "withdraw"])
def test_a_change_is_decided_once(lab: Lab, end: str) -> None:
    allocation = lab.allocation(lab.project(), hours="2")
    change = ask_change(lab, allocation, hours="1")

    def withdraw_change() -> None:
        with lab.db.write() as session:
            changes.withdraw(session, ADA, change, reason="Not needed.")

    acts: dict[str, Callable[[], None]] = {
        "approve": lambda: review(lab, changes.approve, change),
        "decline": lambda: review(lab, changes.decline, change),
        "withdraw": withdraw_change,
    }
    acts[end]()
    before = lab.everything()
    for act in acts.values():
        with pytest.raises(ConflictError):
            act()
    assert lab.everything() == before
    with lab.db.read() as session:
        shown = changes.of_allocation(session, allocation)[0]
    ends = {"approve": ChangeState.APPROVED, "decline": ChangeState.DECLINED, "withdraw": ChangeState.WITHDRAWN}
    assert shown.state == ends[end]
    assert lab.account(allocation).granted == (3 if end == "approve" else 2) * HOUR


def test_a_large_change_takes_two_reviewers_by_what_it_comes_to(lab: Lab) -> None:
    allocation = lab.allocation(lab.project(), hours="90")
    change = ask_change(lab, allocation, hours="20")
    review(lab, changes.approve, change)
    assert lab.account(allocation).granted == 90 * HOUR
    with pytest.raises(ConflictError, match="already endorsed this request"):
        review(lab, changes.approve, change)
    review(lab, changes.approve, change, EMMY)
    assert lab.account(allocation).granted == 110 * HOUR
    assert grant(lab).granted == 110 * HOUR


def test_a_top_up_that_the_grant_does_not_hold(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.allocation(project, hours="2")
    change = ask_change(lab, allocation, hours="998")
    review(lab, changes.approve, change)
    lab.allocation(project, hours="2")
    before = lab.everything()
    with pytest.raises(ConflictError, match="the sponsor's grant has 996 left"):
        review(lab, changes.approve, change, EMMY)
    assert lab.everything() == before


def test_an_operators_adjustment(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.allocation(project, hours="2")
    spend(lab, allocation, HOUR)

    def adjust(seconds: int) -> None:
        with lab.db.write() as session:
            reviews.adjust(session, allocation, seconds, "Counted wrongly.")

    adjust(-HOUR // 2)
    adjust(60)
    assert lab.account(allocation) == Account(HOUR + HOUR // 2 + 60, 0, HOUR)
    assert grant(lab).granted == HOUR + HOUR // 2 + 60
    before = lab.everything()
    for seconds, sentence in (
        *((-HOUR, "has 0.516 left"), (1000 * HOUR, "grant has"), (0, "nothing")),
        *((1_000_000 * HOUR, "grant has"), (1_000_000 * HOUR + 1, "at most 1,000,000 hours")),
        *((sign * 10**30, "at most 1,000,000 hours") for sign in (1, -1)),
    ):
        with pytest.raises(DomainError, match=sentence):
            adjust(seconds)
    assert lab.everything() == before


def test_only_an_active_project_asks_for_a_change(lab: Lab) -> None:
    proposal = lab.proposal()
    starter = lab.request(proposal, hours="1")
    assert view(lab, starter).starter
    with pytest.raises(ConflictError, match="is proposed; only an active project can ask for a change"):
        ask_change(lab, starter, hours="500")
    project = lab.project(STRANGER)
    allocation = lab.allocation(project, lead=STRANGER)
    with lab.db.write() as session:
        lifecycle.pause(session, STRANGER, project, reason="A holiday.")
    with pytest.raises(ConflictError, match="is paused; only an active project"):
        ask_change(lab, allocation, STRANGER, until=in_days(50))


@pytest.mark.parametrize("end", ["revoked", "expired", "renewed", "stopped"])
def test_what_is_asked_of_an_allocation_ends_with_it(lab: Lab, end: str) -> None:
    project = lab.project()
    allocation = lab.allocation(project, hours="2")
    change = ask_change(lab, allocation, hours="1")
    if end == "revoked":
        review(lab, reviews.revoke, allocation)
    elif end == "renewed":
        with lab.db.write() as session:
            asked: dict[str, Any] = {"pool": "laptop", "hours": "2", "until": in_days(50), "justification": "On."}
            later = requests.request(session, ADA, request_id(), project_id=project, renews=allocation, **asked)
        lab.approve(later)
    elif end == "stopped":
        with lab.db.write() as session:
            lifecycle.stop(session, ADA, project, reason="No time.")
    days = 40 if end == "expired" else 0
    pass_time(lab, days=days)
    pass_time(lab, days=days)
    with lab.db.read() as session:
        found = changes.view(session, change)
    state = "expired" if end == "stopped" else end
    assert (found.state, found.reason) == (ChangeState.WITHDRAWN, f"its allocation is {state}")
    assert [entry["change"] for entry in told(lab, project, "allocation.change_withdrawn")] == [change]
    before = lab.everything()
    pass_time(lab, days=days)
    assert lab.everything() == before


def test_a_later_end_than_the_grants_is_no_change(lab: Lab) -> None:
    allocation = lab.allocation(lab.project(), hours="2")
    longer = ask_change(lab, allocation, until=in_days(50))
    with lab.db.write() as session:
        grant_id = session.get_one(allocations.Allocation, allocation).grant_id
        session.get_one(pools.Grant, grant_id).until = view(lab, allocation).until
    before = lab.everything()
    with pytest.raises(ConflictError, match="The sponsor's grant ends on"):
        review(lab, changes.approve, longer)
    assert lab.everything() == before
    review(lab, changes.decline, longer)
    with pytest.raises(ConflictError, match="The sponsor's grant ends on"):
        ask_change(lab, allocation, until=in_days(50))
