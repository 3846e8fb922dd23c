"""The benchmark's small mode: both sides run, agree in their losses, and the last line is JSON."""

import json
import subprocess
import sys

import pytest

from tests.patience import PATIENCE
from tests.trainer.conftest import ROOT


@pytest.mark.chaos
def test_the_plain_way_measures_the_same() -> None:
    command = [sys.executable, "-m", "bench.study", "--checkpoints", "2", "--small"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=PATIENCE, check=False)
    goals = json.loads(done.stdout.splitlines()[-1])
    assert not goals["results apart"]["missed"]
    assert goals["2 checkpoints, the plain way by the trainer"]["value"] > 0
    assert done.returncode == any(goal["missed"] for goal in goals.values())


@pytest.mark.chaos
def test_both_sides_compute_the_same() -> None:
    command = [sys.executable, "-m", "bench.trainer", "--small", "--turns", "1"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=PATIENCE, check=True)
    goals = json.loads(done.stdout.splitlines()[-1])
    assert goals["small tuned: losses apart"]["value"] < 0.02
    assert not any(goal["missed"] for goal in goals.values())
    assert "tokens/s" in done.stderr
