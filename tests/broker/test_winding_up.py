"""What the end of a project does to its allocations, open requests and runs."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from broker.allocations import allocations, pools
from broker.allocations.allocations import AllocationState
from broker.allocations.ledger import Account
from broker.reviews import allocation_expiry
from broker.runs.progress import Ending
from broker.runs.runs import RunState
from projects import lifecycle
from projects.db.columns import utcnow
from projects.errors import ConflictError
from projects.record import record
from tests.broker.lab import ADA, GRACE, HOUR, STRANGER, Lab


def stop(lab: Lab, project: int) -> None:
    with lab.db.write() as session:
        lifecycle.stop(session, ADA, project, reason="Nobody has time.")


def complete(lab: Lab, project: int) -> None:
    with lab.db.write() as session:
        lifecycle.complete(session, ADA, project, outcome="result", learnt="That it works.")


def pass_time(lab: Lab) -> None:
    allocation_expiry.update_all(lab.db, utcnow())


def drawn(lab: Lab) -> int:
    with lab.db.read() as session:
        return sum(grant.granted + grant.committed for grant in pools.grants(session))


def state(lab: Lab, allocation: int) -> tuple[AllocationState, str]:
    with lab.db.read() as session:
        view = allocations.view(session, allocation)
    return view.state, view.reason


def told(lab: Lab, project: int, kind: str) -> list[dict[str, Any]]:
    with lab.db.read() as session:
        entries = record.since(session, record.project_stream(project), 0, limit=1000)
    return [entry.payload or {} for entry in entries if entry.kind == kind]


def test_a_completed_projects_hours_return_and_its_runs_stop(lab: Lab, project: int, allocation: int) -> None:
    lab.let("halves_hours", 100)
    requested = lab.request(project, hours="300")
    large = lab.request(project, hours="500")
    lab.consent(large, "500")
    runs, waits, pauses, rests = (lab.launch(project) for _ in range(4))
    token = lab.start(runs, 0)
    lab.renew(runs, token, 60)
    pausing = lab.start(pauses, 1)
    lab.pause(pauses)
    lab.pause(rests)
    pass_time(lab)
    assert lab.row(runs).state == RunState.RUNNING
    complete(lab, project)
    pass_time(lab)
    why = "its project is completed"
    assert [lab.run(run).state for run in (runs, waits, pauses, rests)] == [
        *(RunState.STOPPING, RunState.CANCELLED),
        *(RunState.STOPPING, RunState.CANCELLED),
    ]
    assert {lab.run(run).reason for run in (runs, waits, pauses, rests)} == {why}
    assert state(lab, requested) == (AllocationState.WITHDRAWN, why)
    assert state(lab, large)[0] == AllocationState.EXPIRED
    assert {entry["why"] for entry in told(lab, project, "allocation.ended")} == {why}
    assert lab.renew(runs, token, 70), "its supervisor is told to stop"
    before = lab.everything()
    pass_time(lab)
    assert lab.everything() == before, "once, whoever looks"
    lab.settle(runs, token, 75, Ending(75))
    lab.settle(pauses, pausing, 5, Ending(0))
    assert lab.run(runs).state == RunState.CANCELLED
    assert lab.run(pauses).state == RunState.FINISHED, "it was done before it heard"
    pass_time(lab)
    assert lab.account(allocation) == Account(0, 0, 0)
    assert lab.account(large) == Account(80, 0, 80), "the newest one paid"
    assert drawn(lab) == 80
    assert told(lab, project, "allocation.returned")[-1]["returned"] > 0
    assert len(told(lab, project, "run.cancelled")) == 3
    with lab.db.read() as session:
        assert allocation_expiry.unsettled(session) == []


def test_a_stopped_project_leaves_others_alone_and_two_schedulers_end_it_once(lab: Lab) -> None:
    ours, theirs = lab.project(), lab.project(STRANGER, "Another question")
    kept = lab.allocation(theirs, lead=STRANGER)
    ended = lab.allocation(ours)
    waits = lab.launch(theirs, STRANGER)
    stop(lab, ours)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: pass_time(lab), range(4)))
    assert state(lab, ended)[0] == AllocationState.EXPIRED
    assert [entry["returned"] for entry in told(lab, ours, "allocation.ended")] == [HOUR]
    assert state(lab, kept)[0] == AllocationState.APPROVED
    assert (lab.run(waits).state, drawn(lab)) == (RunState.QUEUED, HOUR)


def test_what_is_launched_in_the_last_moment_is_cancelled_too(lab: Lab, project: int, allocation: int) -> None:
    """A launch that has read the project before its end may be written after it."""
    run = lab.launch(project, GRACE)
    complete(lab, project)
    with pytest.raises(ConflictError, match="is completed"):
        lab.launch(project)
    pass_time(lab)
    assert (lab.run(run).state, lab.run(run).ended_at is None) == (RunState.CANCELLED, False)
    assert lab.kinds(project)[-3:] == ["project.completed", "allocation.ended", "run.cancelled"]
    assert lab.account(allocation) == Account(0, 0, 0)
