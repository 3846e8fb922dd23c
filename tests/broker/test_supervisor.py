"""A supervisor as a process of its own, over a trainer that does not listen."""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import bindparam, update
from sqlmodel import col

from broker.allocations.pools import Pool
from broker.end_reasons import EndReason
from broker.publishing import disk
from broker.runners import processes, shim, spawning
from broker.runs import attempts, folders, leases
from broker.runs.attempts import Attempt
from broker.runs.leases import TakenOverError
from broker.runs.runs import Run, RunState
from tests import forked
from tests.broker.lab import NOTHING, Lab, settings
from tests.databases import ONCE
from tests.environment import bare
from tests.forked import Forked
from tests.patience import PATIENCE, wait_for
from tests.standin import python_with_trainer
from trainer.contract import Status

LEASE = 4.0
GRACE = 3.0
# It says when it was asked to stop and that it goes on; a child of its own goes on, too.
DEAF = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True) or asked.append(1))
asked = []
os.fork()
print("here", "on", repr(os.environ["CUDA_VISIBLE_DEVICES"]), flush=True)
while not asked:
    time.sleep(0.05)
print("still", flush=True)
while True:
    time.sleep(3600)
"""
HOLD = update(Run).where(col(Run.id) == bindparam("run")).values(recipe="demo")
"""Holds the row of a run, which every renewal locks."""
POLITE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
time.sleep(3600)
"""


@pytest.fixture
def run(lab: Lab) -> int:
    """A queued run."""
    project = lab.project()
    lab.allocation(project)
    return lab.launch(project)


@pytest.mark.parametrize(("gpu_type", "seen"), [("cpu", ""), ("V100", "2")])
def test_a_trainer_sees_its_own_gpus_alone(lab: Lab, tmp_path: Path, gpu_type: str, seen: str) -> None:
    lab.pool("second")
    with lab.db.write() as session:
        session.execute(update(Pool).values(gpu_type=gpu_type))
    project = lab.project()
    lab.approve(lab.request(project, pool="second"))
    with supervised(lab, tmp_path, lab.launch(project)) as (_, said):
        assert said().count(f"here on {seen!r}") == 2


def supervise(lab: Lab, home: Path, run: int, token: int, lease: float, *after: str) -> Forked:
    """A supervisor over the deaf trainer, or one that comes after another of a generation."""
    return supervisor_over(DEAF, home, environment(lab, home, lease), run, token, *after)


def supervisor_over(trainer: str, home: Path, environment: Mapping[str, str], *arguments: int | str) -> Forked:
    """A supervisor whose trainer is this program."""
    python = python_with_trainer(home, trainer)
    return started(home, environment, *arguments, python=python)


def started(
    home: Path,
    environment: Mapping[str, str],
    *arguments: int | str,
    python: Path | None = None,
    forks: bool = False,
) -> Forked:
    """The process of a supervisor; its log lies in the home. With `forks`, what it starts is forked, too."""
    log, given = home / "supervisor.log", map(str, arguments)
    return forked.module("broker.runners.supervisor", log, environment, *given, python=python, forks=forks)


def environment(lab: Lab, home: Path, lease: float) -> dict[str, str]:
    """What a part of Stoa is given."""
    return bare() | {
        "STOA_ENV_FILE": "",
        "STOA_HOME": str(home),
        "STOA_DATABASE_URL": lab.db.url.render_as_string(hide_password=False),
        "STOA_LEASE_SECONDS": str(lease),
        "STOA_STOP_GRACE_SECONDS": str(GRACE),
    }


def end_reason(lab: Lab, run: int) -> str | None:
    """Why the run's first attempt ended."""
    with lab.db.read() as session:
        return session.get_one(Attempt, (run, 1)).end_reason


def lease_until(lab: Lab, run: int) -> datetime:
    with lab.db.read() as session:
        until = session.get_one(Attempt, (run, 1)).lease_until
    assert until is not None
    return until


def generation(lab: Lab, run: int) -> int:
    with lab.db.read() as session:
        return session.get_one(Attempt, (run, 1)).generation


