"""Processes as the local runner starts, knows and ends them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from broker.runners import shim
from broker.runners.base import JobSpec
from broker.runners.local import LocalRunner
from broker.runners.processes import Process, alive, identify, kill_group
from tests.patience import wait_for

PARENT = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)']); "
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
WAIT = "print('here', flush=True); time.sleep(3600)"


@pytest.fixture
def group() -> Iterator[subprocess.Popen[bytes]]:
    """A process that leads a group with a child in it; both ignore SIGTERM."""
    leader = subprocess.Popen(
        [sys.executable, "-c", DEAF + PARENT + WAIT], start_new_session=True, stdout=subprocess.PIPE
    )
    assert leader.stdout is not None
    assert leader.stdout.readline() == b"here\n"
    yield leader
    for pid in members(leader.pid):
        os.kill(pid, signal.SIGKILL)
    leader.wait()
    leader.stdout.close()


def members(group: int) -> list[int]:
    """The living processes of a group."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (psutil.Error, ProcessLookupError):
            continue
    return sorted(found)


def test_the_whole_group_is_ended_and_nothing_else(group: subprocess.Popen[bytes]) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    alive = members(group.pid)
    assert len(alive) == 2
    assert sorted(kill_group(identify(group.pid))) == alive
    assert members(group.pid) == []
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
    assert kill_group(replace(identify(os.getpid()), pid=bystander.pid)) == []


def test_children_are_ended_though_their_leader_is_gone(group: subprocess.Popen[bytes]) -> None:
    leader = identify(group.pid)
    group.kill()
    group.wait()
    (child,) = members(group.pid)
    assert kill_group(leader) == [child]
    assert members(group.pid) == []


def test_a_stranger_who_was_given_the_number_is_left_alone(group: subprocess.Popen[bytes]) -> None:
    theirs = identify(group.pid)
    strangers = [
        replace(theirs, started=theirs.started - 5),
        replace(theirs, started=theirs.started + 5),
        replace(theirs, host="another-host", boot_id=theirs.boot_id.partition(":")[0]),
        replace(theirs, boot_id="another-boot"),
        replace(theirs, boot_id=theirs.boot_id.partition(":")[0] + ":1"),
        Process(theirs.host, theirs.boot_id, theirs.pid, 0),
    ]
    assert [kill_group(stranger) for stranger in strangers] == [[]] * len(strangers)
    assert len(members(group.pid)) == 2


def test_a_trainer_sees_no_secret_and_stands_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STOA_DISCORD_TOKEN", "STOA_HUB_TOKEN", "STOA_DATABASE_URL", "HF_TOKEN", "PGPASSWORD", "AWS_SECRET"):
        monkeypatch.setenv(name, "not-to-be-seen")
    runner = LocalRunner(JobSpec())
    command = "import json, os; print(json.dumps([dict(os.environ), os.getcwd(), os.getpgid(0) == os.getpid()]))"
    runner.start([sys.executable, "-c", command], tmp_path, "0,1")
    wait_for(lambda: runner.poll() is not None)
    given, folder, leads = json.loads((tmp_path / "trainer.log").read_text())
    assert runner.poll() == 0
    devices = {"CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"}
    assert set(given) <= {"PATH", "HOME", "LANG", "TMPDIR", "OMP_WAIT_POLICY", "LC_CTYPE"} | devices
    assert {given[name] for name in devices} == {"0,1"}
    assert "not-to-be-seen" not in given.values()
    assert (folder, leads) == (str(tmp_path), False), "its shim leads the group"


def test_it_is_asked_first_and_ended_then(tmp_path: Path) -> None:
    runner = LocalRunner(JobSpec())
    assert runner.poll() is None
    process = runner.start([sys.executable, "-c", DEAF + PARENT + WAIT], tmp_path, "0")
    wait_for(lambda: "here" in (tmp_path / "trainer.log").read_text())
    assert len(members(process.pid)) == 3, "the shim, the trainer and its child"
    runner.stop()
    time.sleep(0.2)
    assert runner.poll() is None
    runner.kill()
    assert runner.poll() == -signal.SIGKILL
    assert members(process.pid) == []
    runner.stop()
    runner.kill()


def orphan(folder: Path, trainer: str, lease: float, grace: float) -> Process:
    """A trainer whose supervisor was killed."""
    supervise = (
        "import sys, time, pathlib; from broker.runners.base import JobSpec; "
        "from broker.runners.local import LocalRunner; "
        f"spec = JobSpec(lease_seconds={lease}, grace_seconds={grace}); "
        f"p = LocalRunner(spec).start([sys.executable, '-c', {trainer!r}], pathlib.Path({str(folder)!r}), ''); "
        "print(p.pid, flush=True); time.sleep(3600)"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", supervise], stdout=subprocess.PIPE)
    assert supervisor.stdout is not None
    process = identify(int(supervisor.stdout.readline()))
    wait_for(lambda: "here" in (folder / "trainer.log").read_text())
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()
    return process


STOPS = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); " + WAIT


@pytest.mark.parametrize(("trainer", "status"), [(STOPS, 75), (DEAF + PARENT + WAIT, -9)])
def test_a_trainer_outlives_its_supervisor_by_its_lease_and_no_longer(
    tmp_path: Path, trainer: str, status: int
) -> None:
    lease = 6
    began = time.monotonic()
    process = orphan(tmp_path, trainer, lease=lease, grace=0.5)
    assert alive(process)
    wait_for(lambda: not members(process.pid))
    longest = time.monotonic() - began
    runner = LocalRunner(JobSpec())
    runner.adopt(process, tmp_path)
    assert runner.poll() == status, "its shim has left its status"
    assert lease - 0.5 < runner.seconds() <= longest


def test_an_adopted_trainer_is_followed_stopped_and_ended(tmp_path: Path) -> None:
    process = orphan(tmp_path, STOPS, lease=600, grace=600)
    runner = LocalRunner(JobSpec())
    runner.adopt(process, tmp_path)
    assert runner.poll() is None
    runner.stop()
    wait_for(lambda: runner.poll() is not None)
    assert runner.poll() == 75
    runner.kill()
    assert members(process.pid) == []


def test_one_that_was_dead_when_taken_over_lived_until_its_last_renewal_at_most(tmp_path: Path) -> None:
    first = LocalRunner(JobSpec(lease_seconds=3600, grace_seconds=1))
    process = first.start([sys.executable, "-c", "import time; time.sleep(3600)"], tmp_path, "")
    before = first.seconds()
    first.renew(3600)
    after = first.seconds()
    first.kill()
    (tmp_path / shim.EXIT_FILE).unlink(missing_ok=True)
    time.sleep(0.5)
    successor = LocalRunner(JobSpec(lease_seconds=3600, grace_seconds=1))
    successor.adopt(process, tmp_path)
    assert successor.poll() == -9
    assert before - 0.2 < successor.seconds() < after + 0.2
