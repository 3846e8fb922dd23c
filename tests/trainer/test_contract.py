"""Statuses and processes: how a run of two ranks ends when it is stopped, refused or killed."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.forked import Forked
from tests.patience import PATIENCE, wait_for
from tests.trainer.conftest import SCRUBBED, TINY, run_trainer, start_trainer, write_config
from tests.trainer.test_run import lines, losses, outcome
from trainer.checkpoint import folders, metadata
from trainer.contract import checkpoint_folder

FOREVER = 1_000_000


def steps_logged(out: Path) -> int:
    path = out / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@contextmanager
def training(out: Path, config: Path) -> Iterator[tuple[Forked, list[psutil.Process]]]:
    """A trainer at work on two ranks, and its ranks; nothing of it is left afterwards."""
    parent = start_trainer("train", config, "--out", out, "--gpus", "2")
    try:
        wait_for(lambda: len(psutil.Process(parent.pid).children()) == 2)
        yield parent, psutil.Process(parent.pid).children()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.wait(PATIENCE)


def test_killed_rank_then_a_rerun_then_a_stop(tmp_path: Path) -> None:
    out, config = tmp_path / "out", write_config(tmp_path / "tiny.yml", steps=FOREVER, evaluate_every=FOREVER)

    with training(out, config) as (parent, ranks):
        wait_for(lambda: steps_logged(out) >= 6)
        ranks[1].kill()
        assert parent.wait(timeout=PATIENCE) == 70
        assert not any(rank.is_running() for rank in ranks)
    assert outcome(out)["transient"] is True
    assert outcome(out)["reason"] == "Rank 1 was killed by SIGKILL."
    assert lines(out / "events.jsonl")[-1]["event"] == "failed"
    newest = folders.newest(out)
    assert newest is not None
    reached = metadata.read(newest)["step"]
    logged = steps_logged(out)

    with training(out, config) as (parent, ranks):
        assert not (out / "outcome.json").exists()
        assert os.getpgid(parent.pid) == parent.pid
        assert {os.getpgid(rank.pid) for rank in ranks} == {parent.pid}
        wait_for(lambda: steps_logged(out) > logged + 3)
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(timeout=PATIENCE) == 75
    steps = [line["step"] for line in lines(out / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1))
    assert any(event["event"] == "started" and event["step"] == reached for event in lines(out / "events.jsonl"))
    ended = outcome(out)
    assert ended["status"] == 75
    assert ended["step"] == lines(out / "metrics.jsonl")[-1]["step"]
    assert metadata.read(checkpoint_folder(out, ended["step"]))["step"] == ended["step"]


def test_no_rank_outlives_its_parent(tmp_path: Path) -> None:
    with training(tmp_path / "out", write_config(tmp_path / "tiny.yml")) as (parent, ranks):
        # Whatever each rank is doing, starting up included.
        time.sleep(1.0)
        parent.kill()
        parent.wait()
        wait_for(lambda: not any(rank.is_running() for rank in ranks))


def test_stop_of_the_whole_group_before_training_began(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with training(out, write_config(tmp_path / "tiny.yml", steps=FOREVER)) as (parent, _ranks):
        for _ in range(3):
            os.killpg(parent.pid, signal.SIGTERM)
        assert parent.wait(timeout=PATIENCE) == 75
    assert outcome(out) == {"status": 75, "reason": None, "step": 0, "transient": False}


def test_wrong_configuration(tmp_path: Path) -> None:
    config = write_config(tmp_path / "tiny.yml", steps=0)
    result = run_trainer("train", config, "--out", tmp_path / "out", "--gpus", "2")
    assert result.returncode == 78
    said = "training.steps must be a number greater than or equal to 1, not '0'."
    assert result.stderr == said + "\n"
    assert outcome(tmp_path / "out") == {"status": 78, "reason": said, "step": None, "transient": False}


def test_configuration_that_only_the_ranks_can_refuse(tmp_path: Path) -> None:
    config = write_config(tmp_path / "tiny.yml", evaluation_tokens=10_000_000)
    result = run_trainer("train", config, "--out", tmp_path / "out", "--gpus", "2")
    assert result.returncode == 78
    assert "training.evaluation_tokens asks for" in result.stderr
    assert "raise data.held_out" in json.loads((tmp_path / "out" / "outcome.json").read_text())["reason"]


@pytest.mark.parametrize(("key", "said"), [("seed", "training.seed is 7 here and 1234"), ("steps", "at least the")])
def test_checkpoint_of_another_configuration_is_refused(finished: Path, tmp_path: Path, key: str, said: str) -> None:
    changed: dict[str, Any] = {key: 7}
    config = write_config(tmp_path / "tiny.yml", **changed)
    start = finished / "checkpoints" / "step12"
    result = run_trainer("train", config, "--out", tmp_path / "out", "--resume", start)
    assert result.returncode == 78
    assert said in result.stderr


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = run_trainer("train", write_config(tmp_path / "tiny.yml"), "--out", tmp_path / "file" / "out")
    assert result.returncode == 78
    assert "cannot be written (Not a directory); give --out another." in result.stderr


def test_two_trainers_never_share_a_folder(tmp_path: Path) -> None:
    config = write_config(tmp_path / "tiny.yml")
    with training(tmp_path / "out", config):
        result = run_trainer("train", config, "--out", tmp_path / "out")
    assert result.returncode == 78
    assert "Another trainer is at work" in result.stderr


def test_full_disk_keeps_the_last_whole_checkpoint(tmp_path: Path) -> None:
    """A file may have 300,000 bytes: enough for the weights, too few for Adam's moments, which step 0 has not."""
    config, limits = write_config(tmp_path / "tiny.yml"), {resource.RLIMIT_FSIZE: 300_000}
    result = run_trainer("train", config, "--out", tmp_path / "out", limits=limits)
    assert result.returncode == 70
    assert result.stderr.splitlines()[-1].startswith("The checkpoint of step 1 could not be written (")
    assert "step0 is whole. Make room on the disk and start again with the same --out." in result.stderr
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["step0"]
    result = run_trainer("train", config, "--out", tmp_path / "out")
    assert result.returncode == 0
    assert lines(tmp_path / "out" / "metrics.jsonl")[-1]["step"] == 12


