"""Statuses and processes: how a run of two ranks ends when it is stopped, refused or killed."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.trainer.conftest import run_trainer, start_trainer, write_config
from tests.trainer.test_run import lines, outcome
from trainer import checkpoint

FOREVER = 1_000_000


def wait_for(what: Callable[[], object], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def steps_logged(out: Path) -> int:
    path = out / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@contextmanager
def training(out: Path, config: Path) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A trainer at work on two ranks, and its ranks; nothing of it is left afterwards."""
    parent = start_trainer("train", config, "--out", out, "--gpus", "2")
    try:
        wait_for(lambda: len(psutil.Process(parent.pid).children()) == 2)
        yield parent, psutil.Process(parent.pid).children()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.communicate(timeout=30)


def test_killed_rank_then_a_rerun_then_a_stop(tmp_path: Path) -> None:
    out, config = tmp_path / "out", write_config(tmp_path / "tiny.yml", steps=FOREVER, evaluate_every=FOREVER)

    with training(out, config) as (parent, ranks):
        wait_for(lambda: steps_logged(out) >= 6)
        ranks[1].kill()
        assert parent.wait(timeout=60) == 70
        assert not any(rank.is_running() for rank in ranks)
    assert outcome(out)["transient"] is True
    assert outcome(out)["reason"] == "Rank 1 was killed by SIGKILL."
    assert lines(out / "events.jsonl")[-1]["event"] == "failed"
    newest = checkpoint.newest(out)
    assert newest is not None
    reached = checkpoint.how(newest)["step"]
    logged = steps_logged(out)

    with training(out, config) as (parent, ranks):
        assert not (out / "outcome.json").exists()
        assert os.getpgid(parent.pid) == parent.pid
        assert {os.getpgid(rank.pid) for rank in ranks} == {parent.pid}
        wait_for(lambda: steps_logged(out) >= logged + 3)
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(timeout=60) == 75
    assert lines(out / "metrics.jsonl")[logged]["step"] == reached + 1
    ended = outcome(out)
    assert ended["status"] == 75
    assert ended["step"] == lines(out / "metrics.jsonl")[-1]["step"]
    assert checkpoint.how(checkpoint.folder_of(out, ended["step"]))["step"] == ended["step"]


def test_no_rank_outlives_its_parent(tmp_path: Path) -> None:
    with training(tmp_path / "out", write_config(tmp_path / "tiny.yml")) as (parent, ranks):
        # Whatever each rank is doing, starting up included.
        time.sleep(1.0)
        parent.kill()
        parent.wait()
        wait_for(lambda: not any(rank.is_running() for rank in ranks), seconds=5)


def test_stop_of_the_whole_group_before_training_began(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with training(out, write_config(tmp_path / "tiny.yml", steps=FOREVER)) as (parent, _ranks):
        for _ in range(3):
            os.killpg(parent.pid, signal.SIGTERM)
        assert parent.wait(timeout=60) == 75
    assert outcome(out) == {"status": 75, "reason": None, "step": 0, "transient": False}


def test_wrong_configuration(tmp_path: Path) -> None:
    config = write_config(tmp_path / "tiny.yml", steps=0)
    began = time.monotonic()
    result = run_trainer("train", config, "--out", tmp_path / "out", "--gpus", "2")
    assert time.monotonic() - began < 10
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
    config = write_config(tmp_path / "tiny.yml", **{key: 7})
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
