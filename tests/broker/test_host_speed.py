"""The speed of a host's GPUs: measured once a version of torch in a process of its own, kept, and announced."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from broker.allocations import hosts
from broker.runners import host_speed
from projects.db.columns import utcnow
from tests.environment import bare
from tests.standin import python_with_trainer

GPUS: list[dict[str, Any]] = [{"name": "H200", "memory_mib": 144_000}] * 2
H200 = {"precision": "bf16", "tflops": 650.4}
SPEED = """
import json, os, pathlib
assert not [name for name in os.environ if name.startswith("STOA")], os.environ
with (pathlib.Path(__file__).parent / "calls").open("a") as file:
    file.write("measured\\n")
print(json.dumps({"NVIDIA H200": {"precision": "bf16", "tflops": 650.4}}))
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the program that stands before the measurement has noted."""
    python = python_with_trainer(tmp_path, "")
    package = tmp_path / "standin" / "trainer"
    (package / "speed.py").write_text(SPEED)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("STOA_STORE_SECRET", "nobody's business")
    return package / "calls"


def test_a_speed_is_measured_once_and_kept(calls: Path, tmp_path: Path) -> None:
    assert host_speed.kept(tmp_path, GPUS, "2.13.0") is None
    speeds = host_speed.measure(tmp_path, GPUS, "2.13.0")
    assert host_speed.kept(tmp_path, GPUS, "2.13.0") == speeds == {"NVIDIA H200": H200}
    assert host_speed.kept(tmp_path, GPUS, "2.14.0") is None, "another torch may be faster"
    assert host_speed.kept(tmp_path, [{"name": "V100"}], "2.13.0") is None
    assert calls.read_text() == "measured\n"
    assert host_speed.told(GPUS, speeds) == [gpu | H200 for gpu in GPUS], "torch calls it by a longer name"
    mixed: list[dict[str, Any]] = [*GPUS, {"name": "NVIDIA H200"}]
    assert host_speed.told(mixed, speeds) == [*GPUS, {"name": "NVIDIA H200"} | H200]
    (tmp_path / host_speed.SPEEDS_FILE).write_text("[]")
    assert host_speed.kept(tmp_path, GPUS, "2.13.0") is None


def test_a_measurement_that_fails_tells_no_speed(calls: Path, tmp_path: Path) -> None:
    (calls.parent / "speed.py").write_text("raise SystemExit('no driver')")
    assert host_speed.measure(tmp_path, GPUS, "2.13.0") == {}
    assert host_speed.kept(tmp_path, GPUS, "2.13.0") is None


def test_people_read_the_gpus_of_a_host_with_their_speed() -> None:
    def read(*gpus: dict[str, object]) -> list[str]:
        return list(hosts.gpu_kinds(hosts.HostView("one", [], {"gpus": gpus}, utcnow(), is_away=False)))

    assert read() == []
    assert read({"name": "H200"} | H200, {"name": "H200"} | H200, {"name": "V100"}) == [
        "2 × H200 (650 TFLOP/s in bf16)",
        "1 × V100",
    ]


def test_a_device_is_measured_by_its_products() -> None:
    command = [sys.executable, "-m", "trainer.speed", "cpu"]
    said = json.loads(subprocess.run(command, env=bare(), stdout=subprocess.PIPE, check=True).stdout)
    assert said["cpu"]["precision"] == "fp32"
    assert said["cpu"]["tflops"] > 0
