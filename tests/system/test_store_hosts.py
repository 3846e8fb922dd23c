"""Two hosts with homes of their own and one object store: a host is lost for good, and its run goes on on the other."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import update

from broker import store as stores
from broker.runs.attempts import Attempt
from broker.runs.runs import ENDED, Run, RunState
from broker.store import Store
from projects.db.columns import utcnow
from projects.settings import Settings
from tests.broker.copying import HAS, LACKS, add, launch, projects, propose, push, songs
from tests.broker.lab import settings
from tests.patience import wait_for
from tests.seaweed import SECRET, Seaweed
from tests.system.worker_hosts import LAB, Hosts

# Each attempt does ten steps more than the checkpoint that it is given; the second one is the last.
TRAINER = """
import json, os, pathlib, shutil, signal, sys, time
assert not [name for name in os.environ if name.startswith("STOA")], os.environ
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
before = pathlib.Path(sys.argv[sys.argv.index("--resume") + 1]) if "--resume" in sys.argv else None
if before is not None:
    assert (before / "model.safetensors").read_bytes()
step = 10 if before is None else int(before.name[4:]) + 10
shutil.copytree(pathlib.Path(sys.executable).parents[2] / "checkpoint", out / "checkpoints" / ".writing")
(out / "checkpoints" / ".writing").rename(out / "checkpoints" / f"step{step}")
for name, line in (
    ("metrics.jsonl", {"step": step, "tokens": 10 * step, "loss": 1.0}),
    ("events.jsonl", {"event": "checkpoint", "step": step, "path": f"checkpoints/step{step}"}),
):
    with (out / name).open("a") as file:
        file.write(json.dumps(line) + "\\n")
print("did step", step, flush=True)
if step < 20:
    time.sleep(3600)
(out / "outcome.json").write_text(json.dumps({"status": 0, "reason": None, "step": step, "transient": False}))
"""
# It reads its corpus, of which it makes its loss.
READER = """
import glob, json, pathlib, sys, yaml
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
[source] = yaml.safe_load(open(sys.argv[2]))["data"]["sources"]
read = b"".join(pathlib.Path(name).read_bytes() for name in sorted(glob.glob(source["path"], recursive=True)))
line = {"step": 4, "tokens": len(read), "loss": sum(read) / len(read)}
(out / "metrics.jsonl").write_text(json.dumps(line) + "\\n")
(out / "outcome.json").write_text(json.dumps({"status": 0, "reason": None, "step": 4, "transient": False}))
"""
NAMES = ("here", "there")
A_DAY = timedelta(days=1)
waited = partial(wait_for, every=0.5)


class StoreHosts(Hosts):
    """Two hosts, whose workers serve all pools."""

    def __init__(self, home: Path, given: Settings, **how: Any) -> None:
        super().__init__(home, NAMES, given=given, stop_grace_seconds=5.0, **how)
        self.lab.pool()
        self.start(LAB, "scheduler")

    def add(self, host: str) -> None:
        """Start a host's worker, with a trainer of its own."""
        self.start(host, "worker", python=self.python(host, TRAINER))

    def lose(self, host: str) -> None:
        """End all that runs on a host, at once and for good, and take its disk away."""
        self.kill(host)
        with self.db.write() as session:  # its lease is over, for which nobody need wait
            session.execute(update(Attempt).values(lease_until=utcnow() - A_DAY))
        shutil.move(self.home / host, self.home / f"{host}.lost")

    def is_over(self, run: int) -> bool:
        return self.lab.run(run).state in ENDED

    def stored(self, run: int, token: int) -> str:
        """The folder of an attempt in the store."""
        with self.db.read() as session:
            return stores.attempt_folder(run, session.get_one(Run, run).request_id, token)

    def in_store(self, run: int, token: int, step: int) -> bool:
        place = stores.checkpoint_folder(self.stored(run, token), step)
        return Store(self.settings[LAB]).is_whole(place)


