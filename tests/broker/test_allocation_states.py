"""The states of an allocation: nothing outside of the table, and the ways out: withdrawal and revocation."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from broker.allocations import allocations, ledger, pools
from broker.allocations.allocations import TRANSITIONS, AllocationState
from broker.allocations.ledger import Account
from broker.reviews import reviews
from broker.runs import attempts, settlement
from broker.runs.progress import Ending, Progress
from broker.runs.runs import RunState
from projects.db.migrations import versions
from projects.errors import ConflictError, ForbiddenError
from tests.broker.lab import ADA, GRACE, HOUR, ROSA, STRANGER, Lab
from tests.broker.reviewing import (
    HALF,
    ask_change,
    grant,
    in_state,
    large,
    pass_time,
    report,
    review,
    spend,
    told,
    view,
    withdraw,
)
from tests.databases import until_one_waits_for_a_lock
from tests.patience import PATIENCE


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
    pass_time(lab)
    assert lab.account(allocation) == Account(60, 0, 60)
    assert grant(lab).granted == 60
    pass_time(lab)
    assert lab.kinds(project).count("allocation.returned") == 1


def test_withdrawn_by_who_asked_or_leads(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.request(project)
    for other in (GRACE, ROSA, STRANGER):
        with pytest.raises(ForbiddenError, match="Only the lead"):
            withdraw(lab, allocation, other)
    withdraw(lab, allocation)
    shown = view(lab, allocation)
    assert (shown.state, shown.reason) == (AllocationState.WITHDRAWN, "Changed our mind.")
    with pytest.raises(ConflictError, match="already withdrawn, by Ada"):
        lab.approve(allocation)


def test_tables_go_down_and_up_with_all_of_it_in_them(lab: Lab) -> None:
    project, halved = large(lab)
    report(lab, halved)
    revoked = lab.request(project)
    lab.consent(revoked, "2")
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


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_an_allocation_is_revoked_while_a_supervisor_settles_its_run(lab: Lab, project: int, allocation: int) -> None:
    run = lab.launch(project)
    token, waits, locked = lab.start(run, 0), lab.launch(project), Event()

    def settle() -> None:
        with lab.db.write() as session:
            attempts.lock(session, run)
            locked.set()
            until_one_waits_for_a_lock(lab.db)
            settlement.settle(session, run, token, 60, Progress(0, 0), Ending(0), 3)

    with ThreadPoolExecutor(1) as pool:
        settled = pool.submit(settle)
        assert locked.wait(PATIENCE)
        review(lab, reviews.revoke, allocation)
        settled.result()
    assert (lab.run(run).state, lab.run(waits).state) == (RunState.FINISHED, RunState.PAUSED)
    pass_time(lab)
    assert lab.account(allocation) == Account(60, 0, 60)
