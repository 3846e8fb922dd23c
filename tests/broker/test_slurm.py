"""Trainers as jobs of a real Slurm of two nodes."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

from broker.allocations import pools
from broker.end_reasons import EndReason
from broker.reviews import inventory
from broker.runners import output, reaper
from broker.runners.base import Check, JobSpec
from broker.runners.slurm import SlurmRunner, jobs
from broker.runs import control
from broker.runs.runs import RunState
from projects.db.columns import utcnow
from projects.errors import InvalidError
from tests.broker.lab import Lab, settings
from tests.broker.supervised import TRAINER, admitted, attempt, charged, queued, supervised_by
from tests.databases import ONCE
from tests.forked import Forked
from tests.patience import PATIENCE, wait_for
from tests.slurm import Cluster, slurm
from tests.standin import python_with_trainer
from trainer.contract import Status

__all__ = ["slurm"]

# What is slow and asks the database for nothing that another test does not.
LEASE_OF_JOBS = 1.8  # Slurm is asked every 0.3 seconds
LEASE = 12.0
POOL = "cluster"
NOT_AVAILABLE = "Required partition not available (inactive or drain)"
TELL = "import json, os, sys; print(json.dumps([dict(os.environ), os.getcwd(), sys.argv[1:]]))"
LISTENS = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); "
    "print('here', flush=True); time.sleep(600)"
)
DEAF = (
    "import os, signal, time; signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True)); os.fork(); "
    "print('here', flush=True)\nwhile True: time.sleep(60)"
)


@pytest.fixture
def cluster(slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Slurm, and this process as one that uses it."""
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    yield slurm
    slurm.clear()


@pytest.fixture
def start(cluster: Cluster, tmp_path: Path) -> Callable[..., tuple[SlurmRunner, Path]]:
    """Starts a program as the job of a run of its own, or of a given attempt; the runner and the folder."""

    def start(
        code: str,
        *arguments: str,
        run: int | None = None,
        token: int = 1,
        gpus: int = 1,
        nodes: int = 1,
        grace: float = 5,
        options: Mapping[str, str] | None = None,
    ) -> tuple[SlurmRunner, Path]:
        number = run or len(list(tmp_path.glob("runs/*"))) + 1
        folder = tmp_path / "runs" / str(number) / f"attempt-{token}"
        folder.mkdir(parents=True, exist_ok=True)
        spec = JobSpec(gpus, nodes, 600, grace_seconds=grace, lease_seconds=LEASE_OF_JOBS, options=options or {})
        runner = SlurmRunner(spec)
        runner.start([sys.executable, "-c", code, *arguments], folder, "")
        return runner, folder

    return start


def ended(runner: SlurmRunner) -> int:
    wait_for(lambda: runner.poll() is not None, "the end of a job")
    status = runner.poll()
    assert status is not None
    return status


def said(folder: Path) -> str:
    log = folder / "trainer.log"
    return log.read_text() if log.exists() else ""


def here(runner: SlurmRunner, folder: Path, times: int = 1) -> None:
    wait_for(lambda: runner.poll() is None and not runner.waiting, "a job that runs")
    wait_for(lambda: said(folder).count("here") == times, "its program")


