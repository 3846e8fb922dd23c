"""The scheduler tends allocations: warnings, expiry, exhaustion, each once."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

import pytest

from broker.allocations import allocations, ledger, requests
from broker.allocations.allocations import AllocationState
from broker.allocations.ledger import Account
from broker.reviews import changes, inventory
from projects.db.columns import utcnow
from projects.errors import ConflictError
from projects.people import Actor, LabRole
from projects.record import record, verification
from tests.at_once import at_once
from tests.broker.lab import HOUR, Lab, in_days
from tests.broker.reviewing import ask_change, grant, in_state, pass_time, review, spend, told, view
from tests.databases import until_one_waits_for_a_lock

ADMIN = Actor(9, "Omar", frozenset({LabRole.ADMIN}))


def test_expiry_returns_what_is_unspent(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.allocation(project, hours="2")
    spend(lab, allocation, 600)
    pass_time(lab, days=29)
    assert view(lab, allocation).state == AllocationState.APPROVED
    pass_time(lab, days=32)
    assert view(lab, allocation).state == AllocationState.EXPIRED
    assert lab.account(allocation) == Account(600, 0, 600)
    assert grant(lab).granted == 600
    assert told(lab, project, "allocation.expired")[0]["returned"] == 2 * HOUR - 600


def test_an_allocation_lasts_no_longer_than_its_grant(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.request(project, until=in_days(200))
    lab.approve(allocation)
    assert view(lab, allocation).until == grant(lab).until


def test_exhausted_and_brought_back_by_a_top_up(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.allocation(project, hours="2")
    spend(lab, allocation, 2 * HOUR)
    pass_time(lab)
    assert view(lab, allocation).state == AllocationState.EXHAUSTED
    change = ask_change(lab, allocation, hours="3", until=in_days(40))
    review(lab, changes.approve, change, hours="1", reason="An hour more.")
    shown = view(lab, allocation)
    assert (shown.state, shown.account) == (AllocationState.APPROVED, Account(3 * HOUR, 0, 2 * HOUR))
    assert shown.until.date().isoformat() == in_days(40)
    assert grant(lab).granted == 3 * HOUR
    assert lab.kinds(project)[-2:] == ["allocation.change_requested", "allocation.changed"]


def test_a_refund_brings_an_exhausted_allocation_back(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.allocation(project, hours="2")
    spend(lab, allocation, 2 * HOUR)
    pass_time(lab)
    with lab.db.write() as session:
        ledger.refund(session, allocation, 1, 1, HOUR, "The host died.")
    pass_time(lab)
    assert view(lab, allocation).state == AllocationState.APPROVED
    assert lab.kinds(project)[-2:] == ["allocation.exhausted", "allocation.reopened"]


def marks(lab: Lab, project: int) -> list[object]:
    return [entry.get("days", entry.get("percent")) for entry in told(lab, project, "allocation.warning")]


def test_warnings_before_the_end_come_once_each(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.request(project, until=in_days(40))
    lab.approve(allocation)
    for day in (0, 9, 11, 12, 27, 27, 34, 35):
        pass_time(lab, days=day)
    assert marks(lab, project) == [30, 14, 7]


def test_a_short_allocation_is_not_warned_of_what_it_never_had(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.request(project, until=in_days(10))
    lab.approve(allocation)
    for day in (0, 5, 6, 8):
        pass_time(lab, days=day)
    assert marks(lab, project) == [7]


def test_warnings_of_the_hours_come_once_each(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.allocation(project, hours="2")
    for run, percent in enumerate((79, 1, 1, 14, 1)):
        spend(lab, allocation, 72 * percent, run=run)
        pass_time(lab)
    assert marks(lab, project) == [80, 95]
    other = lab.allocation(project, hours="1")
    spend(lab, other, 3500, run=99)
    pass_time(lab)
    assert marks(lab, project) == [80, 95, 95]  # of two passed at once the one that matters


def test_two_schedulers_at_once_tend_once(lab: Lab) -> None:
    project = lab.project()
    warned, ended, unfunded = (lab.allocation(project, hours="2") for _ in range(3))
    spend(lab, warned, 6000, run=1)
    spend(lab, unfunded, 2 * HOUR, run=2)
    later = lab.request(project, until=in_days(5))
    lab.approve(later)
    with lab.db.write() as session:
        session.get_one(allocations.Allocation, ended).until = utcnow() - timedelta(seconds=1)
    at_once([partial(pass_time, lab)] * 4)
    kinds = lab.kinds(project)
    assert [kinds.count(f"allocation.{what}") for what in ("warning", "expired", "exhausted")] == [1, 1, 1]
    heads = lab.everything()
    pass_time(lab)
    assert lab.everything() == heads
    with lab.db.read() as session:
        assert verification.verify(session, record.project_stream(project)).ok


def test_a_grant_is_not_shortened_below_an_exhausted_allocation(lab: Lab) -> None:
    project = lab.project()
    allocation = in_state(lab, project, AllocationState.EXHAUSTED)
    grant_id = grant(lab).id
    asked = {"more_hours": "", "until": in_days(5), "reason": "Less."}
    with pytest.raises(ConflictError, match="it cannot end before"), lab.db.write() as session:
        inventory.change_grant(session, ADMIN, grant_id, **asked)
    assert view(lab, allocation).state == AllocationState.EXHAUSTED


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_an_allocation_ends_with_its_grant_also_where_that_was_just_moved(lab: Lab) -> None:
    """The approval waits for the transaction that moves the grant's end, and sees the new one."""
    asked = lab.request(lab.project(), until=in_days(30))
    with ThreadPoolExecutor(1) as pool:
        with lab.db.write() as session:
            inventory.change_grant(session, ADMIN, grant(lab).id, until=in_days(9), reason="Less.")
            approval = pool.submit(lab.approve, asked)
            until_one_waits_for_a_lock(lab.db)
        approval.result()
    assert view(lab, asked).until == requests.parse_day(in_days(9))
