"""Which allocation pays: runs follow the one that can, in every path, or the refusal names it."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from broker.allocations import requests
from broker.allocations.allocations import Allocation, AllocationState
from broker.publications import Publication
from broker.reviews import allocation_expiry
from broker.runs import control, generation, launching, runs
from broker.runs.launching import Order
from broker.runs.progress import Ending
from broker.runs.runs import RunState
from projects.db.columns import utcnow
from projects.errors import ConflictError
from tests.broker.lab import ADA, HOUR, Lab, in_days, request_id
from tests.broker.reviewing import view

ASKED: dict[str, Any] = {"pool": "laptop", "hours": "4", "until": in_days(50), "justification": "On we go."}


def renewal(lab: Lab, project: int, earlier: int) -> int:
    """An open request to renew an allocation."""
    with lab.db.write() as session:
        return requests.request(session, ADA, request_id(), project_id=project, renews=earlier, **ASKED)


def end(lab: Lab, allocation: int) -> None:
    """The allocation's last day passes."""
    with lab.db.write() as session:
        session.get_one(Allocation, allocation).until = utcnow() - timedelta(seconds=1)
    allocation_expiry.update_all(lab.db, utcnow())
    assert view(lab, allocation).state == AllocationState.EXPIRED


def payer(lab: Lab, run: int) -> int:
    return lab.row(run).allocation_id


def test_a_renewal_that_is_approved_after_the_end_takes_the_runs_along(lab: Lab) -> None:
    project = lab.project()
    earlier = lab.allocation(project, hours="2")
    waits, rests, works = (lab.launch(project) for _ in range(3))
    lab.pause(rests)
    token = lab.start(works, 0)
    later = renewal(lab, project, earlier)
    end(lab, earlier)
    assert [lab.run(run).state for run in (waits, rests)] == [RunState.PAUSED, RunState.PAUSED]
    lab.approve(later, hours="4")
    assert [payer(lab, run) for run in (waits, rests, works)] == [later, later, earlier]
    with lab.db.write() as session:
        assert [*control.revivable(session)] == [waits], "a member paused the other one"
    assert lab.resume(rests).left == 4 * HOUR
    lab.settle(works, token, 60, Ending(75))
    assert payer(lab, works) == later
    assert (lab.account(earlier).spent, lab.account(earlier).reserved) == (60, 0)


def test_what_is_stranded_on_an_ended_allocation_follows_its_renewal_in_every_path(lab: Lab, tmp_path: Path) -> None:
    project = lab.project()
    earlier = lab.allocation(project, hours="2")
    rests, done = lab.launch(project), lab.launch(project)
    lab.settle(done, lab.start(done, 0), 60, Ending(0))
    lab.pause(rests)
    later = renewal(lab, project, earlier)
    end(lab, earlier)
    lab.approve(later, hours="4")
    with lab.db.write() as session:
        for run in (rests, done):
            runs.load(session, run).allocation_id = earlier  # as an older version has left them
        session.add(Publication(run_id=done, step=4, folder=str(tmp_path)))
    with lab.db.read() as session:
        assert launching.rerun_order(session, done).allocation_id == later
        assert launching.fork_order(session, done, 4).allocation_id == later
    with lab.db.write() as session:
        sample = generation.generate(session, ADA, request_id(), done, "Once").run_id
    assert payer(lab, sample) == later
    lab.extend(rests, "10m")
    assert payer(lab, rests) == later
    lab.resume(rests)
    assert payer(lab, rests) == later


def test_a_member_resumes_and_launches_on_another_allocation_of_the_pool_that_can_pay(lab: Lab) -> None:
    project = lab.project()
    rich = lab.allocation(project, hours="4")
    poor = lab.allocation(project, hours="0.5")
    run = lab.launch(project, allocation_id=poor, time_limit="20m")
    lab.pause(run)
    end(lab, poor)
    lab.resume(run)
    assert payer(lab, run) == rich
    other = lab.allocation(project, hours="0.1")
    assert payer(lab, lab.launch(project, time_limit="1h")) == rich, "the newest one has too little left"
    before = lab.everything()
    with pytest.raises(ConflictError, match=f"Allocation {rich} on “laptop” can pay for it"):
        lab.launch(project, time_limit="1h", allocation_id=other)
    with pytest.raises(ConflictError, match=f"Allocation {poor} is expired.*Allocation {rich} on “laptop” can pay"):
        lab.launch(project, allocation_id=poor)
    assert lab.everything() == before


def test_where_only_another_pool_can_pay_the_refusal_names_it(lab: Lab) -> None:
    lab.pool("cluster")
    project = lab.project()
    here = lab.allocation(project, hours="1")
    run = lab.launch(project, time_limit="30m")
    token = lab.start(run, 0)
    asked = lab.request(project, pool="cluster", hours="4")
    lab.consent(asked, "4")
    before = lab.everything()
    with pytest.raises(ConflictError, match=f"Allocation {asked} on “cluster” can pay for it. Pause the run"):
        lab.extend(run, "2h")
    assert lab.everything() == before
    lab.settle(run, token, 60, Ending(75))
    lab.pause(run)
    end(lab, here)
    with pytest.raises(ConflictError, match=f"Allocation {here} is expired.*Allocation {asked} on “cluster” can pay"):
        lab.resume(run)
    with lab.db.write() as session:
        order = Order(project, "demo", "10m", allocation_id=asked)
        launching.launch(session, ADA, request_id(), order)
    lab.resume(run, allocation_id=asked)
    assert payer(lab, run) == asked


def test_a_run_that_finishes_after_its_allocations_last_day_asks_for_no_sample(
    lab: Lab, project: int, allocation: int
) -> None:
    run = lab.launch(project)
    token = lab.start(run, 0)
    with lab.db.write() as session:  # no round of the scheduler has seen it yet
        session.get_one(Allocation, allocation).until = utcnow() - timedelta(seconds=1)
    lab.settle(run, token, 60, Ending(0))
    with lab.db.read() as session:
        states = [each.state for each in runs.of_project(session, project)]
    assert states == [RunState.FINISHED]