def of(folder: Path) -> list[int]:
    """The processes that stand in an attempt's folder."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if os.readlink(f"/proc/{name}/cwd") == str(folder):
                found.append(int(name))
    return found


def test_a_job_has_its_own_devices_and_no_secret(
    start: Callable[..., tuple[SlurmRunner, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STOA_DISCORD_TOKEN", "STOA_HUB_TOKEN", "STOA_DATABASE_URL", "HF_TOKEN", "PGPASSWORD"):
        monkeypatch.setenv(name, "not-to-be-seen")
    typed = ["; touch here", "$HOME", "`id`", "it's", '"', "a\nb"]
    runner, folder = start(TELL, *typed, gpus=2)
    assert ended(runner) == 0
    environment, stood_in, arguments = json.loads(said(folder))
    assert environment["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert "not-to-be-seen" not in "".join(environment.values())
    assert (stood_in, arguments) == (str(folder), typed)
    assert not (folder / "here").exists()
    assert runner.process().pid == runner.job


def test_a_job_that_is_asked_to_stop_says_how_it_ended(start: Callable[..., tuple[SlurmRunner, Path]]) -> None:
    runner, folder = start(LISTENS)
    here(runner, folder)
    wait_for(lambda: runner.seconds() >= 1, "a second")
    runner.stop()
    assert ended(runner) == 75
    ran = runner.seconds()
    assert ran >= 1
    runner.stop()
    runner.kill()
    assert (runner.poll(), runner.seconds()) == (75, ran)


def test_a_job_that_does_not_listen_is_ended_with_all_its_processes(
    start: Callable[..., tuple[SlurmRunner, Path]],
) -> None:
    runner, folder = start(DEAF)
    here(runner, folder, times=2)
    assert len(of(folder)) == 2
    runner.stop()
    wait_for(lambda: "asked" in said(folder), "the asking")
    assert runner.poll() is None
    runner.kill()
    assert runner.poll() == -signal.SIGKILL
    assert of(folder) == []


def test_what_slurm_will_not_have_is_refused_in_one_sentence(start: Callable[..., tuple[SlurmRunner, Path]]) -> None:
    runner, folder = start(TELL, gpus=9)
    assert ended(runner) == Status.REFUSED
    ending = output.ending(folder, Status.REFUSED, timed_out=False, how=runner.ended)
    assert ending.reason.startswith("Slurm refused the job: ")
    assert "Requested node configuration is not available" in ending.reason
    assert not ending.transient
    assert runner.waiting
    runner, _ = start(TELL, options={"partition": "elsewhere"})
    assert ended(runner) == Status.REFUSED
    assert "invalid partition" in runner.ended.lower()


@pytest.mark.parametrize("state", ["inactive", "drain"])
def test_what_slurm_refuses_for_now_waits_and_says_why(
    cluster: Cluster, start: Callable[..., tuple[SlurmRunner, Path]], state: str
) -> None:
    cluster.ask("scontrol", "update", "partitionname=main", f"state={state}")
    runner, folder = start(LISTENS)
    assert runner.poll() is None
    assert (runner.job, runner.waiting) == (None, "Slurm: Batch job submission failed: " + NOT_AVAILABLE)
    cluster.ask("scontrol", "update", "partitionname=main", "state=up")
    here(runner, folder)
    runner.kill()


def test_a_time_limit_beyond_the_partitions_own_is_refused(
    cluster: Cluster, start: Callable[..., tuple[SlurmRunner, Path]]
) -> None:
    cluster.ask("scontrol", "update", "partitionname=main", "maxtime=2")
    try:
        runner, _ = start(LISTENS)
        assert ended(runner) == Status.REFUSED
    finally:
        cluster.ask("scontrol", "update", "partitionname=main", "maxtime=infinite")
    assert "its time limit is beyond its partition's" in runner.ended
    wait_for(lambda: cluster.ask("squeue", "--noheader") == "", "an empty queue")


@pytest.mark.parametrize(
    ("sentence", "final"),
    [
        ("Requested nodes are busy", False),
        ("Required node not available (down, drained or reserved)", False),
        ("Requested partition configuration not available now", False),
        ("Unable to contact slurm controller (connect failure)", False),
        ("Socket timed out on send/recv operation", False),
        ("I/O error writing script/environment to file", False),
        ("Munge encode failed: Failed to access", False),
        ("Invalid authentication credential", False),
        ("Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)", False),
        ("Slurm temporarily unable to accept job, sleeping and retrying", False),
        ("Unspecified error", False),
        ("Invalid partition name specified", True),
        ("Invalid account or account/partition combination specified", True),
        ("Invalid qos specification", True),
        ("Requested time limit is invalid (missing or exceeds some limit)", True),
        ("Node count specification invalid", True),
        ("Invalid generic resource (gres) specification", True),
        ("Memory specification can not be satisfied", True),
        ("CPU count per node can not be satisfied", True),
    ],
)
def test_only_what_can_never_succeed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentence: str, final: bool
) -> None:
    """Commands that say what a small cluster without accounting cannot be made to say."""
    fake(tmp_path, monkeypatch, squeue="exit 0", sbatch=f'echo "sbatch: error: {sentence}" >&2; exit 1')
    runner = submitted(tmp_path)
    status = runner.poll()
    assert (status == Status.REFUSED) == final
    assert sentence in (runner.ended if final else runner.waiting)


def test_foreign_bytes_in_what_slurm_says_harm_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, monkeypatch, squeue="exit 1")
    name = submitted(tmp_path)._job_name()
    fake(
        tmp_path,
        monkeypatch,
        squeue=rf"printf '7 RUNNING caf\374\n8 RUNNING {name}\n'",
        scontrol=rf"printf 'JobId=8 JobName={name} JobState=RUNNING Comment=\374 NodeList=n1 RunTime=00:00:05\n'",
        scancel="exit 0",
    )
    assert [(job.id, job.state) for job in jobs(tmp_path / "runs")] == [("8", "RUNNING")]
    again = SlurmRunner(JobSpec(lease_seconds=LEASE_OF_JOBS))
    again.start(["true"], tmp_path / "runs" / "1" / "attempt-1", "")
    assert (again.job, again.poll(), again.waiting) == (8, None, "")


@pytest.mark.parametrize("said", ["", "JobId=8", "\\374\\377", "JobState="])
def test_an_answer_of_slurms_that_makes_no_sense_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    fake(tmp_path, monkeypatch, squeue="exit 0", sbatch="echo welcome; echo 8", scontrol=f"printf '{said}'")
    runner = submitted(tmp_path)
    assert runner.job == 8
    assert (runner.poll(), runner.waiting) == (None, "Slurm: scontrol has not said the job's state")


def fake(folder: Path, monkeypatch: pytest.MonkeyPatch, **commands: str) -> None:
    """Commands of Slurm's that are shell scripts of one line."""
    (folder / "bin").mkdir(exist_ok=True)
    for name, script in commands.items():
        path = folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")


