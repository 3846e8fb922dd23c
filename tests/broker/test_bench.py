"""The benchmarks of the queue, launches and the store run, and their last line is JSON that says what was missed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.goals import Goal, as_json
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]


def test_a_small_queue_is_timed() -> None:
    command = [sys.executable, "-m", "bench.broker", "--sizes", "20,40", "--rounds", "1"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=PATIENCE, check=True)
    goals = json.loads(done.stdout.splitlines()[-1])
    assert goals["40: seconds to load and plan"]["value"] > 0
    assert not any(goal["missed"] for goal in goals.values())


def test_a_small_checkpoint_is_timed() -> None:
    command = [sys.executable, "-m", "bench.store", "--mib", "2", "--rounds", "1"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=PATIENCE, check=False)
    goals = json.loads(done.stdout.splitlines()[-1])
    assert [(name, goal["value"] > 0, goal["most"]) for name, goal in goals.items()] == [
        ("2 MiB into the store, times S3 alone", True, 1.3),
        ("2 MiB into the store, times weed filer.copy", True, None),
    ]
    assert done.returncode == any(goal["missed"] for goal in goals.values())


@pytest.mark.chaos
def test_two_launches_are_timed() -> None:
    command = [sys.executable, "-m", "bench.launch", "--launches", "2"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=PATIENCE, check=False)
    said, last = done.stdout.splitlines()[-2:]
    median, p95, imports = map(float, re.findall(r"[0-9.]+(?= s)", said))
    goals = json.loads(last)
    assert goals["seconds of imports"]["value"] == pytest.approx(imports, abs=0.01)
    p95_goal = goals["p95: seconds from launch to trainer, without imports"]
    assert p95_goal["value"] == pytest.approx(p95 - imports, abs=0.02)
    assert p95_goal["most"] == 1.0
    assert p95 >= median > 0
    assert done.returncode == any(goal["missed"] for goal in goals.values())


def test_a_goal_is_missed_below_or_above_and_not_where_nothing_was_measured() -> None:
    goals = [Goal("a", 1.0, least=2), Goal("b", 3.0, most=2), Goal("c", 2.0, least=2, most=2), Goal("d", None, least=1)]
    said = json.loads(as_json(goals))
    assert {name: goal["missed"] for name, goal in said.items()} == {"a": True, "b": True, "c": False, "d": False}
