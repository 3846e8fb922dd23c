"""Every way in which a run or an attempt ends has its enumerated reason, in the rows, the view and the record."""

import time
from collections.abc import Callable
from datetime import timedelta

import pytest

from broker.end_reasons import EndReason
from broker.reviews import allocation_expiry, reviews
from broker.runs import control, settlement
from broker.runs.attempts import Attempt
from broker.runs.progress import Ending
from broker.runs.runs import RunState
from projects import lifecycle
from projects.db.columns import utcnow
from projects.record import record
from tests.broker.lab import ADA, HOUR, ROSA, Lab
from trainer.contract import Status

STOPPED = Ending(Status.STOPPED, "it was asked to stop")


def told(lab: Lab, project: int) -> dict[str, str]:
    """Of each kind of entry, the reason that the newest tells."""
    with lab.db.read() as session:
        entries = record.since(session, record.project_stream(project), 0)
    payloads = {entry.kind: entry.payload or {} for entry in entries}
    return {kind: payload["end_reason"] for kind, payload in payloads.items() if "end_reason" in payload}


def of_attempt(lab: Lab, run: int, token: int = 1) -> str | None:
    """The reason of an attempt's end."""
    with lab.db.read() as session:
        return session.get_one(Attempt, (run, token)).end_reason


@pytest.mark.parametrize(
    ("ending", "reason", "state"),
    [
        (Ending(Status.DONE), EndReason.DONE, RunState.FINISHED),
        (Ending(Status.FAILED, "the loss is not finite"), EndReason.TRAINER_FAILED, RunState.FAILED),
        (Ending(Status.CONFIG, "steps is missing"), EndReason.CONFIG_REFUSED, RunState.FAILED),
        (Ending(Status.REFUSED, "no such partition"), EndReason.RUNNER_REFUSED, RunState.FAILED),
        (Ending(Status.STOPPED, timed_out=True), EndReason.TIME_LIMIT, RunState.TIMED_OUT),
        (Ending(-9, timed_out=True, known=EndReason.NODE_FAILED), EndReason.TIME_LIMIT, RunState.TIMED_OUT),
        (Ending(Status.FAILED, transient=True), EndReason.TRAINER_FAULT, RunState.QUEUED),
        (Ending(-9), EndReason.SIGNAL, RunState.QUEUED),
        (STOPPED, EndReason.STOP_REQUESTED, RunState.QUEUED),
        (Ending(Status.STOPPED, known=EndReason.PREEMPTED), EndReason.PREEMPTED, RunState.QUEUED),
        (
            Ending(Status.FAILED, transient=True, known=EndReason.OUT_OF_MEMORY),
            EndReason.OUT_OF_MEMORY,
            RunState.QUEUED,
        ),
    ],
)
def test_an_attempt_ends_for_a_reason_and_so_does_its_run(
    lab: Lab, project: int, run: int, ending: Ending, reason: EndReason, state: RunState
) -> None:
    lab.settle(run, lab.start(run), 600 if ending.timed_out else 1, ending)
    view, again = lab.run(run), state == RunState.QUEUED
    assert (view.state, view.end_reason) == (state, None if again else reason)
    assert of_attempt(lab, run) == reason
    kind = {RunState.TIMED_OUT: "run.timed_out", RunState.QUEUED: "run.requeued"}.get(state, f"run.{state}")
    assert told(lab, project)[kind] == reason


def test_the_last_of_too_many_attempts_has_a_reason_of_its_own(lab: Lab, project: int, run: int) -> None:
    lab.settle(run, lab.start(run), 1, Ending(-9), most=2)
    lab.start(run, lease=0.001)
    time.sleep(0.01)
    lab.expire(run, 2, most=2)
    assert [of_attempt(lab, run, token) for token in (1, 2)] == [EndReason.SIGNAL, EndReason.LEASE_EXPIRED]
    assert lab.run(run).end_reason == told(lab, project)["run.failed"] == EndReason.ATTEMPTS_EXHAUSTED