def submitted(folder: Path) -> SlurmRunner:
    """A runner that has tried to submit a job."""
    attempt = folder / "runs" / "1" / "attempt-1"
    attempt.mkdir(parents=True)
    runner = SlurmRunner(JobSpec(lease_seconds=LEASE_OF_JOBS))
    runner.start(["true"], attempt, "")
    return runner


def test_what_waits_says_why_and_may_be_stopped(
    cluster: Cluster, start: Callable[..., tuple[SlurmRunner, Path]]
) -> None:
    first, second = start(LISTENS, gpus=8), start(LISTENS, gpus=8)
    here(*first)
    here(*second)
    runner, folder = start(LISTENS)
    wait_for(lambda: runner.poll() is None and "Resources" in runner.waiting, "Slurm's reason")
    assert runner.waiting == "Slurm: PENDING (Resources)"
    assert runner.seconds() == 0
    runner.stop()
    assert ended(runner) == 75
    assert (runner.seconds(), said(folder)) == (0, "")
    assert runner.waiting
    for other, _ in (first, second):
        other.kill()


def test_a_partition_that_closes_while_a_job_waits_holds_it_and_loses_nothing(
    cluster: Cluster, start: Callable[..., tuple[SlurmRunner, Path]]
) -> None:
    busy = start(LISTENS, gpus=16, nodes=2)
    here(*busy, times=2)
    runner, folder = start(LISTENS)
    wait_for(lambda: runner.poll() is None and "Resources" in runner.waiting, "Slurm's reason")
    job = runner.job
    try:
        cluster.ask("scontrol", "update", "partitionname=main", "state=inactive")
        wait_for(lambda: runner.poll() is None and "PartitionInactive" in runner.waiting, "the new reason")
        assert busy[0].poll() is None
        busy[0].kill()
        cluster.ask("scontrol", "update", "partitionname=main", "state=drain")  # what it has already may run
        here(runner, folder)
    finally:
        cluster.ask("scontrol", "update", "partitionname=main", "state=up")
    assert (runner.job, runner.waiting) == (job, "")
    runner.kill()


