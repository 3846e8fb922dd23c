"""A run of a project with a lower share makes way: asked like a pause, refunded, and back at its place."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlmodel import col

from broker.allocations.ledger import Account
from broker.end_reasons import EndReason
from broker.reports import cluster, why
from broker.reviews import inventory
from broker.runs import control
from broker.runs.attempts import Attempt
from broker.runs.progress import Checkpoint, Ending, Progress
from broker.runs.runs import Run, RunState
from broker.scheduling.scheduler import Scheduler
from projects.db.columns import utcnow
from projects.errors import ConflictError, InvalidError
from projects.record import record
from tests.broker.lab import HOUR, POOL, STRANGER, Lab, settings
from trainer.contract import Status

pytestmark = pytest.mark.usefixtures("memory_queue")

SAVED = Progress(0, 0, step=20, checkpoints=[Checkpoint(20, "folder")])
STOPPED = Ending(Status.STOPPED, "it was asked to stop")


@pytest.fixture
def theirs(lab: Lab, ours: int) -> int:
    """Another project with ten hours, which has used nothing."""
    project = lab.project(STRANGER, "Another question")
    lab.allocation(project, hours="10", lead=STRANGER)
    return project


@pytest.fixture
def low(lab: Lab, ours: int) -> int:
    """A run of two hours on both GPUs, which has had 1,000 seconds saved, on a pool that preempts after ten minutes."""
    with lab.db.write() as session:
        inventory.change_pool(session, None, POOL, preempt_after=600, reason="Much is asked for.")
    run = lab.launch(ours, gpus=2, time_limit="2h")
    token = lab.start(run, 0, 1)
    lab.renew(run, token, 1000, SAVED)
    return run


@pytest.fixture
def rounds(lab: Lab, tmp_path: Path) -> Scheduler:
    return Scheduler(settings(tmp_path), lab.db)


def said(lab: Lab, run: int) -> str:
    with lab.db.read() as session:
        return why.why(session, run).reason


def test_a_run_makes_way_and_goes_back_to_its_place_refunded(
    lab: Lab, ours: int, theirs: int, low: int, rounds: Scheduler
) -> None:
    queued_at = lab.row(low).queued_at
    lab.renew(low, 1, 1100, Progress(0, 0, step=40, checkpoints=[Checkpoint(40, "folder")]))
    waits = lab.launch(theirs, STRANGER, gpus=2, time_limit="1h")
    assert said(lab, waits) == "It waits for cores: 2 needed, 0 free on “laptop”."
    rounds.round()
    stopping = lab.run(low)
    makes_way = f"it makes way for run {waits} of project P{theirs}, and waits again after a checkpoint"
    assert (stopping.state, stopping.reason, stopping.end_reason) == (RunState.STOPPING, makes_way, EndReason.PREEMPTED)
    assert said(lab, low) == f"It{makes_way[2:]}."
    assert said(lab, waits).endswith(f" Run {low} makes way for it, after a checkpoint.")
    rounds.round()
    assert lab.renew(low, 1, 1200, Progress(0, 0, step=50)), "its supervisor is told to stop"
    assert lab.run(waits).state == RunState.QUEUED
    lab.settle(low, 1, 1250, STOPPED)
    again = lab.run(low)
    back = f"Preempted for run {waits} of project P{theirs}; continues from step 40 when cores are free"
    assert (again.state, again.reason, again.end_reason) == (RunState.QUEUED, back, None)
    assert (lab.row(low).queued_at, lab.row(low).used) == (queued_at, 1100)
    assert lab.account(1) == Account(granted=10 * HOUR, reserved=0, spent=2200)
    told = {"for_run": waits, "for_project": theirs}
    assert lab.kinds(ours)[-3:] == ["run.stopping", "run.refunded", "run.preempted"]
    assert lab.payloads(ours, "run.stopping")[0].items() >= (told | {"stops_as": "queued"}).items()
    assert lab.payloads(ours, "run.refunded")[0].items() >= {"seconds": 300, "preempted": True}.items()
    assert lab.payloads(ours, "run.preempted")[0].items() >= (told | {"step": 40}).items()
    rounds.round()
    assert (lab.run(waits).state, lab.run(low).state) == (RunState.STARTING, RunState.QUEUED)
    assert said(lab, low).startswith(f"Preempted for run {waits} of project P{theirs} at ")
    assert said(lab, low).endswith(" UTC. It waits for cores: 2 needed, 0 free on “laptop”.")
    assert lab.claim(waits, 1)
    lab.settle(waits, 1, 0, Ending(Status.FAILED, "no"))
    rounds.round()
    assert (lab.run(low).state, lab.run(low).reason, lab.run(low).attempt) == (RunState.STARTING, "", 2)


def test_a_checkpoint_on_being_asked_leaves_nothing_to_refund(
    lab: Lab, theirs: int, low: int, rounds: Scheduler
) -> None:
    lab.launch(theirs, STRANGER, gpus=2, time_limit="1h")
    rounds.round()
    lab.renew(low, 1, 1010, Progress(0, 0, step=60, checkpoints=[Checkpoint(60, "folder")]))
    lab.settle(low, 1, 1010, STOPPED)
    assert "continues from step 60 when" in lab.run(low).reason
    assert (lab.account(1).spent, lab.account(1).reserved) == (2020, 0)


def test_no_pool_preempts_unless_it_is_told_to(lab: Lab, ours: int, theirs: int, rounds: Scheduler) -> None:
    run = lab.launch(ours, gpus=2, time_limit="2h")
    lab.renew(run, lab.start(run, 0, 1), 3000)
    lab.launch(theirs, STRANGER, gpus=2)
    rounds.round()
    assert lab.run(run).state == RunState.RUNNING


def test_a_run_is_not_preempted_twice_within_the_time_nor_preempts_back(
    lab: Lab, ours: int, theirs: int, low: int, rounds: Scheduler
) -> None:
    other = lab.launch(theirs, STRANGER, gpus=2, time_limit="2h")
    rounds.round()
    lab.settle(low, 1, 1000, STOPPED)
    rounds.round()
    assert lab.claim(other, 1)
    with lab.db.write() as session:
        values = {"state": "running", "charged": 10_000, "charged_at_checkpoint": 10_000}
        session.execute(update(Attempt).where(col(Attempt.run_id) == other).values(**values))
        session.execute(update(Run).where(col(Run.id) == other).values(state="running", used=5000))
    rounds.round()
    assert lab.run(other).state == RunState.RUNNING, "who was preempted does not preempt"
    with lab.db.write() as session:
        earlier = utcnow() - timedelta(minutes=11)
        session.execute(update(Run).where(col(Run.id) == low).values(preempted_at=earlier))
    rounds.round()
    assert lab.run(other).state == RunState.STOPPING, "until the time is over"


def test_what_changed_since_the_plan_stops_nobody(lab: Lab, theirs: int, low: int) -> None:
    waits = lab.launch(theirs, STRANGER, gpus=2, time_limit="1h")
    with lab.db.write() as session:
        session.execute(update(Run).where(col(Run.id) == low).values(preempted_at=utcnow() - timedelta(minutes=9)))
    before = lab.everything()
    with pytest.raises(ConflictError, match="recently preempted"), lab.db.write() as session:
        control.preempt(session, [low], waits)
    assert lab.everything() == before
    with lab.db.write() as session:
        session.execute(update(Run).where(col(Run.id) == low).values(preempted_at=utcnow() - timedelta(minutes=11)))
    lab.cancel(waits, STRANGER)
    before = lab.everything()
    with pytest.raises(ConflictError, match="is cancelled; no run makes way"), lab.db.write() as session:
        control.preempt(session, [low], waits)
    assert lab.everything() == before


def test_two_schedulers_at_once_ask_no_more_than_needed(lab: Lab, ours: int, theirs: int, tmp_path: Path) -> None:
    with lab.db.write() as session:
        inventory.change_pool(session, None, POOL, preempt_after=600, reason="Much is asked for.")
    both = [lab.launch(ours, time_limit="2h") for _ in range(2)]
    for device, run in enumerate(both):
        lab.renew(run, lab.start(run, device), 1000, SAVED)
    waits = lab.launch(theirs, STRANGER, time_limit="1h")
    with lab.db.write() as session:
        control.preempt(session, both[:1], waits)
    with (
        pytest.raises(ConflictError, match=f"Other runs are already making way for run {waits}"),
        lab.db.write() as session,
    ):
        control.preempt(session, both[1:], waits)
    schedulers = [Scheduler(settings(tmp_path), lab.db) for _ in range(4)]
    with ThreadPoolExecutor(len(schedulers)) as pool:
        list(pool.map(lambda one: one.round(), schedulers))
    assert [lab.run(run).state for run in both] == [RunState.STOPPING, RunState.RUNNING]
    assert lab.kinds(ours).count("run.stopping") == 1


def test_a_run_that_is_lost_while_it_makes_way_is_queued_and_refunded_once(
    lab: Lab, ours: int, theirs: int, low: int, rounds: Scheduler
) -> None:
    lab.launch(theirs, STRANGER, gpus=2, time_limit="1h")
    rounds.round()
    lab.renew(low, 1, 1100, lease=0.001)
    time.sleep(0.01)
    lab.expire(low, 1, grace=60)
    lab.expire(low, 1, grace=60)
    assert (lab.run(low).state, lab.row(low).used) == (RunState.QUEUED, 1000)
    assert lab.row(low).not_before > utcnow()
    assert lab.account(1) == Account(granted=10 * HOUR, reserved=0, spent=2000)
    assert lab.kinds(ours)[-2:] == ["run.refunded", "run.preempted"]


def test_who_makes_way_can_be_paused_and_cancelled_meanwhile(
    lab: Lab, ours: int, theirs: int, low: int, rounds: Scheduler
) -> None:
    lab.launch(theirs, STRANGER, gpus=2, time_limit="1h")
    rounds.round()
    lab.pause(low)
    assert lab.run(low).reason == "paused by Ada"
    with pytest.raises(ConflictError, match="only one that waits or runs can be paused"):
        lab.pause(low)
    lab.settle(low, 1, 1000, STOPPED)
    assert (lab.run(low).state, lab.account(1).spent) == (RunState.PAUSED, 2000)
    lab.resume(low)
    lab.renew(low, lab.start(low, 0, 1), 1000, SAVED)
    with lab.db.write() as session:
        session.execute(update(Run).where(col(Run.id) == low).values(preempted_at=utcnow() - timedelta(minutes=11)))
    rounds.round()
    lab.cancel(low)
    lab.settle(low, 2, 1000, STOPPED)
    assert lab.run(low).state == RunState.CANCELLED


def test_who_makes_way_is_paused_with_an_allocation_that_ends(
    lab: Lab, theirs: int, low: int, rounds: Scheduler
) -> None:
    lab.launch(theirs, STRANGER, gpus=2, time_limit="1h")
    rounds.round()
    with lab.db.write() as session:
        assert control.stop_all(session, 1, EndReason.ALLOCATION_EXPIRED, "its allocation has ended") == [low]
    lab.settle(low, 1, 1000, STOPPED)
    assert (lab.run(low).state, lab.run(low).end_reason) == (RunState.PAUSED, EndReason.ALLOCATION_EXPIRED)


@pytest.mark.parametrize(
    ("ending", "state", "spent"),
    [
        (Ending(Status.DONE), RunState.FINISHED, 2200),
        (Ending(Status.FAILED, "the loss is not finite"), RunState.FAILED, 2200),
        (Ending(Status.FAILED, "a fault", transient=True), RunState.QUEUED, 2000),
        (Ending(-9, "killed"), RunState.QUEUED, 2000),
    ],
)
def test_how_the_trainer_ends_decides(
    lab: Lab, theirs: int, low: int, rounds: Scheduler, ending: Ending, state: RunState, spent: int
) -> None:
    lab.launch(theirs, STRANGER, gpus=2, time_limit="1h")
    rounds.round()
    lab.settle(low, 1, 1100, ending, most=1)
    assert (lab.run(low).state, lab.account(1).spent) == (state, spent)


def test_a_run_without_time_left_ends_instead_of_waiting_again(
    lab: Lab, theirs: int, low: int, rounds: Scheduler
) -> None:
    lab.launch(theirs, STRANGER, gpus=2, time_limit="1h")
    rounds.round()
    lab.renew(low, 1, 7200, Progress(0, 0, step=60, checkpoints=[Checkpoint(60, "folder")]))
    lab.settle(low, 1, 7200, STOPPED)
    assert lab.run(low).state == RunState.TIMED_OUT


def test_nobody_makes_way_while_the_disk_lets_no_run_start(
    lab: Lab, theirs: int, low: int, rounds: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk of another size cannot be had here."""
    monkeypatch.setattr("broker.scheduling.scheduler.disk.admits", lambda *_: False)
    lab.launch(theirs, STRANGER, gpus=2, time_limit="1h")
    rounds.round()
    assert lab.run(low).state == RunState.RUNNING


@pytest.mark.parametrize("seconds", [-60, 59, 30 * 86_400 + 60, 10**30])
def test_the_time_of_a_pool_is_checked(lab: Lab, seconds: int) -> None:
    before = lab.everything()
    sentence = "preempted after 1 to 43,200 minutes, or never with 0"
    with pytest.raises(InvalidError, match=sentence), lab.db.write() as session:
        inventory.change_pool(session, None, POOL, preempt_after=seconds, reason="To see.")
    assert lab.everything() == before


def test_a_pool_preempts_until_it_is_told_not_to(lab: Lab) -> None:
    def preempts() -> int:
        with lab.db.read() as session:
            return cluster.status(session)[0].preempt_after

    assert preempts() == 0
    for seconds in (600, 0):
        with lab.db.write() as session:
            inventory.change_pool(session, None, POOL, preempt_after=seconds, reason="To see.")
        assert preempts() == seconds
    with lab.db.read() as session:
        told = [entry.payload for entry in record.since(session, record.LAB, 0) if entry.kind == "pool.changed"]
    assert [payload["preempt_after"] for payload in told if payload] == [600, 0]