def test_what_a_member_stops_says_so_and_forgets_it_on_resuming(lab: Lab, project: int, run: int) -> None:
    lab.pause(run)
    assert lab.run(run).end_reason == told(lab, project)["run.paused"] == EndReason.PAUSED
    lab.resume(run)
    assert lab.run(run).end_reason is None
    token = lab.start(run)
    lab.pause(run)
    assert lab.run(run).end_reason == told(lab, project)["run.stopping"] == EndReason.PAUSED
    lab.cancel(run)
    assert lab.run(run).end_reason == told(lab, project)["run.stopping"] == EndReason.CANCELLED
    lab.settle(run, token, 1, STOPPED)
    assert of_attempt(lab, run) == EndReason.STOP_REQUESTED
    assert lab.run(run).end_reason == told(lab, project)["run.cancelled"] == EndReason.CANCELLED


def test_a_run_cancelled_before_a_worker_came_was_not_claimed(lab: Lab, run: int) -> None:
    token = lab.admit(run)
    lab.cancel(run)
    with lab.db.write() as session:
        settlement.withdraw(session, run, token)
    assert of_attempt(lab, run) == EndReason.NOT_CLAIMED
    assert lab.run(run).end_reason == EndReason.CANCELLED


def test_a_stop_that_comes_as_the_trainer_breaks_is_not_its_reason(lab: Lab, run: int) -> None:
    token = lab.start(run)
    lab.cancel(run)
    lab.settle(run, token, 1, Ending(Status.FAILED, "the loss is not finite"))
    assert (lab.run(run).state, lab.run(run).end_reason) == (RunState.FAILED, EndReason.TRAINER_FAILED)


def test_an_unfunded_run_is_paused_for_that_and_forgets_it_once_paid(lab: Lab, project: int, allocation: int) -> None:
    waits = lab.launch(project, time_limit="40m")
    spender = lab.launch(project, time_limit="30m")
    lab.settle(spender, lab.start(spender), 1800, Ending(Status.DONE))
    with lab.db.write() as session:
        assert control.pause_unfunded(session, waits)
    assert lab.run(waits).end_reason == EndReason.UNFUNDED
    lab.top_up(allocation, HOUR)
    with lab.db.write() as session:
        assert control.revive(session, waits)
    assert lab.run(waits).end_reason is None


def revoke(lab: Lab, project: int, allocation: int) -> None:
    with lab.db.write() as session:
        reviews.revoke(session, ROSA, allocation, reason="Enough.")


def expire(lab: Lab, project: int, allocation: int) -> None:
    allocation_expiry.update_all(lab.db, utcnow() + timedelta(days=40))


def stop(lab: Lab, project: int, allocation: int) -> None:
    with lab.db.write() as session:
        lifecycle.stop(session, ADA, project, reason="It is answered.")
    allocation_expiry.update_all(lab.db, utcnow())


@pytest.mark.parametrize(
    ("end", "reason", "state"),
    [
        (revoke, EndReason.ALLOCATION_REVOKED, RunState.PAUSED),
        (expire, EndReason.ALLOCATION_EXPIRED, RunState.PAUSED),
        (stop, EndReason.PROJECT_ENDED, RunState.CANCELLED),
    ],
)
def test_what_ends_above_a_run_is_its_reason(
    lab: Lab,
    project: int,
    allocation: int,
    end: Callable[[Lab, int, int], None],
    reason: EndReason,
    state: RunState,
) -> None:
    running, queued = lab.launch(project), lab.launch(project)
    token = lab.start(running)
    end(lab, project, allocation)
    assert lab.run(running).end_reason == lab.run(queued).end_reason == reason
    lab.settle(running, token, 1, STOPPED)
    for run in (running, queued):
        assert (lab.run(run).state, lab.run(run).end_reason) == (state, reason)
    assert told(lab, project)[f"run.{state}"] == reason