def test_the_end_of_slurms_time_is_a_checkpoint_too(
    cluster: Cluster, start: Callable[..., tuple[SlurmRunner, Path]]
) -> None:
    runner, folder = start(LISTENS, grace=55)
    here(runner, folder)
    assert "TimeLimit=00:12:00" in cluster.ask("scontrol", "show", "job", str(runner.job))
    cluster.ask("scontrol", "update", f"jobid={runner.job}", "timelimit=1")
    assert ended(runner) == 75


def test_slurm_may_be_away_for_a_while(cluster: Cluster, start: Callable[..., tuple[SlurmRunner, Path]]) -> None:
    """What runs goes on, what is to be submitted waits, and a stop is passed on as soon as it can be."""
    running, folder = start(LISTENS)
    here(running, folder)
    cluster.hang()
    late, late_folder = start(LISTENS)
    assert late.poll() is None
    assert (late.job, late.waiting.startswith("Slurm: ")) == (None, True)
    running.stop()
    assert running.poll() is None
    assert not running.waiting
    cluster.go_on()
    assert ended(running) == 75
    here(late, late_folder)
    late.kill()


def test_a_job_is_found_again_and_never_submitted_twice(
    cluster: Cluster, start: Callable[..., tuple[SlurmRunner, Path]]
) -> None:
    runner, folder = start(LISTENS, run=7)
    here(runner, folder)
    assert start(LISTENS, run=7)[0].job == runner.job
    (folder / "slurm-job").unlink()
    again, _ = start(LISTENS, run=7)
    assert again.job == runner.job
    assert len(cluster.ask("squeue", "--noheader").splitlines()) == 1
    again.kill()


def test_an_earlier_job_of_the_run_is_gone_before_the_next_is_submitted(
    start: Callable[..., tuple[SlurmRunner, Path]],
) -> None:
    earlier, folder = start(DEAF, run=7)
    here(earlier, folder, times=2)
    bystander, beside = start(LISTENS, run=8)
    here(bystander, beside)
    later, later_folder = start(LISTENS, run=7, token=3)
    assert later.job is None
    here(later, later_folder)
    assert of(folder) == []
    assert len(of(beside)) == 1
    stale, _ = start(LISTENS, run=7, token=2)
    assert (ended(stale), stale.job) == (75, None)
    assert later.poll() is None


@pytest.fixture
def run(lab: Lab) -> int:
    """A queued run on a pool of Slurm's."""
    return queued(lab, POOL, "slurm")


@contextmanager
def supervised(
    lab: Lab, cluster: Cluster, home: Path, run: int, last: int | None = None, *, lease: float = LEASE
) -> Iterator[tuple[Forked, int, Path]]:
    """A supervisor of the run's next attempt, its token and folder."""
    token, folder = admitted(lab, home, run, lease)
    with supervisor_of(lab, cluster, home, lease, last, run, token) as supervisor:
        yield supervisor, token, folder


def supervisor_of(
    lab: Lab, cluster: Cluster, home: Path, lease: float, last: int | None, *arguments: int
) -> AbstractContextManager[Forked]:
    """A supervisor of a run and token, after one of a generation; its trainer is the stand-in if it has a last step."""
    python = python_with_trainer(home, TRAINER.replace("LAST", str(last))) if last else Path(sys.executable)
    return supervised_by(lab, python, home, lease, {"SLURM_CONF": str(cluster.conf)}, *arguments)


def slurms_seconds(cluster: Cluster, job: int | None) -> int:
    """How long a job ran, in Slurm's own words."""
    clock = cluster.ask("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%M").strip()
    seconds = 0
    for part in clock.split(":"):
        seconds = seconds * 60 + int(part)
    return seconds


@ONCE
def test_the_trainer_itself_runs_as_a_job(lab: Lab, cluster: Cluster, tmp_path: Path, run: int) -> None:
    with supervised(lab, cluster, tmp_path, run) as (supervisor, token, folder):
        assert supervisor.wait(PATIENCE) == 0
    assert lab.run(run).state == RunState.FINISHED, said(folder)
    assert lab.row(run).step == 4
    row = attempt(lab, run, token)
    assert (row.boot_id, row.waiting) == ("slurm", "")
    assert charged(lab, run, token) == slurms_seconds(cluster, row.pid)