@contextmanager
def supervised(lab: Lab, home: Path, run: int, *, lease: float = LEASE) -> Iterator[tuple[Forked, Callable[[], str]]]:
    """The supervisor of a claimed attempt whose trainer is up, and what that has said."""
    token = lab.admit(run)
    with lab.db.write() as session:
        assert leases.claim(session, run, token, host=processes.host(), lease_seconds=lease)
    folder = home / "runs" / str(run) / f"attempt-{token}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    supervisor = supervise(lab, home, run, token, lease)

    def said() -> str:
        log = folder / "trainer.log"
        return log.read_text() if log.exists() else ""

    try:
        wait_for(lambda: said().count("here") == 2 and lab.run(run).state == RunState.RUNNING)
        yield supervisor, said
    finally:
        supervisor.kill()
        supervisor.wait()


def living(home: Path) -> list[int]:
    """The trainer's processes: those that stand in one of the folders of attempts."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{name}/cwd").startswith(str(home / "runs")):
                found.append(int(name))
        except OSError:
            continue
    return found


def test_a_trainer_that_does_not_stop_is_ended_after_its_grace(lab: Lab, tmp_path: Path, run: int) -> None:
    with supervised(lab, tmp_path, run) as (supervisor, said):
        assert len(living(tmp_path)) == 2
        lab.cancel(run)
        wait_for(lambda: "asked" in said())
        assert supervisor.wait(PATIENCE) == 0
        assert "still" in said(), "it had a grace"
        assert living(tmp_path) == []
    assert (lab.run(run).state, lab.run(run).reason) == (RunState.CANCELLED, "cancelled by Ada")
    assert end_reason(lab, run) == EndReason.STOP_REQUESTED, "Stoa's own signal is not what ended it"


def test_a_trainer_whose_host_is_drained_goes_on_later(lab: Lab, tmp_path: Path, run: int) -> None:
    with supervised(lab, tmp_path, run) as (supervisor, _):
        supervisor.terminate()
        assert supervisor.wait(PATIENCE) == 0
    assert (lab.run(run).state, end_reason(lab, run)) == (RunState.QUEUED, EndReason.HOST_DRAINED)
    assert lab.run(run).reason.startswith(f"its host {processes.host()} is being drained; the trainer was killed ")


def test_a_trainer_that_something_else_kills_was_ended_by_a_signal(lab: Lab, tmp_path: Path, run: int) -> None:
    with supervised(lab, tmp_path, run) as (supervisor, _):
        for number in living(tmp_path):
            os.kill(number, signal.SIGKILL)
        assert supervisor.wait(PATIENCE) == 0
    assert (lab.run(run).state, end_reason(lab, run)) == (RunState.QUEUED, EndReason.SIGNAL)
    killed = "the trainer was ended by SIGKILL, which the kernel sends when a host runs out of memory"
    assert lab.run(run).reason == killed


def test_a_hold_much_shorter_than_the_lease_is_no_matter(lab: Lab, tmp_path: Path, run: int) -> None:
    lease = 24.0
    with supervised(lab, tmp_path, run, lease=lease) as (supervisor, said):
        with lab.db.write() as session:
            session.execute(HOLD, {"run": run})
            before = session.get_one(Attempt, (run, 1)).lease_until
            assert before is not None
            time.sleep(lease / 6 + 1)  # a renewal waits by then
        wait_for(lambda: lease_until(lab, run) > before, "a renewal")
        assert "asked" not in said()
        assert supervisor.poll() is None


def test_a_trainer_does_not_outlive_a_lease_that_the_database_will_not_renew(
    lab: Lab, tmp_path: Path, run: int
) -> None:
    """Whoever holds the database up keeps the supervisor waiting in the middle of its renewal."""
    with supervised(lab, tmp_path, run) as (supervisor, said):
        with lab.db.read() as session:
            trainer = attempts.process_of(session.get_one(Attempt, (run, 1)))
        assert trainer is not None
        with lab.db.write() as session:
            session.execute(HOLD, {"run": run})
            wait_for(lambda: "asked" in said())
            wait_for(lambda: not living(tmp_path))
            lived = shim.since_boot() - trainer.started / os.sysconf("SC_CLK_TCK")
            time.sleep(2)
        assert supervisor.wait(PATIENCE) == 0
    view = lab.run(run)
    assert view.state == RunState.QUEUED
    assert re.fullmatch(r"the database did not let its host \S+ renew its lease for \d+ s; the trainer .*", view.reason)
    assert end_reason(lab, run) == EndReason.LEASE_EXPIRED
    assert view.spent <= lived + 1
    assert lab.account(1).reserved == 0


def test_a_supervisor_whose_run_went_to_another_ends_its_trainer(lab: Lab, tmp_path: Path, run: int) -> None:
    with supervised(lab, tmp_path, run) as (supervisor, _):
        with lab.db.write() as session:
            session.execute(update(Run).where(col(Run.id) == run).values(token=7))
        assert supervisor.wait(PATIENCE) == 1
        assert living(tmp_path) == []
    assert lab.run(run).state == RunState.RUNNING


@ONCE
def test_a_run_pauses_and_goes_on_with_another_number_of_gpus(lab: Lab, tmp_path: Path) -> None:
    """The real trainer: the second attempt begins at the checkpoint that the pause has made the first one write."""
    project = lab.project()
    allocation = lab.allocation(project)
    run = lab.launch(project, gpus=2, overrides="steps=100000", time_limit="20m")
    first = real(lab, tmp_path, run, 0, 1)
    try:
        wait_for(lambda: lab.run(run).step >= 2)
        lab.pause(run)
        assert first.wait(PATIENCE) == 0
    finally:
        end(first)
    paused = lab.run(run)
    assert (paused.state, paused.reason) == (RunState.PAUSED, "paused by Ada")
    assert (lab.account(allocation).reserved, living(tmp_path)) == (0, [])
    lab.resume(run, gpus=1)
    second = real(lab, tmp_path, run, 0)
    try:
        wait_for(lambda: lab.run(run).step > paused.step)
        lab.cancel(run)
        assert second.wait(PATIENCE) == 0
    finally:
        end(second)
    events = (tmp_path / "runs" / str(run) / "attempt-2" / "events.jsonl").read_text().splitlines()
    started = json.loads(events[0])
    last = max(int(path.name[4:]) for path in (tmp_path / "runs" / str(run)).glob("attempt-1/checkpoints/step*"))
    assert (started["event"], started["step"], started["ranks"]) == ("started", last, 1)
    assert last >= paused.step
    assert lab.run(run).state == RunState.CANCELLED
    assert lab.account(allocation).reserved == 0


def real(lab: Lab, home: Path, run: int, *devices: int) -> Forked:
    """The supervisor of a new attempt, over the trainer itself."""
    token = lab.admit(run, *devices)
    assert lab.claim(run, token, lease=60)
    (home / "runs" / str(run)).mkdir(parents=True, exist_ok=True)
    environment = bare() | {
        "STOA_ENV_FILE": "",
        "STOA_HOME": str(home),
        "STOA_DATABASE_URL": lab.db.url.render_as_string(hide_password=False),
        "STOA_LEASE_SECONDS": "12",
    }
    return started(home, environment, run, token, forks=True)


def end(process: Forked) -> None:
    """Ask a supervisor to stop, and its trainer with it, should it still be there."""
    process.terminate()
    process.wait(PATIENCE)


def test_a_supervisor_that_dies_is_replaced_and_its_trainer_goes_on(lab: Lab, tmp_path: Path, run: int) -> None:
    with supervised(lab, tmp_path, run, lease=60) as (first, said):
        before = living(tmp_path)
        with lab.db.read() as session:
            attempt = session.get_one(Attempt, (run, 1))
        trainer, dead = attempts.process_of(attempt), attempts.supervisor_of(attempt)
        assert trainer is not None
        assert dead is not None
        alive = supervise(lab, tmp_path, run, 1, 60, "1")
        assert alive.wait(PATIENCE) == 1, "nobody takes over from one that lives"
        first.kill()
        first.wait()
        assert not processes.alive(dead)
        task = "from broker.scheduling.tasks import take_over; take_over(1, 1)"
        rings = [Forked(task, tmp_path / "ring.log", environment(lab, tmp_path, 60)) for _ in range(2)]
        assert [ring.wait(PATIENCE) for ring in rings] == [0, 0]
        wait_for(lambda: generation(lab, run) == 2)
        late = supervise(lab, tmp_path, run, 1, 60, "1")
        assert late.wait(PATIENCE) == 1
        with lab.db.read() as session:
            taken = session.get_one(Attempt, (run, 1))
        successor = attempts.supervisor_of(taken)
        assert successor is not None
        try:
            assert (taken.generation, taken.pid, taken.state) == (2, attempt.pid, "running")
            assert living(tmp_path) == before, "the one that came too late has left the trainer alone"
            assert "asked" not in said()
            with pytest.raises(TakenOverError), lab.db.write() as session:
                leases.renew(session, run, 1, 999, NOTHING, lease_seconds=60)
            ran = shim.since_boot() - trainer.started / os.sysconf("SC_CLK_TCK")
            lab.cancel(run)
            wait_for(lambda: lab.run(run).state == RunState.CANCELLED)
            ended = shim.since_boot() - trainer.started / os.sysconf("SC_CLK_TCK")
            assert living(tmp_path) == []
        finally:
            if processes.alive(successor):
                os.kill(successor.pid, signal.SIGKILL)
    assert int(ran) <= lab.run(run).spent <= ended, "all of its life is charged, once"
    assert lab.account(1).reserved == 0


def test_a_folder_that_another_database_has_left_is_moved_aside(tmp_path: Path) -> None:
    conf = settings(tmp_path)
    left = folders.of_run(conf, 7) / "attempt-1" / "checkpoints" / "step9"
    left.mkdir(parents=True)
    spawning.spawn(conf, 7, 1, "ours")
    assert not left.exists()
    assert len(list(conf.runs_dir.glob("7.before-*/attempt-1/checkpoints/step9"))) == 1
    kept = folders.of_run(conf, 7) / "attempt-1"
    kept.mkdir(exist_ok=True)
    spawning.spawn(conf, 7, 2, "ours")
    assert kept.exists()


def test_the_shim_which_imports_nothing_has_the_contracts_statuses() -> None:
    assert (shim.STOPPED, shim.FAILED) == (Status.STOPPED, Status.FAILED)


def test_what_cannot_be_started_says_why(lab: Lab, run: int, tmp_path: Path) -> None:
    token = lab.admit(run)
    assert lab.claim(run, token, lease=LEASE)
    (tmp_path / "runs" / str(run)).mkdir(parents=True)
    (tmp_path / "runs" / str(run) / f"attempt-{token}").write_text("in the way")
    environment = bare() | {
        "STOA_ENV_FILE": "",
        "STOA_HOME": str(tmp_path),
        "STOA_DATABASE_URL": lab.db.url.render_as_string(hide_password=False),
    }
    assert started(tmp_path, environment, run, token).wait(PATIENCE) == 0
    assert lab.run(run).state == RunState.QUEUED
    assert "could not be started" in lab.run(run).reason
    assert end_reason(lab, run) == EndReason.NOT_STARTED


def test_a_run_on_a_full_disk_is_asked_to_stop_and_waits(lab: Lab, run: int, tmp_path: Path) -> None:
    token = lab.admit(run)
    assert lab.claim(run, token)
    environment = bare() | {
        "STOA_ENV_FILE": "",
        "STOA_HOME": str(tmp_path),
        "STOA_DATABASE_URL": lab.db.url.render_as_string(hide_password=False),
        "STOA_DISK_FLOOR_GIB": "1e9",
        "STOA_LEASE_SECONDS": "30",  # time for the trainer to be up before the first look at the disk
    }
    (tmp_path / "runs" / str(run)).mkdir(parents=True)
    assert supervisor_over(POLITE, tmp_path, environment, run, token).wait(PATIENCE) == 0
    assert (lab.run(run).state, lab.run(run).reason) == (RunState.QUEUED, disk.PAUSED)
    assert end_reason(lab, run) == EndReason.DISK_LOW
