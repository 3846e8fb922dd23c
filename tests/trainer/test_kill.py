"""`kill -9` at any moment leaves the last whole checkpoint usable, and a rerun ends where an untroubled run ends."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.patience import PATIENCE
from tests.trainer.conftest import run_trainer, start_trainer, write_config
from tests.trainer.test_run import losses
from trainer.checkpoint import folders, metadata
from trainer.contract import checkpoint_folder

STEPS = 24
EVERY_STEP = {"checkpoints": {"log_until": 0, "every": 1}, "data": {}}


def config_in(folder: Path) -> Path:
    return write_config(folder / "tiny.yml", EVERY_STEP, steps=STEPS, evaluate_every=1000)


@pytest.fixture(scope="module")
def untroubled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untroubled")
    result = run_trainer("train", config_in(folder), "--out", folder / "out")
    assert result.returncode == 0, result.stderr
    return folder / "out"


def kill_when(moment: Callable[[Path], object], folder: Path) -> Path:
    """Start a run, kill its whole process group at the moment, and give its folder."""
    out = folder / "out"
    parent = start_trainer("train", config_in(folder), "--out", out)
    try:
        deadline = time.monotonic() + PATIENCE
        while not moment(out):
            assert parent.poll() is None, "it ended before the moment came"
            assert time.monotonic() < deadline, "the moment never came"
            time.sleep(0.001)
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait(PATIENCE)
    return out


def goes_on_to_the_same_end(out: Path, untroubled: Path, folder: Path) -> None:
    newest = folders.newest(out)
    if newest is not None:
        AutoModelForCausalLM.from_pretrained(newest)
        step = metadata.read(newest)["step"]
        if step:
            load_file(newest / "trainer" / "optimizer.safetensors")
        assert newest.name == f"step{step}"
    result = run_trainer("train", config_in(folder), "--out", out)
    assert result.returncode == 0, result.stderr
    assert losses(out) == losses(untroubled)
    ours, theirs = (load_file(run / f"checkpoints/step{STEPS}/model.safetensors") for run in (out, untroubled))
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def writing(out: Path) -> bool:
    return any((out / "checkpoints").glob(".step*.writing")) and folders.newest(out) is not None


def just_written(out: Path) -> bool:
    return checkpoint_folder(out, 7).exists()


def in_a_step(out: Path) -> bool:
    return checkpoint_folder(out, 12).exists() and not any((out / "checkpoints").glob(".step*.writing"))


@pytest.mark.parametrize("moment", [writing, just_written, in_a_step], ids=lambda moment: moment.__name__)
def test_killed(moment: Callable[[Path], object], untroubled: Path, tmp_path: Path) -> None:
    out = kill_when(moment, tmp_path)
    assert not (out / "outcome.json").exists()
    goes_on_to_the_same_end(out, untroubled, tmp_path)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(30))
def test_killed_at_a_random_moment(seed: int, untroubled: Path, tmp_path: Path) -> None:
    seconds = random.Random(seed).uniform(0, 12)
    began = time.monotonic()
    out = tmp_path / "out"

    def moment(_out: Path) -> bool:
        time.sleep(0.001)
        return time.monotonic() - began > seconds or (out / "outcome.json").exists()

    goes_on_to_the_same_end(kill_when(moment, tmp_path), untroubled, tmp_path)
