"""The runner that docs/how-to-add-a-runner.md builds, over a whole attempt."""

import importlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.allocations import pools
from broker.runners import registry
from broker.runs.runs import RunState
from projects.errors import InvalidError
from tests.broker.lab import Lab
from tests.databases import ONCE

DOCUMENT = Path(__file__).parents[2] / "docs" / "how-to-add-a-runner.md"
POOL = "corner"
# It leaves its niceness and waits to be stopped.
TRAINER = """
import json, os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
out = pathlib.Path(sys.argv[1])
with (out / "metrics.jsonl").open("a") as file:
    file.write(json.dumps({"step": 1, "tokens": 10, "loss": float(os.nice(0))}) + "\\n")
while True:
    time.sleep(1)
"""
SUPERVISE = """
import sys
from broker.runners import registry, staging, supervisor
from nice_runner import NiceRunner
from projects.settings import get_settings

registry.RUNNERS["nice"] = NiceRunner
staging.trainer_command = lambda start: [sys.executable, "-c", sys.argv[3], str(start.folder)]
supervisor.Supervisor(get_settings(), int(sys.argv[1]), int(sys.argv[2])).run()
"""


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner of the document, registered, and its module as a file in `tmp_path`."""
    found = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert found is not None
    (tmp_path / "nice_runner.py").write_text(found[1])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nice_runner", raising=False)
    monkeypatch.setitem(registry.RUNNERS, "nice", importlib.import_module("nice_runner").NiceRunner)


def until(what: str, holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 600
    while not holds():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.1)


@ONCE
@pytest.mark.usefixtures("example")
def test_an_attempt_runs_on_the_example_of_the_document(lab: Lab, tmp_path: Path) -> None:
    with lab.db.write() as session, pytest.raises(InvalidError, match="a whole number from 0 to 19"):
        pools.add_pool(session, name=POOL, gpu_type="cpu", gpus=2, runner="nice", runner_options={"niceness": "20"})
    lab.pool(POOL, runner="nice", options={"niceness": "7"})
    project = lab.project()
    lab.approve(lab.request(project, pool=POOL))
    run = lab.launch(project)
    token = lab.admit(run, 0)
    assert lab.claim(run, token, lease=60)
    (tmp_path / "runs" / str(run)).mkdir(parents=True)
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | {
        "PYTHONPATH": str(tmp_path),
        "STOA_ENV_FILE": "",
        "STOA_HOME": str(tmp_path),
        "STOA_DATABASE_URL": lab.db.url.render_as_string(hide_password=False),
        "STOA_LEASE_SECONDS": "6",
    }
    command = [sys.executable, "-c", SUPERVISE, str(run), str(token), TRAINER]
    supervisor = subprocess.Popen(command, env=environment)
    try:
        until("the run's first step", lambda: lab.run(run).step == 1 or supervisor.poll() is not None)
        lab.cancel(run)
        assert supervisor.wait() == 0
    finally:
        supervisor.kill()
        supervisor.wait()
    assert lab.run(run).state == RunState.CANCELLED
    metrics = (tmp_path / "runs" / str(run) / f"attempt-{token}" / "metrics.jsonl").read_text()
    assert f'"loss": {min(os.nice(0) + 7, 19)}.0' in metrics
