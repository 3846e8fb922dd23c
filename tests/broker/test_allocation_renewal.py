"""A later allocation succeeds an earlier one, and the runs of the earlier one go on with it."""

from typing import Any

import pytest

from broker.allocations import requests
from broker.allocations.allocations import AllocationState
from broker.allocations.ledger import Account
from broker.runs import control
from broker.runs.progress import Ending
from broker.runs.runs import Run, RunState
from projects.errors import DomainError
from tests.broker.lab import ADA, HOUR, Lab, in_days, request_id
from tests.broker.reviewing import grant, spend, told, view


def test_a_later_allocation_succeeds_an_earlier_one(lab: Lab) -> None:
    project = lab.project()
    earlier = lab.allocation(project, hours="2")
    spend(lab, earlier, 600)
    asked: dict[str, Any] = {"pool": "laptop", "hours": "4", "until": in_days(50), "justification": "On we go."}
    with lab.db.write() as session:
        later = requests.request(session, ADA, request_id(), project_id=project, renews=earlier, **asked)
    assert view(lab, earlier).state == AllocationState.APPROVED
    lab.approve(later, hours="4")
    assert (view(lab, earlier).state, view(lab, later).renews) == (AllocationState.RENEWED, earlier)
    assert lab.account(earlier) == Account(600, 0, 600)
    assert grant(lab).granted == 600 + 4 * HOUR
    stranger = lab.project(title="Somebody else’s")
    for project_id, sentence in ((project, "is renewed"), (stranger, "not one of")):
        with pytest.raises(DomainError, match=sentence), lab.db.write() as session:
            requests.request(session, ADA, request_id(), project_id=project_id, renews=earlier, **asked)


def test_runs_go_on_with_what_renews_their_allocation(lab: Lab) -> None:
    project = lab.project()
    earlier = lab.allocation(project, hours="2")
    runs, pauses, waits, rests = (lab.launch(project) for _ in range(4))
    running, pausing = lab.start(runs, 0), lab.start(pauses, 1)
    lab.pause(pauses)
    lab.pause(rests)
    asked: dict[str, Any] = {"pool": "laptop", "hours": "4", "until": in_days(50), "justification": "On we go."}
    with lab.db.write() as session:
        later = requests.request(session, ADA, request_id(), project_id=project, renews=earlier, **asked)
    lab.approve(later, hours="4")
    assert told(lab, project, "allocation.renewed")[0]["runs"] == [waits, rests]
    with lab.db.write() as session:
        assert not control.pause_unfunded(session, waits)
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
    asked: dict[str, Any] = {"pool": "laptop", "hours": "4", "until": in_days(50), "justification": "On we go."}
    with lab.db.write() as session:
        later = requests.request(session, ADA, request_id(), project_id=project, renews=earlier, **asked)
    lab.approve(later, hours="4")
    with lab.db.write() as session:
        session.get_one(Run, run).allocation_id = earlier
    lab.resume(run)
    assert lab.row(run).allocation_id == later