def test_a_run_that_waits_in_slurm_is_not_charged_and_says_why(
    lab: Lab, cluster: Cluster, tmp_path: Path, run: int
) -> None:
    cluster.ask("scontrol", "update", "nodename=n[1-2]", "state=drain", "reason=test")
    with supervised(lab, cluster, tmp_path, run, 20) as (supervisor, token, _):
        wait_for(lambda: "PENDING" in attempt(lab, run, token).waiting, "the reason of the wait")
        first = attempt(lab, run, token).lease_until
        wait_for(lambda: attempt(lab, run, token).lease_until != first, "a renewal")
        assert lab.run(run).state == RunState.STARTING
        assert "run.started" not in lab.kinds(1)
        assert charged(lab, run, token) == 0
        cluster.ask("scontrol", "update", "nodename=n[1-2]", "state=resume")
        assert supervisor.wait(PATIENCE) == 0
    assert lab.run(run).state == RunState.FINISHED
    assert "run.started" in lab.kinds(1)
    row = attempt(lab, run, token)
    assert row.waiting == ""
    assert charged(lab, run, token) == slurms_seconds(cluster, row.pid)


def test_a_run_that_is_cancelled_while_it_waits_in_slurm_costs_nothing(
    lab: Lab, cluster: Cluster, tmp_path: Path, run: int
) -> None:
    cluster.ask("scontrol", "update", "nodename=n[1-2]", "state=drain", "reason=test")
    with supervised(lab, cluster, tmp_path, run, 20) as (supervisor, token, folder):
        wait_for(lambda: "PENDING" in attempt(lab, run, token).waiting, "the reason of the wait")
        lab.cancel(run)
        assert supervisor.wait(PATIENCE) == 0
    assert lab.run(run).state == RunState.CANCELLED
    assert (charged(lab, run, token), said(folder)) == (0, "")
    assert cluster.ask("squeue", "--noheader") == ""


@ONCE
def test_a_cancelled_job_leaves_a_checkpoint(lab: Lab, cluster: Cluster, tmp_path: Path, run: int) -> None:
    with supervised(lab, cluster, tmp_path, run, 10000) as (supervisor, _, folder):
        wait_for(lambda: (folder / "checkpoints" / "step10").exists(), "a checkpoint")
        lab.cancel(run)
        assert supervisor.wait(PATIENCE) == 0
    assert lab.run(run).state == RunState.CANCELLED
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert (folder / "checkpoints" / f"step{last}").exists()


