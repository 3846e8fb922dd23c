"""The lives of allocations: tiers, two reviewers, halves, changes, ends, and nothing outside of the table."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from threading import Barrier, Event

import pytest
from sqlalchemy.orm import Session

from broker.allocations import allocations, ledger, pools
from broker.allocations.allocations import TRANSITIONS, AllocationState, AllocationView
from broker.allocations.ledger import Account
from broker.allocations.pools import GrantView
from broker.reviews import changes, expiry, inventory, reviews
from broker.reviews.changes import ChangeState
from broker.runs import attempts, control, settlement
from broker.runs.attempts import Ending, Progress
from broker.runs.runs import Run, RunState
from projects import lifecycle, membership, policies
from projects.db.database import utcnow
from projects.db.migrations import versions
from projects.errors import ConflictError, DomainError, ForbiddenError, InvalidError
from projects.people import Actor
from projects.record import record
from tests.broker.lab import ADA, EMMY, GRACE, HOUR, REVIEWERS, ROSA, STRANGER, Lab, in_days, request_id
from tests.patience import PATIENCE

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
        what(session, reviewer, allocation, **({"reason": "Because."} | changes), reviewer_role_id=REVIEWERS)


def told(lab: Lab, project: int, kind: str) -> list[dict[str, object]]:
    with lab.db.read() as session:
        entries = record.since(session, record.project_stream(project), 0, limit=1000)
    return [entry.payload or {} for entry in entries if entry.kind == kind]


def tend(lab: Lab, **later: float) -> None:
    expiry.tend(lab.db, utcnow() + timedelta(**later))


def spend(lab: Lab, allocation: int, seconds: int, *, run: int = 1, reserved: int | None = None) -> None:
    """One attempt's reservation, of which `seconds` are charged."""
    with lab.db.write() as session:
        ledger.reserve(session, allocation, run, 1, seconds if reserved is None else reserved)
        ledger.charge(session, allocation, run, 1, 1, seconds)


def withdraw(lab: Lab, allocation: int, actor: Actor = ADA) -> None:
    with lab.db.write() as session:
        allocations.withdraw(session, actor, allocation, reason="Changed our mind.")


def report(lab: Lab, allocation: int, actor: Actor = ADA, said: str = "Half of it works.") -> None:
    with lab.db.write() as session:
        allocations.report(session, actor, allocation, said)


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
        tend(lab)
    elif state == AllocationState.REVOKED:
        review(lab, reviews.revoke, allocation)
    elif state == AllocationState.EXPIRED:
        with lab.db.write() as session:
            expiry.tend_one(session, allocation, utcnow() + timedelta(days=40))
    elif state == AllocationState.RENEWED:
        with lab.db.write() as session:
            asked = {"pool": "laptop", "hours": "2", "until": in_days(50), "justification": "On."}
            later = allocations.request(session, ADA, request_id(), project_id=project, renews=allocation, **asked)
        lab.approve(later)
    assert view(lab, allocation).state == state
    return allocation