def test_out_of_memory_says_what_would_fit(tmp_path: Path) -> None:
    config = write_config(tmp_path / "tiny.yml", batch=2**17, micro_batch=2**16)
    result = run_trainer("train", config, "--out", tmp_path / "out", limits={resource.RLIMIT_AS: 5 * 2**29})
    assert result.returncode == 70
    said = result.stderr.splitlines()[-1]
    assert said.startswith("Out of memory on rank 0: it needs about ")
    assert "with training.micro_batch " in said
    assert said.endswith(" it would need about " + said.rsplit(" it would need about ")[1])


SCRIPT = """
import sys
from pathlib import Path
from trainer.distributed import oom_kills
folder = Path(sys.argv.pop(1))
oom_kills.VMSTAT, oom_kills.OWN_GROUP, oom_kills.GROUPS = folder / "vmstat", folder / "cgroup", folder
from trainer.__main__ import app
app()
"""


@pytest.mark.parametrize(
    ("grouped", "counts", "why"),
    [
        (True, "job/memory.events", ", because memory ran out. It was expected to need "),
        (True, "vmstat", ".\n"),
        (False, "vmstat", ", perhaps because its host ran out of memory. It was expected to need "),
    ],
)
def test_a_rank_that_the_kernel_kills_says_what_memory_it_needs(
    tmp_path: Path, grouped: bool, counts: str, why: str
) -> None:
    """Files stand for the kernel's counters: no test may use up a host's memory."""
    out = tmp_path / "out"
    (tmp_path / "cgroup").write_text("4:memory:/other\n0::/job\n" if grouped else "4:memory:/job\n")
    (tmp_path / "job").mkdir()
    for counters in ("job/memory.events", "vmstat"):
        (tmp_path / counters).write_text("oom 9\noom_kill 3\n")
    command = [sys.executable, "-c", SCRIPT, tmp_path, "train", write_config(tmp_path / "tiny.yml"), "--out", out]
    with subprocess.Popen(list(map(str, command)), env=SCRUBBED, stderr=subprocess.PIPE, text=True) as parent:
        try:
            wait_for(lambda: len(psutil.Process(parent.pid).children()) == 1)
            (tmp_path / counts).write_text("oom 9\noom_kill 4\n")
            psutil.Process(parent.pid).children()[0].kill()
            _, said = parent.communicate(timeout=PATIENCE)
        finally:
            parent.kill()
    assert said.startswith(f"Rank 0 was killed by SIGKILL{why}")
    assert said.endswith("; other programs may hold the rest.\n") == ("memory" in why)
    assert outcome(out)["transient"] is True