def test_a_run_goes_on_elsewhere_while_its_old_job_still_lives_on_a_lost_node(
    lab: Lab, cluster: Cluster, tmp_path: Path, run: int
) -> None:
    """Slurm gives the node up, and nobody can reach what runs there: it writes on, and no one reads it."""
    with supervised(lab, cluster, tmp_path, run, 10000) as (supervisor, token, old):
        wait_for(lambda: (old / "checkpoints" / "step10").exists(), "a checkpoint")
        node = (old / "node").read_text()
        cluster.end(node)
        cluster.ask("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        assert supervisor.wait(PATIENCE) == 0
    first = attempt(lab, run, token)
    assert lab.run(run).state == RunState.QUEUED
    assert first.reason == f"Slurm ended the job: NODE_FAIL on {node}"
    assert first.end_reason == EndReason.NODE_FAILED
    assert abs(charged(lab, run, token) - slurms_seconds(cluster, first.pid)) <= 1

    with supervised(lab, cluster, tmp_path, run, 10000) as (supervisor, second, new):
        wait_for(lambda: (new / "metrics.jsonl").exists(), "the second attempt")
        assert (new / "node").read_text() != node
        closed = json.loads((old / "closed.json").read_text())
        size = (old / "metrics.jsonl").stat().st_size
        wait_for(lambda: set(os.listdir(old / "checkpoints")) > set(closed), "a stale checkpoint")
        wait_for(lambda: (old / "metrics.jsonl").stat().st_size > size, "stale steps")
        assert of(old)
        paid = charged(lab, run, token)
        lab.cancel(run)
        assert supervisor.wait(PATIENCE) == 0
    assert lab.run(run).state == RunState.CANCELLED
    last = attempt(lab, run, second)
    assert charged(lab, run, token) == paid
    assert charged(lab, run, second) == slurms_seconds(cluster, last.pid)
    assert lab.account(1).reserved == 0
    assert lab.row(run).step == json.loads((new / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    read = output.checkpoints([old, new])
    assert {Path(found.folder).name for found in read if found.folder.startswith(f"{old}/")} == set(closed)
    assert of(old)


@ONCE
def test_a_job_that_an_operator_cancels_goes_on_later_from_its_checkpoint(
    lab: Lab, cluster: Cluster, tmp_path: Path, run: int
) -> None:
    with supervised(lab, cluster, tmp_path, run, 10000) as (supervisor, token, folder):
        wait_for(lambda: (folder / "checkpoints" / "step10").exists(), "a checkpoint")
        cluster.ask("scancel", str(attempt(lab, run, token).pid))
        assert supervisor.wait(PATIENCE) == 0
    assert lab.run(run).state == RunState.QUEUED
    last = attempt(lab, run, token)
    assert (last.failed, last.end_reason) == (False, EndReason.RUNNER_ENDED)
    assert last.reason.startswith("Slurm ended the job: CANCELLED on ")
    assert json.loads((folder / "outcome.json").read_text())["status"] == 75


@ONCE
def test_a_job_that_is_preempted_leaves_a_checkpoint_and_goes_on_from_it(
    lab: Lab, cluster: Cluster, tmp_path: Path, run: int
) -> None:
    other = lab.launch(1, overrides="steps=4, batch=2, micro_batch=2, sequence_length=32")
    with lab.db.write() as session:
        inventory.change_pool(session, None, POOL, preempt_after=60, reason="Much is asked for.")
    with supervised(lab, cluster, tmp_path, run, 10000) as (supervisor, _, folder):
        wait_for(lambda: (folder / "checkpoints" / "step10").exists(), "a checkpoint")
        wait_for(lambda: lab.run(run).state == RunState.RUNNING, "the run")
        with lab.db.write() as session:
            control.preempt(session, [run], other)
        assert supervisor.wait(PATIENCE) == 0
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    back = f"Preempted for run {other} of project P1; continues from step {last:,} when cores are free"
    assert (lab.run(run).state, lab.run(run).reason) == (RunState.QUEUED, back)
    assert lab.kinds(1)[-1] == "run.preempted"
    assert "run.refunded" not in lab.kinds(1)
    with supervised(lab, cluster, tmp_path, run, last + 5) as (supervisor, _, folder):
        assert supervisor.wait(PATIENCE) == 0
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["step"] == last + 1
    assert lab.run(run).state == RunState.FINISHED


def test_a_job_whose_attempt_is_given_up_is_ended_though_no_other_follows(
    lab: Lab, cluster: Cluster, tmp_path: Path, run: int
) -> None:
    conf, pool = settings(tmp_path), lab.row(run).pool_id
    with supervised(lab, cluster, tmp_path, run, 10000) as (supervisor, token, folder):
        wait_for(lambda: (folder / "checkpoints" / "step10").exists(), "a checkpoint")
        wait_for(lambda: lab.run(run).state == RunState.RUNNING, "the run")
        supervisor.kill()
        supervisor.wait()
        assert reaper.end_strays(conf, lab.db, pool) == 0
        lab.cancel(run)
        until = attempt(lab, run, token).lease_until
        assert until is not None
        wait_for(lambda: utcnow() > until, "the end of the lease")
        lab.expire(run, token)
        assert lab.run(run).state == RunState.CANCELLED
        assert reaper.end_strays(conf, lab.db, pool) == 1
        wait_for(lambda: not of(folder), "the end of the job")
        wait_for(lambda: cluster.ask("squeue", "--noheader") == "", "an empty queue")
        assert reaper.end_strays(conf, lab.db, pool) == 0
    assert json.loads((folder / "outcome.json").read_text())["status"] == 75


@ONCE
def test_a_job_outlives_its_supervisor_and_gets_another(lab: Lab, cluster: Cluster, tmp_path: Path, run: int) -> None:
    arguments = (10000, run, 1, 1)
    with supervised(lab, cluster, tmp_path, run, 10000, lease=60) as (first, token, folder):
        wait_for(lambda: lab.row(run).step > 2, "some steps")
        job = attempt(lab, run, token).pid
        with supervisor_of(lab, cluster, tmp_path, 60, *arguments) as early:
            assert early.wait(PATIENCE) == 1, "nobody takes over from one that lives"
        first.kill()
        first.wait()
        with supervisor_of(lab, cluster, tmp_path, LEASE, *arguments) as successor:
            wait_for(lambda: attempt(lab, run, token).generation == 2, "the successor")
            seen = lab.row(run).step
            wait_for(lambda: lab.row(run).step > seen + 2, "more steps")
            with supervisor_of(lab, cluster, tmp_path, 60, *arguments) as late:
                assert late.wait(PATIENCE) == 1, "one successor is enough"
            lab.cancel(run)
            assert successor.wait(PATIENCE) == 0
    assert lab.run(run).state == RunState.CANCELLED
    assert [int(known.id) for known in jobs(tmp_path / "runs")] == [attempt(lab, run, token).pid] == [job]
    assert charged(lab, run, token) == slurms_seconds(cluster, job)
    assert json.loads((folder / "outcome.json").read_text())["status"] == 75
    assert lab.kinds(1).count("run.started") == 1


@ONCE
def test_a_job_that_waits_keeps_its_place_when_its_supervisor_dies(
    lab: Lab, cluster: Cluster, tmp_path: Path, run: int
) -> None:
    cluster.ask("scontrol", "update", "nodename=n[1-2]", "state=drain", "reason=test")
    with supervised(lab, cluster, tmp_path, run, 10, lease=60) as (first, token, _):
        wait_for(lambda: "PENDING" in attempt(lab, run, token).waiting, "the reason of the wait")
        job = attempt(lab, run, token).pid
        first.kill()
        first.wait()
        with supervisor_of(lab, cluster, tmp_path, LEASE, 10, run, 1, 1) as successor:
            wait_for(lambda: attempt(lab, run, token).generation == 2, "the successor")
            assert attempt(lab, run, token).state == "claimed"
            cluster.ask("scontrol", "update", "nodename=n[1-2]", "state=resume")
            assert successor.wait(PATIENCE) == 0
    assert lab.run(run).state == RunState.FINISHED
    assert [int(known.id) for known in jobs(tmp_path / "runs")] == [attempt(lab, run, token).pid] == [job]
    assert charged(lab, run, token) == slurms_seconds(cluster, job)
    assert lab.kinds(1).count("run.started") == 1


def test_doctor_learns_whether_slurm_answers(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert SlurmRunner.check({}) == Check("the controller answers")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "nowhere"))
    assert "SLURM_CONF" in SlurmRunner.check({}).advice


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"runner_options": {"partition": "main --wrap=id"}}, "partition"),
        ({"runner_options": {"gres": "gpu:h200:8"}}, "GRES"),
        ({"runner_options": {"gres": "gpu;id"}}, "GRES"),
        ({"runner_options": {"queue": "long"}}, "has no “queue”; its own fields are: partition, gres"),
        ({"most_submitted": 0}, "At least one job"),
    ],
)
def test_a_pool_of_slurms_is_checked(lab: Lab, wrong: dict[str, object], sentence: str) -> None:
    before = lab.everything()
    with pytest.raises(InvalidError, match=sentence), lab.db.write() as session:
        pools.add_pool(session, name=POOL, gpu_type="h200", gpus=16, runner="slurm", **wrong)  # type: ignore[arg-type]
    assert lab.everything() == before