@pytest.mark.parametrize("before", AllocationState)
def test_nothing_outside_of_the_table_is_possible(lab: Lab, before: AllocationState, subtests: pytest.Subtests) -> None:
    project = lab.project()
    allocation = in_state(lab, project, before)
    unchanged = lab.everything()
    for to in set(AllocationState) - TRANSITIONS[before]:
        with subtests.test(to=to):
            with pytest.raises(ConflictError, match=f"is {before} and cannot become {to}"), lab.db.write() as session:
                allocations.move(session, allocations.lock(session, allocation), to)
            assert lab.everything() == unchanged
    acts: dict[str, tuple[AllocationState, Callable[[], object]]] = {
        "approve": (AllocationState.APPROVED, lambda: lab.approve(allocation)),
        "decline": (AllocationState.DECLINED, lambda: lab.decline(allocation)),
        "withdraw": (AllocationState.WITHDRAWN, lambda: withdraw(lab, allocation)),
        "revoke": (AllocationState.REVOKED, lambda: review(lab, reviews.revoke, allocation)),
    }
    for name, (to, act) in acts.items():
        if to not in TRANSITIONS[before] or (name == "approve" and before == AllocationState.EXHAUSTED):
            with subtests.test(act=name):
                with pytest.raises(ConflictError):
                    act()
                assert lab.everything() == unchanged
    assert grant(lab).seconds == 1000 * HOUR


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
    tend(lab)
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
        lab.approve(ended, hours="500", reviewer=Actor(6, "Third", frozenset({REVIEWERS})))
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
            asked = {"hours": "200", "reason": "Yes."}
            return reviews.approve(session, reviewer, allocation, **asked, reviewer_role_id=REVIEWERS)

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
        asked = {"pool": "laptop", "hours": "1", "until": in_days(9), "justification": "j"}
        small = allocations.request(session, ADA, request_id(), project_id=project, **asked)
    assert view(lab, small).state == AllocationState.REQUESTED
    other = lab.request(project, hours="2")
    for reviewer in (ROSA, EMMY):
        with lab.db.write() as session:
            decided = {"hours": "2", "reason": "r", "reviewer_role_id": REVIEWERS}
            reviews.approve(session, reviewer, other, **decided)  # type: ignore[arg-type]
    assert lab.account(other) == Account(HOUR, 0, 0, committed=HOUR)


def test_the_second_half_is_released_on_a_public_report(lab: Lab) -> None:
    project, allocation = large(lab)
    assert lab.account(allocation) == Account(HALF, 0, 0, committed=HALF)
    with pytest.raises(ConflictError, match="on a public report"):
        review(lab, reviews.release_half, allocation)
    with pytest.raises(ForbiddenError, match="Only the lead"):
        report(lab, allocation, GRACE)
    report(lab, allocation)
    with pytest.raises(ForbiddenError, match="Nobody decides"):
        review(lab, reviews.release_half, allocation, Actor(1, "Ada", frozenset({REVIEWERS})))
    with pytest.raises(ForbiddenError, match="Only compute reviewers"):
        review(lab, reviews.release_half, allocation, STRANGER)
    spend(lab, allocation, HALF)
    tend(lab)
    assert view(lab, allocation).state == AllocationState.EXHAUSTED
    review(lab, reviews.release_half, allocation, reason="Good progress.")
    assert lab.account(allocation) == Account(2 * HALF, 0, HALF)
    assert view(lab, allocation).state == AllocationState.APPROVED
    assert lab.kinds(project)[-1] == "allocation.half_released"
    with pytest.raises(ConflictError, match="no second half"):
        review(lab, reviews.release_half, allocation)


def test_the_second_half_returns_to_the_grant_at_its_deadline(lab: Lab) -> None:
    project, allocation = large(lab)
    with lab.db.read() as session:
        source = next(grant for grant in pools.grants(session) if grant.pool == "cluster")
    assert (source.granted, source.committed, source.left) == (HALF, HALF, 3 * HALF)
    tend(lab, days=14)
    assert lab.account(allocation).committed == HALF
    tend(lab, days=16)
    assert lab.account(allocation) == Account(HALF, 0, 0)
    with lab.db.read() as session:
        source = next(grant for grant in pools.grants(session) if grant.pool == "cluster")
    assert (source.granted, source.committed, source.left) == (HALF, 0, 4 * HALF)
    assert told(lab, project, "allocation.half_returned")[0]["returned"] == HALF
    with pytest.raises(ConflictError, match="no second half"):
        review(lab, reviews.release_half, allocation)


