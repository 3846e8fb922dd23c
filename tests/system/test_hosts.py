"""Two workers as two hosts, with homes of their own: each run starts, and is taken over, where its pool's host is."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path

import pytest
from celery import Celery

from broker.allocations import hosts
from broker.publications import Publication
from broker.runners import host_gpus
from broker.runs.runs import RunState
from cli.services import environment
from tests import forked
from tests.environment import bare
from tests.patience import PATIENCE, wait_for
from tests.standin import skew
from tests.system import processes
from tests.system.worker_hosts import LAB, Hosts

TRAINER = """
import json, pathlib, shutil, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
shutil.copytree(pathlib.Path(sys.executable).parents[2] / "checkpoint", out / "checkpoints" / "step1")
for name, line in (
    ("metrics.jsonl", {"step": 1, "tokens": 10, "loss": 1.0}),
    ("events.jsonl", {"event": "checkpoint", "step": 1, "path": "checkpoints/step1"}),
):
    with (out / name).open("a") as file:
        file.write(json.dumps(line) + "\\n")
time.sleep(3600)
"""
NAMES = ("here", "there")


class Cluster(Hosts):
    """A worker and a publisher on each host, for the pool of the host's name, and a Hub."""

    def __init__(self, home: Path, database_url: str, clocks: Mapping[str, float] | None = None) -> None:
        """The clocks of some hosts, or the scheduler's (`lab`), are so many seconds ahead."""
        sandbox = home / "sandbox"
        self.hub = forked.module("sandbox", Path(os.devnull), bare(), "--dir", str(sandbox))
        wait_for((sandbox / "sandbox.json").exists, "the Hub")
        hub = json.loads((sandbox / "sandbox.json").read_text())
        place = {"hub_endpoint": hub["hub"], "hub_token": hub["hub_token"], "hub_namespace": "hosts"}
        super().__init__(home, NAMES, database_url=database_url, clocks=clocks, **place)
        for name in NAMES:
            self.lab.pool(name)
        pythons = {name: self.python(name, TRAINER) for name in (*NAMES, LAB)}
        for name, python in pythons.items() if clocks else ():
            skew(python, (clocks or {})[name])
        self.start(LAB, "scheduler", python=pythons[LAB])
        for name in NAMES:
            self.start(name, "worker", "--pool", name, python=pythons[name])
            self.start(name, "publisher", "--this-host", python=pythons[name])

    def has_begun(self, run: int) -> bool:
        return self.has_done(run, 1)

    def is_published(self, run: int) -> bool:
        with self.db.read() as session:
            return session.get_one(Publication, (run, 1)).url is not None

    def close(self) -> None:
        super().close()
        self.hub.kill()
        self.hub.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path, f"sqlite:///{tmp_path / 'stoa.db'}")
    try:
        yield cluster
    finally:
        cluster.close()


def test_each_run_starts_on_the_host_of_its_pool_and_is_taken_over_there(cluster: Cluster) -> None:
    runs = {run: pool for pool in (*NAMES, *NAMES) for run in [cluster.launch(pool)]}
    for run in runs:
        wait_for(partial(cluster.has_begun, run), f"run {run}")
    for run, pool in runs.items():
        assert cluster.attempt(run).host == pool
        assert (cluster.home / pool / "runs" / str(run)).is_dir()
    with cluster.db.read() as session:
        known = {host.name: host for host in hosts.every(session)}
    served = {name: (host.pools, host.is_away) for name, host in known.items()}
    assert served == {"here": (["here"], False), "there": (["there"], False)}
    for host in known.values():
        assert host.facts["versions"]["stoa"] == metadata.version("stoa")
        assert host.facts["versions"]["torch"] == metadata.version("torch")
        assert host.facts["free_gib"] > 0
        assert [gpu["name"] for gpu in host.facts.get("gpus", ())] == [gpu["name"] for gpu in host_gpus.found().gpus]

    for run in runs:
        wait_for(partial(cluster.is_published, run), f"the checkpoint of run {run}, which lies on its host alone")

    for name in NAMES:
        told = forked.run_module("cli.main", environment(cluster.settings["lab"], "scheduler"), "host", "show", name)
        assert told.returncode == 0, told.stderr
        shown = told.stdout
        assert f"host.{name}, pool.{name}" in shown
        assert f"stoa {metadata.version('stoa')}" in shown
        assert {run for run in runs if f"{run}, attempt 1: running" in shown} == {
            run for run in runs if runs[run] == name
        }
    client = Celery(broker=cluster.settings["lab"].celery_broker_url)
    here = ["worker@here"]
    for command in ("shutdown", "pool_shrink", "cancel_consumer", "revoke", "terminate"):
        client.control.broadcast(command, destination=here)
    assert client.control.inspect(destination=here, timeout=PATIENCE, limit=1).ping() == {"worker@here": {"ok": "pong"}}
    client.close()

    run = next(iter(runs))
    supervisor = processes.supervisor(cluster.home / runs[run], run, 1)
    assert supervisor is not None
    subprocess.run(["kill", f"-{signal.SIGKILL.value}", str(supervisor)], check=True)
    wait_for(lambda: cluster.attempt(run).generation > 1, "another supervisor")
    assert cluster.lab.run(run).state == RunState.RUNNING
    assert cluster.attempt(run).host == runs[run]
