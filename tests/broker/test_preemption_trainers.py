"""A trainer at work makes way for a run of a higher share: it writes a checkpoint, and goes on from it later."""

import json
from pathlib import Path

import pytest
from sqlalchemy import update

from broker.allocations.pools import Pool
from broker.runners import processes
from broker.runs.progress import Ending
from broker.runs.runs import RunState
from broker.scheduling.scheduler import Scheduler
from tests.broker.lab import STRANGER, Lab, settings
from tests.broker.supervised import TRAINER, charged, supervised_by
from tests.databases import ONCE
from tests.patience import PATIENCE, wait_for
from tests.standin import python_with_trainer
from trainer.contract import Status

LEASE = 6.0
GPUS = 2


@ONCE
@pytest.mark.usefixtures("memory_queue")
def test_a_trainer_makes_way_and_goes_on_from_its_checkpoint(lab: Lab, ours: int, tmp_path: Path) -> None:
    theirs = lab.project(STRANGER, "Another question")
    allocation = lab.allocation(theirs, hours="10", lead=STRANGER)
    with lab.db.write() as session:
        session.execute(update(Pool).values(preempt_after=1))  # the least that an operator can say is minutes
    rounds = Scheduler(settings(tmp_path), lab.db)
    python = python_with_trainer(tmp_path, TRAINER.replace("LAST", "100000"))
    low = lab.launch(ours, gpus=GPUS, time_limit="2h")
    assert lab.claim(low, lab.admit(low, 0, 1), lease=LEASE, host=processes.host())
    folder = tmp_path / "runs" / str(low) / "attempt-1"
    folder.parent.mkdir(parents=True)
    with supervised_by(lab, python, tmp_path, LEASE, {}, low, 1) as supervisor:
        wait_for(lambda: lab.row(low).step > 10 and charged(lab, low, 1) >= 2 * GPUS, "two seconds of work")
        waits = lab.launch(theirs, STRANGER, gpus=GPUS, time_limit="1h")
        rounds.round()
        assert lab.run(low).state in (RunState.STOPPING, RunState.QUEUED), "its trainer may have stopped by now"
        assert supervisor.wait(PATIENCE) == 0
    step = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert (folder / "checkpoints" / f"step{step}" / "weights").read_text() == str(step)
    back = f"Preempted for run {waits} of project P{theirs}; continues from step {step} when cores are free"
    assert (lab.run(low).state, lab.run(low).reason) == (RunState.QUEUED, back)
    paid = charged(lab, low, 1)
    assert lab.row(low).used * GPUS == paid == lab.account(1).spent, "all of it is in the checkpoint"

    rounds.round()
    assert (lab.run(waits).state, lab.run(low).state) == (RunState.STARTING, RunState.QUEUED)
    assert lab.claim(waits, 1)
    lab.settle(waits, 1, 0, Ending(Status.FAILED, "no"))
    assert lab.account(allocation).spent == 0
    rounds.round()
    assert (lab.run(low).state, lab.run(low).attempt) == (RunState.STARTING, 2)
    assert lab.claim(low, 2, lease=LEASE, host=processes.host())
    with supervised_by(lab, python, tmp_path, LEASE, {}, low, 2) as supervisor:
        log = folder.with_name("attempt-2") / "trainer.log"
        wait_for(lambda: log.exists() and "from step" in log.read_text(), "the second attempt")
        assert log.read_text() == f"from step {step}\n"
        lab.cancel(low)
        assert supervisor.wait(PATIENCE) == 0
    assert charged(lab, low, 1) == paid