def test_release_and_deadline_at_the_same_moment_move_the_half_once(lab: Lab) -> None:
    _, allocation = large(lab)
    report(lab, allocation)
    together = Barrier(4)

    def act(n: int) -> None:
        together.wait(PATIENCE)
        try:
            if n % 2:
                tend(lab, days=16)
            else:
                review(lab, reviews.release_half, allocation, (ROSA, EMMY)[n // 2])
        except ConflictError:
            pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(act, range(4)))
    assert lab.account(allocation) in (Account(HALF, 0, 0), Account(2 * HALF, 0, 0))
    with lab.db.read() as session:
        source = next(grant for grant in pools.grants(session) if grant.pool == "cluster")
    assert (source.granted, source.committed) == (lab.account(allocation).granted, 0)


def test_a_revoked_allocation_keeps_what_runs_hold_until_they_end(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.request(project)
    lab.approve(allocation, hours="2")
    spend(lab, allocation, 100, reserved=HOUR)
    with pytest.raises(ForbiddenError):
        review(lab, reviews.revoke, allocation, ADA)
    review(lab, reviews.revoke, allocation, reason="The pool is needed.")
    assert lab.account(allocation) == Account(HOUR, HOUR - 100, 100)
    assert told(lab, project, "allocation.revoked")[0]["returned"] == HOUR
    with pytest.raises(ConflictError), lab.db.write() as session:
        ledger.reserve(session, allocation, 2, 1, 1)
    with lab.db.write() as session:
        ledger.release(session, allocation, 1, 1)
        ledger.refund(session, allocation, 1, 1, 40, "The host died.")
    tend(lab)
    assert lab.account(allocation) == Account(60, 0, 60)
    assert grant(lab).granted == 60
    tend(lab)
    assert lab.kinds(project).count("allocation.returned") == 1


def test_expiry_returns_what_is_unspent(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.allocation(project, hours="2")
    spend(lab, allocation, 600)
    tend(lab, days=29)
    assert view(lab, allocation).state == AllocationState.APPROVED
    tend(lab, days=32)
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
    tend(lab)
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
    tend(lab)
    with lab.db.write() as session:
        ledger.refund(session, allocation, 1, 1, HOUR, "The host died.")
    tend(lab)
    assert view(lab, allocation).state == AllocationState.APPROVED
    assert lab.kinds(project)[-2:] == ["allocation.exhausted", "allocation.reopened"]


def test_a_later_allocation_succeeds_an_earlier_one(lab: Lab) -> None:
    project = lab.project()
    earlier = lab.allocation(project, hours="2")
    spend(lab, earlier, 600)
    asked = {"pool": "laptop", "hours": "4", "until": in_days(50), "justification": "On we go."}
    with lab.db.write() as session:
        later = allocations.request(session, ADA, request_id(), project_id=project, renews=earlier, **asked)
    assert view(lab, earlier).state == AllocationState.APPROVED
    lab.approve(later, hours="4")
    assert (view(lab, earlier).state, view(lab, later).renews) == (AllocationState.RENEWED, earlier)
    assert lab.account(earlier) == Account(600, 0, 600)
    assert grant(lab).granted == 600 + 4 * HOUR
    stranger = lab.project(title="Somebody else’s")
    for project_id, sentence in ((project, "is renewed"), (stranger, "not one of")):
        with pytest.raises(DomainError, match=sentence), lab.db.write() as session:
            allocations.request(session, ADA, request_id(), project_id=project_id, renews=earlier, **asked)


def test_withdrawn_by_who_asked_or_leads(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.request(project)
    for other in (GRACE, ROSA, STRANGER):
        with pytest.raises(ForbiddenError, match="Only the lead"):
            withdraw(lab, allocation, other)
    withdraw(lab, allocation)
    shown = view(lab, allocation)
    assert (shown.state, shown.reason) == (AllocationState.WITHDRAWN, "Changed our mind.")
    with pytest.raises(ConflictError, match="withdrawn already, by Ada"):
        lab.approve(allocation)


def test_a_reviewers_question_is_public(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.request(project)

    def ask(reviewer: Actor, question: str) -> None:
        with lab.db.write() as session:
            reviews.ask(session, reviewer, allocation, question, reviewer_role_id=REVIEWERS)

    ask(ROSA, "Which sizes?")
    assert told(lab, project, "allocation.asked")[0]["why"] == "Which sizes?"
    with pytest.raises(InvalidError, match="question is empty"):
        ask(ROSA, " ")
    with pytest.raises(ForbiddenError):
        ask(STRANGER, "Why?")
    lab.decline(allocation)
    with pytest.raises(ConflictError, match="declined already"):
        ask(ROSA, "And now?")


def test_a_change_that_cannot_stand_changes_nothing(lab: Lab, subtests: pytest.Subtests) -> None:
    project = lab.project()
    allocation = lab.allocation(project, hours="2")
    asked = lab.request(project)
    refused = [
        ({}, "more GPU-hours, a later end, or both"),
        *(({"hours": hours}, "above 0") for hours in ("-5", "0", "NaN", "1e9", "inf")),
        ({"until": in_days(10)}, "ask for a later day"),
        ({"until": "soon"}, "year, month, day"),
        ({"hours": "1", "justification": " "}, "justification is empty"),
    ]
    before = lab.everything()
    for changed, sentence in refused:
        with subtests.test(**changed):
            with pytest.raises(InvalidError, match=sentence):
                ask_change(lab, allocation, **changed)
            assert lab.everything() == before
    with pytest.raises(ForbiddenError, match="Only the lead"):
        ask_change(lab, allocation, GRACE, hours="1")
    with pytest.raises(ConflictError, match="needs an approved one"):
        ask_change(lab, asked, hours="1")
    change = ask_change(lab, allocation, hours="1")
    with pytest.raises(ConflictError, match="asked for already"):
        ask_change(lab, allocation, hours="1")
    before = lab.everything()
    for hours in ("1.1", "-5", "NaN", "1e9"):
        with subtests.test(granted=hours):
            with pytest.raises(InvalidError):
                review(lab, changes.approve, change, hours=hours)
            assert lab.everything() == before
    with pytest.raises(ForbiddenError, match="Nobody decides"):
        review(lab, changes.approve, change, Actor(2, "Grace", frozenset({REVIEWERS})))
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
    with pytest.raises(ConflictError, match="endorsed this request already"):
        review(lab, changes.approve, change)
    review(lab, changes.approve, change, EMMY)
    assert lab.account(allocation).granted == 110 * HOUR
    assert grant(lab).granted == 110 * HOUR


def test_a_top_up_that_the_grant_does_not_hold(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.allocation(project, hours="2")
    change = ask_change(lab, allocation, hours="999")
    review(lab, changes.approve, change)
    before = lab.everything()
    with pytest.raises(ConflictError, match="the sponsor's grant has 998 left"):
        review(lab, changes.approve, change, EMMY)
    assert lab.everything() == before


def marks(lab: Lab, project: int) -> list[object]:
    return [entry.get("days", entry.get("percent")) for entry in told(lab, project, "allocation.warning")]


def test_warnings_before_the_end_come_once_each(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.request(project, until=in_days(40))
    lab.approve(allocation)
    for day in (0, 9, 11, 12, 27, 27, 34, 35):
        tend(lab, days=day)
    assert marks(lab, project) == [30, 14, 7]


def test_a_short_allocation_is_not_warned_of_what_it_never_had(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.request(project, until=in_days(10))
    lab.approve(allocation)
    for day in (0, 5, 6, 8):
        tend(lab, days=day)
    assert marks(lab, project) == [7]


def test_warnings_of_the_hours_come_once_each(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.allocation(project, hours="2")
    for run, percent in enumerate((79, 1, 1, 14, 1)):
        spend(lab, allocation, 72 * percent, run=run)
        tend(lab)
    assert marks(lab, project) == [80, 95]
    other = lab.allocation(project, hours="1")
    spend(lab, other, 3500, run=99)
    tend(lab)
    assert marks(lab, project) == [80, 95, 95]  # of two passed at once the one that matters


def test_two_schedulers_at_once_tend_once(lab: Lab) -> None:
    project = lab.project()
    warned, ended, dry = (lab.allocation(project, hours="2") for _ in range(3))
    spend(lab, warned, 6000, run=1)
    spend(lab, dry, 2 * HOUR, run=2)
    later = lab.request(project, until=in_days(5))
    lab.approve(later)
    with lab.db.write() as session:
        session.get_one(allocations.Allocation, ended).until = utcnow() - timedelta(seconds=1)
    together = Barrier(4)

    def round_(_: int) -> None:
        together.wait(PATIENCE)
        tend(lab)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(round_, range(4)))
    kinds = lab.kinds(project)
    assert [kinds.count(f"allocation.{what}") for what in ("warning", "expired", "exhausted")] == [1, 1, 1]
    heads = lab.everything()
    tend(lab)
    assert lab.everything() == heads
    with lab.db.read() as session:
        assert record.verify(session, record.project_stream(project)).ok


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
    for seconds, sentence in ((-HOUR, "has 0.516 left"), (1000 * HOUR, "grant has"), (0, "nothing")):
        with pytest.raises(DomainError, match=sentence):
            adjust(seconds)
    assert lab.everything() == before


def test_tables_go_down_and_up_with_all_of_it_in_them(lab: Lab) -> None:
    project, halved = large(lab)
    report(lab, halved)
    revoked = lab.request(project)
    lab.approve(revoked, hours="2")
    spend(lab, revoked, 600)
    with lab.db.write() as session:
        ledger.refund(session, revoked, 1, 1, 60, "The host died.")
    review(lab, reviews.revoke, revoked)
    ask_change(lab, halved, hours="1")
    withdraw(lab, lab.request(project))
    with lab.db.read() as session:
        left = {grant.id: grant.left + grant.committed for grant in pools.grants(session)}
    lab.db.migrate(f"-{sum(path.name[:4] >= '0004' for path in Path(versions.__path__[0]).glob('0*.py'))}")
    lab.db.migrate()
    with lab.db.read() as session:
        assert {grant.id: grant.left for grant in pools.grants(session)} == left
        for allocation in (halved, revoked):
            account, sums = ledger.account(session, allocation), ledger.totals(session, allocation_id=allocation)
            assert account.granted == sums[ledger.Movement.GRANT]
            assert account.spent == sums[ledger.Movement.CHARGE]
    assert lab.account(halved).left == HALF
    assert lab.account(revoked).left == 0
    spend(lab, halved, 60, run=7)


def test_half_of_the_time_is_the_deadline(lab: Lab) -> None:
    _, allocation = large(lab)
    shown = view(lab, allocation)
    assert shown.half_until is not None
    expected: datetime = utcnow() + (shown.until - utcnow()) / 2
    assert abs(shown.half_until - expected) < timedelta(minutes=1)


def as_reviewer(actor: Actor) -> Actor:
    return Actor(actor.discord_id, actor.name, frozenset({REVIEWERS}))


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


def test_runs_go_on_with_what_renews_their_allocation(lab: Lab) -> None:
    project = lab.project()
    earlier = lab.allocation(project, hours="2")
    runs, pauses, waits, rests = (lab.launch(project) for _ in range(4))
    running, pausing = lab.start(runs, 0), lab.start(pauses, 1)
    lab.pause(pauses)
    lab.pause(rests)
    asked = {"pool": "laptop", "hours": "4", "until": in_days(50), "justification": "On we go."}
    with lab.db.write() as session:
        later = allocations.request(session, ADA, request_id(), project_id=project, renews=earlier, **asked)
    lab.approve(later, hours="4")
    assert told(lab, project, "allocation.renewed")[0]["runs"] == [waits, rests]
    with lab.db.write() as session:
        assert not control.run_dry(session, waits)
    assert [lab.row(run).allocation_id for run in (runs, pauses, waits, rests)] == [earlier, earlier, later, later]
    lab.settle(runs, running, 60, Ending(75, "its node went down"))
    lab.settle(pauses, pausing, 60, Ending(75))
    assert [(lab.row(run).allocation_id, lab.row(run).state) for run in (runs, pauses)] == [
        (later, RunState.QUEUED),
        (later, RunState.PAUSED),
    ]
    for run in (rests, pauses):
        assert lab.resume(run).left == 4 * HOUR
    second = lab.start(runs, 0)
    lab.settle(runs, second, 60, Ending(70, "enough"))
    assert (lab.account(earlier).spent, lab.account(later).spent, lab.account(earlier).reserved) == (120, 60, 0)


def test_a_run_paused_for_want_of_hours_is_resumed_on_what_renews_them(lab: Lab) -> None:
    """Also one that was stranded before, on an allocation that had been renewed already."""
    project = lab.project()
    earlier = lab.allocation(project, hours="2")
    run = lab.launch(project)
    lab.pause(run)
    asked = {"pool": "laptop", "hours": "4", "until": in_days(50), "justification": "On we go."}
    with lab.db.write() as session:
        later = allocations.request(session, ADA, request_id(), project_id=project, renews=earlier, **asked)
    lab.approve(later, hours="4")
    with lab.db.write() as session:
        session.get_one(Run, run).allocation_id = earlier
    lab.resume(run)
    assert lab.row(run).allocation_id == later


@pytest.mark.parametrize("end", ["revoked", "expired", "renewed", "stopped"])
def test_what_is_asked_of_an_allocation_ends_with_it(lab: Lab, end: str) -> None:
    project = lab.project()
    allocation = lab.allocation(project, hours="2")
    change = ask_change(lab, allocation, hours="1")
    if end == "revoked":
        review(lab, reviews.revoke, allocation)
    elif end == "renewed":
        with lab.db.write() as session:
            asked = {"pool": "laptop", "hours": "2", "until": in_days(50), "justification": "On."}
            later = allocations.request(session, ADA, request_id(), project_id=project, renews=allocation, **asked)
        lab.approve(later)
    elif end == "stopped":
        with lab.db.write() as session:
            lifecycle.stop(session, ADA, project, reason="No time.", moderator_role_id=0)
    days = 40 if end == "expired" else 0
    tend(lab, days=days)
    tend(lab, days=days)
    with lab.db.read() as session:
        found = changes.view(session, change)
    state = "expired" if end == "stopped" else end
    assert (found.state, found.reason) == (ChangeState.WITHDRAWN, f"its allocation is {state}")
    assert [entry["change"] for entry in told(lab, project, "allocation.change_withdrawn")] == [change]
    before = lab.everything()
    tend(lab, days=days)
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


def test_a_grant_is_not_shortened_below_an_exhausted_allocation(lab: Lab) -> None:
    project = lab.project()
    allocation = in_state(lab, project, AllocationState.EXHAUSTED)
    grant_id = grant(lab).id
    admin = Actor(9, "Omar", frozenset({7}))
    asked = {"more_hours": "", "until": in_days(5), "reason": "Less."}
    with pytest.raises(ConflictError, match="it cannot end before"), lab.db.write() as session:
        inventory.change_grant(session, admin, grant_id, **asked, admin_role_id=7)
    assert view(lab, allocation).state == AllocationState.EXHAUSTED


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_an_allocation_ends_with_its_grant_also_where_that_was_just_moved(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = lab.request(lab.project(), until=in_days(30))
    sooner = utcnow() + timedelta(days=9)
    draw = ledger.grant

    def late(session: Session, allocation_id: int, grant_id: int, seconds: int, *, committed: int = 0) -> None:
        with lab.db.write() as other:
            other.get_one(pools.Grant, grant_id).until = sooner
        draw(session, allocation_id, grant_id, seconds, committed=committed)

    monkeypatch.setattr(ledger, "grant", late)
    lab.approve(asked)
    assert view(lab, asked).until == sooner


def test_an_allocation_is_revoked_while_a_supervisor_settles_its_run(lab: Lab, project: int, allocation: int) -> None:
    run = lab.launch(project)
    token, waits, locked = lab.start(run, 0), lab.launch(project), Event()

    def settle() -> None:
        with lab.db.write() as session:
            attempts.lock(session, run)
            locked.set()
            time.sleep(0.5)  # until the other one has come to wait for the run
            settlement.settle(session, run, token, 60, Progress(0, 0), Ending(0), 3)

    with ThreadPoolExecutor(1) as pool:
        settled = pool.submit(settle)
        assert locked.wait(PATIENCE)
        review(lab, reviews.revoke, allocation)
        settled.result()
    assert (lab.run(run).state, lab.run(waits).state) == (RunState.FINISHED, RunState.PAUSED)
    tend(lab)
    assert lab.account(allocation) == Account(60, 0, 60)