def test_two_starts_with_one_rendezvous_are_two_hosts(finished: Path, tmp_path: Path) -> None:
    """Two ranks on one host, and one rank on each of two: the same run."""
    with socket.create_server(("127.0.0.2", 0)) as free:
        port = free.getsockname()[1]
    config, out = write_config(tmp_path / "tiny.yml"), tmp_path / "out"
    together = ("train", config, "--out", out, "--hosts", "2", "--rendezvous", f"127.0.0.2:{port}")
    hosts = [start_trainer(*together, "--host", str(i), "--address", f"127.0.0.{2 + i}") for i in range(2)]
    try:
        assert [host.wait(timeout=PATIENCE) for host in hosts] == [0, 0]
    finally:
        for host in hosts:
            with suppress(ProcessLookupError):
                os.killpg(host.pid, signal.SIGKILL)
            host.wait(PATIENCE)
    assert outcome(out) == {"status": 0, "reason": None, "step": 12, "transient": False}
    assert lines(out / "events.jsonl")[0]["ranks"] == 2
    assert losses(out) == pytest.approx(losses(finished), rel=1e-5)
    assert len([event for event in lines(out / "events.jsonl") if event["event"] in ("started", "finished")]) == 2


@pytest.mark.parametrize("what", ["configuration", "prepared corpus"])
def test_hosts_that_start_otherwise_do_not_train_together(what: str, finished: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.2", 0)) as free:
        port = free.getsockname()[1]
    hosts = []
    for number in range(2):
        sections = {"optimizer": {"learning_rate": 0.01 + number / 2}}
        if what == "prepared corpus":
            sections = {"data": TINY["data"] | {"prepared": str(prepared_beside(finished, tmp_path / f"data{number}"))}}
        config = write_config(tmp_path / f"{number}.yml", sections)
        options = ("--hosts", "2", "--host", str(number), "--rendezvous", f"127.0.0.2:{port}")
        hosts.append(start_trainer("train", config, "--out", tmp_path / "out", *options))
    try:
        assert [host.wait(timeout=PATIENCE) for host in hosts] == [78, 78]
    finally:
        for host in hosts:
            with suppress(ProcessLookupError):
                os.killpg(host.pid, signal.SIGKILL)
            host.wait(PATIENCE)
    assert outcome(tmp_path / "out")["reason"] == f"The {what} of rank 1 is not that of rank 0; start all hosts alike."


def prepared_beside(finished: Path, folder: Path) -> Path:
    """A copy of a run's data whose manifest tells of another text than those of other copies."""
    shutil.copytree(finished / "data", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sources"][0]["train"]["sha256"] = folder.name
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--hosts", "2"), "--rendezvous must be ADDRESS:PORT of host 0"),
        (("--hosts", "2", "--host", "2", "--rendezvous", "127.0.0.2:29500"), "--host (2) counts from 0"),
        (("--hosts", "2", "--rendezvous", "127.0.0.2:99999"), "--rendezvous must be ADDRESS:PORT"),
        (("--hosts", "2", "--rendezvous", "192.0.2.1:29500"), "192.0.2.1:29500 cannot be held on this host"),
        (("--hosts", "1", "--host", "3"), "--host (3) counts from 0 and must be less than --hosts (1)."),
        (("--gpus", "3"), "training.batch (8) must be a multiple of training.micro_batch"),
    ],
)
def test_hosts_that_do_not_fit(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    result = run_trainer("train", write_config(tmp_path / "tiny.yml"), "--out", tmp_path / "out", *options)
    assert result.returncode == 78
    assert said in result.stderr


def test_layout_that_does_not_fit_the_processes(tmp_path: Path) -> None:
    config = write_config(tmp_path / "tiny.yml", {"parallel": {"pipeline": 2, "tensor": 2}})
    result = run_trainer("train", config, "--out", tmp_path / "out", "--gpus", "2")
    assert result.returncode == 78
    assert "parallel.pipeline × parallel.tensor (2 × 2) must divide the number of ranks (2)" in result.stderr