@contextmanager
def hosts(home: Path, given: Settings, **how: Any) -> Iterator[StoreHosts]:
    there = StoreHosts(home, given, **how)
    try:
        yield there
    finally:
        there.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_run_goes_on_at_its_last_checkpoint_when_its_host_is_lost_for_good(
    seaweed: Seaweed, database_url: str, tmp_path: Path
) -> None:
    """Each host is a container that reaches PostgreSQL, Valkey and the store over TCP, and shares nothing else."""
    given = seaweed.settings(settings(tmp_path / "lab"), prefix="lost")
    with hosts(tmp_path, given, database_url=database_url, in_containers=True) as lab:
        lab.add("here")
        run = lab.launch()
        waited(lambda: lab.has_done(run, 10) and lab.in_store(run, 1, 10), "a checkpoint in the store")
        inside = psutil.Process(lab.running["here", "worker"].pid).children(recursive=True)
        assert any("trainer" in process.cmdline() for process in inside)
        lab.lose("here")
        assert not any(process.is_running() for process in inside), "all of the host has ended at once"
        lab.add("there")
        waited(lambda: lab.lab.run(run).state in ENDED, "the run's end on the other host")
        assert lab.lab.run(run).state == RunState.FINISHED
        assert lab.lab.run(run).step == 20
        with lab.db.read() as session:
            assert [session.get_one(Attempt, (run, token)).host for token in (1, 2)] == ["here", "there"]
        attempt = lab.stored(run, 2)
        store = Store(lab.settings["lab"])
        waited(lambda: store.read(f"{attempt}/outcome.json"), "the outcome in the store")
        assert json.loads(store.read(f"{attempt}/outcome.json") or b"")["step"] == 20
        assert lab.in_store(run, 2, 20)
        for path in (path for path in tmp_path.rglob("*") if path.is_file() and path.suffix in (".log", ".json", "")):
            assert SECRET.encode() not in path.read_bytes(), path


def test_a_run_whose_checkpoints_are_lost_fails_aloud_and_never_starts_over(tmp_path: Path) -> None:
    with hosts(tmp_path, settings(tmp_path / "lab")) as lab:
        lab.add("here")
        run = lab.launch()
        waited(lambda: lab.has_done(run, 10), "the first checkpoint")
        lab.lose("here")
        lab.add("there")
        waited(lambda: lab.lab.run(run).state in ENDED, "the run's end")
        assert lab.lab.run(run).state == RunState.FAILED
        assert lab.lab.run(run).reason == (
            "the checkpoints of its 10 steps are not on this host, and there is no store; "
            "it does not start over by itself"
        )
        assert lab.lab.run(run).step == 10
        assert not list((tmp_path / "there" / "runs").glob("*/attempt-2/metrics.jsonl"))


def test_a_corpus_that_lies_on_one_host_is_copied_by_the_worker_of_another(tmp_path: Path) -> None:
    with hosts(tmp_path, settings(tmp_path / "lab", store=f"file://{tmp_path}/store")) as lab:
        project = projects(lab.lab)
        add(lab.lab, HAS, songs(tmp_path / "data"))
        propose(lab.lab)
        assert push(lab.lab, lab.settings["here"]).returncode == 0
        for host, pool in (("here", HAS), ("there", LACKS)):
            lab.start(host, "worker", "--pool", pool, python=lab.python(host, READER))
        found = {}
        for host, pool in (("here", HAS), ("there", LACKS)):
            run = launch(lab.lab, project, pool)
            waited(partial(lab.is_over, run), f"the run's end {host}")
            assert lab.lab.run(run).state == RunState.FINISHED, lab.lab.run(run).reason
            found[host] = (lab.settings[host].runs_dir / str(run) / "attempt-1" / "metrics.jsonl").read_text()
        assert found["here"] == found["there"]
        assert [len(list(lab.settings[host].home.glob("corpora/songs-*"))) for host in NAMES] == [0, 1]
