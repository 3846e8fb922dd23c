"""A sample is written on the host whose disk has the checkpoint, is shown there, and ends aloud where that is lost."""

from datetime import timedelta
from pathlib import Path

import pytest
from kombu.transport.memory import Channel
from sqlalchemy import update
from sqlmodel import col

from broker.allocations import hosts
from broker.allocations.hosts import Host
from broker.reports import cluster
from broker.runners import elsewhere
from broker.runners.elsewhere import NoCheckpointError
from broker.runs import generation, runs
from broker.runs.attempts import Attempt
from broker.runs.progress import Checkpoint, Ending, Progress
from broker.runs.runs import RunState
from broker.scheduling import tasks
from broker.scheduling.scheduler import Scheduler
from projects.db.columns import utcnow
from tests.broker.lab import ADA, POOL, Lab, settings

pytestmark = pytest.mark.usefixtures("memory_queue")
TWO, POOLS = tasks.inbox("two"), tasks.pool_queue(POOL)


@pytest.fixture
def parent(lab: Lab) -> int:
    """A run of two hosts' pool whose checkpoint is on the disk of “two”."""
    with lab.db.write() as session:
        for name in ("one", "two"):
            hosts.announce(session, name, [POOL], {})
    project = lab.project()
    lab.allocation(project)
    run = lab.launch(project)
    token = lab.start(run, 0)
    with lab.db.write() as session:
        session.execute(update(Attempt).values(host="two"))
    told = [Checkpoint(10, f"/two/runs/{run}/attempt-1/checkpoints/step10")]
    lab.renew(run, token, 5, Progress(0, 0, step=10, tokens=100, checkpoints=told))
    lab.settle(run, token, 5, Ending(75, "it was asked to stop"))
    lab.pause(run)
    return run


@pytest.fixture
def sample(lab: Lab, parent: int) -> int:
    """A queued sample of the run."""
    with lab.db.write() as session:
        return generation.generate(session, ADA, "ask", parent, "Once upon a time").run_id


def asked(*queues: str) -> list[int]:
    """How many messages wait in the queues."""
    return [Channel.queues[name].qsize() if name in Channel.queues else 0 for name in queues]


def silence(lab: Lab, host: str) -> None:
    with lab.db.write() as session:
        session.execute(update(Host).where(col(Host.name) == host).values(seen_at=utcnow() - timedelta(minutes=2)))


@pytest.mark.parametrize(
    ("store", "away", "expected"), [(False, False, [1, 0]), (True, False, [0, 1]), (False, True, [0, 1])]
)
def test_a_sample_starts_where_its_checkpoint_is(
    lab: Lab, sample: int, tmp_path: Path, store: bool, away: bool, expected: list[int]
) -> None:
    conf = settings(tmp_path, store=f"file://{tmp_path}/store" if store else "")
    if away:
        silence(lab, "two")
    before = asked(TWO, POOLS)
    Scheduler(conf, lab.db).round()
    assert lab.run(sample).state == RunState.STARTING
    assert [now - then for now, then in zip(asked(TWO, POOLS), before, strict=True)] == expected


def test_a_sample_on_another_host_ends_with_the_host_that_has_the_checkpoint(
    lab: Lab, parent: int, sample: int, tmp_path: Path
) -> None:
    with lab.db.read() as session:
        row = runs.load(session, sample)
    with pytest.raises(NoCheckpointError, match=f"step 10 of run {parent} lies on the disk of “two” alone"):
        elsewhere.bring(settings(tmp_path), lab.db, row, pytest.fail, begins=False)


def test_a_sample_is_shown_with_its_host_and_ends_when_that_is_lost(lab: Lab, parent: int, sample: int) -> None:
    token = lab.admit(sample, 0)
    assert lab.claim(sample, token, host="two")
    with lab.db.read() as session:
        [status] = cluster.status(session)
    assert status.under_way == {"two": [f"run {sample} (a sample of run {parent})"]}
    with lab.db.write() as session:
        session.execute(update(Attempt).where(col(Attempt.run_id) == sample).values(lease_until=utcnow()))
    lab.expire(sample, token)
    assert lab.run(sample).state == RunState.FAILED
    assert lab.run(sample).reason == "its host “two” was lost; ask for another sample"
