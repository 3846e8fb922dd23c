"""What one host has put into the store, read on another: logs, checkpoints to publish, and what may leave a disk."""

import json
import shutil
from pathlib import Path

import pytest

from broker import publications
from broker import store as stores
from broker.pieces import Growing
from broker.plots.curve_of_run import curve_of
from broker.publications import Disk, Publication
from broker.publishing import disk
from broker.runners import carrier
from broker.runs import folders, generation, logs, runs
from broker.runs.progress import Ending, Progress
from broker.runs.runs import Run, RunState
from broker.store import Store
from projects.settings import Settings
from tests.broker.lab import ADA, Lab, settings
from tests.broker.supervised import TRAINER, admitted, supervised_by
from tests.broker.test_publisher import Hub, checkpoint, conf, hub, publish, repo, told
from tests.databases import ONCE
from tests.patience import PATIENCE, wait_for
from tests.standin import python_with_trainer

__all__ = ["conf", "hub"]

pytestmark = ONCE
LEASE = 12.0
HELD_OUT = """add("events.jsonl", event="evaluation", step=step, tokens=step * 10, loss=2 / step)"""
# It trains and measures as the stand-in of others does, and writes a sample with the weights that it reads.
WRITES = """
import json, pathlib, sys
if sys.argv[1] == "generate":
    kept, prompt, out = pathlib.Path(sys.argv[2]), sys.argv[3], pathlib.Path(sys.argv[-1])
    assert sys.argv[-2] == "--out"
    said = f"{prompt.removeprefix('--prompt=')} of {(kept / 'weights').read_text()} steps"
    (out / "sample.json").write_text(json.dumps({"text": said}))
    (out / "outcome.json").write_text(json.dumps({"status": 0, "reason": None, "transient": False}))
    sys.exit(0)
""" + TRAINER.replace("LAST", "20").replace("if step % 10 == 0:", f"if step % 10 == 0:\n        {HELD_OUT}")


@pytest.fixture
def here(tmp_path: Path) -> Settings:
    """The settings of the host that trains."""
    return settings(tmp_path / "here", store=f"file://{tmp_path}/store")


@pytest.fixture
def there(tmp_path: Path) -> Settings:
    """The settings of another host."""
    return settings(tmp_path / "there", store=f"file://{tmp_path}/store")


@pytest.fixture
def run(lab: Lab) -> int:
    """A running run of four steps."""
    project = lab.project(title="Sinks of <attention>")
    lab.allocation(project)
    run = lab.launch(project, overrides="steps=4")
    lab.start(run, 0)
    return run


def attempt(lab: Lab, run: int) -> str:
    with lab.db.read() as session:
        return stores.attempt_folder(run, session.get_one(Run, run).request_id, 1)


def write(lab: Lab, conf: Settings, run: int, *steps: int) -> None:
    """The trainer writes checkpoints, and its supervisor tells of them."""
    found = [checkpoint(folders.of_run(conf, run), step) for step in steps]
    lab.renew(run, 1, 0, Progress(0, 0, checkpoints=found))


def carry(lab: Lab, conf: Settings, run: int, *steps: int) -> None:
    """The carrier puts checkpoints into the store."""
    for step in steps:
        source = folders.of_run(conf, run) / "attempt-1" / "checkpoints" / f"step{step}"
        Store(conf).push(source, stores.checkpoint_folder(attempt(lab, run), step))


def on_disk(conf: Settings, run: int) -> list[int]:
    return sorted(int(path.name[4:]) for path in conf.runs_dir.glob(f"{run}/attempt-*/checkpoints/step*"))


def shown(lab: Lab, conf: Settings, run: int) -> logs.Log:
    with lab.db.read() as session:
        return logs.read(session, conf, run)


def test_a_log_of_another_host_is_shown(lab: Lab, here: Settings, there: Settings, run: int, tmp_path: Path) -> None:
    path = tmp_path / "trainer.log"
    path.write_text(f"reading {here.home}/data/songs\n\x1b[31mstep 1\x1b[0m\n")
    assert shown(lab, there, run).lines is None
    store = Store(here)
    Growing(store, path, f"{attempt(lab, run)}/trainer.log").carry()
    store.write(f"{attempt(lab, run)}/carrier", json.dumps({"beat": 1, "home": str(here.home)}).encode())
    log = shown(lab, there, run)
    assert (log.lines, log.of_attempt) == (["reading …/data/songs", "step 1"], 1)
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store").write_text("no folder")
    away = shown(lab, there, run)
    assert (away.lines, away.store) == (None, "the store does not answer now")


def test_what_is_whole_in_the_store_leaves_the_disk(lab: Lab, here: Settings, run: int) -> None:
    write(lab, here, run, 0, 1, 2, 3, 4)
    assert disk.tidy(here, lab.db) == 0, "nothing is safe elsewhere"
    carry(lab, here, run, 0, 1, 3, 4)
    Store(here).remove(f"{stores.checkpoint_folder(attempt(lab, run), 1)}/model.safetensors")
    assert disk.tidy(here, lab.db) == 1
    assert on_disk(here, run) == [1, 2, 3, 4], "the store has lost a part of 1 and never had 2; 3 and 4 are the newest"


def test_a_store_that_is_away_lets_nothing_go(lab: Lab, here: Settings, run: int, tmp_path: Path) -> None:
    write(lab, here, run, 0, 1, 2, 3)
    carry(lab, here, run, 0, 1)
    away = here.model_copy(update={"store": "s3://lab/away", "store_endpoint": "http://127.0.0.1:9"})
    assert disk.tidy(away, lab.db) == 0
    assert on_disk(here, run) == [0, 1, 2, 3]


def test_each_host_removes_what_is_on_its_own_disk(lab: Lab, here: Settings, there: Settings, run: int) -> None:
    write(lab, here, run, 0, 1, 2, 3)
    carry(lab, here, run, 0, 1, 2, 3)
    assert disk.tidy(there, lab.db) == 0
    with lab.db.read() as session:
        assert publications.kept(session, run) == [0, 1, 2, 3], "the other host marks nothing"
    # A copy that the other host had fetched goes when the run has ended.
    place = folders.of_run(there, run) / "attempt-1" / "checkpoints" / "step0"
    place.parent.mkdir(parents=True)
    assert Store(there).pull(stores.checkpoint_folder(attempt(lab, run), 0), place)
    assert disk.tidy(here, lab.db) == 2
    disk.tidy(there, lab.db)
    assert on_disk(there, run) == [0], "the run may read it yet"
    lab.settle(run, 1, 1, Ending(70))
    disk.tidy(there, lab.db)
    assert on_disk(there, run) == []
    assert on_disk(here, run) == [2, 3]


def test_a_checkpoint_whose_disk_is_gone_is_published_from_the_store(
    lab: Lab, conf: Settings, hub: Hub, run: int, tmp_path: Path
) -> None:
    conf = conf.model_copy(update={"store": f"file://{tmp_path}/store"})
    lost = conf.model_copy(update={"home": tmp_path / "lost"})
    write(lab, lost, run, 1, 2)
    metrics = folders.of_run(lost, run) / "attempt-1" / "metrics.jsonl"
    metrics.write_text("".join(json.dumps({"step": n, "tokens": n, "loss": 1 / n}) + "\n" for n in (1, 2)))
    carry(lab, lost, run, 1, 2)
    Growing(Store(lost), metrics, f"{attempt(lab, run)}/metrics.jsonl").carry()
    shutil.rmtree(lost.home)
    publish(lab, conf, run)
    assert [step for step, *_ in told(lab)] == [1, 2]
    assert json.loads(hub.read(repo(conf, run), "metrics.jsonl", "step2"))["step"] == 2
    assert not list((conf.home / "fetched").glob("*/attempt-*/checkpoints/step*")), "the copies go"


def test_a_checkpoint_that_is_in_neither_place_waits_and_says_so(
    lab: Lab, conf: Settings, run: int, tmp_path: Path
) -> None:
    conf = conf.model_copy(update={"store": f"file://{tmp_path}/store"})
    write(lab, conf, run, 1)
    shutil.rmtree(folders.of_run(conf, run))
    publish(lab, conf, run)
    with lab.db.read() as session:
        row = session.get_one(Publication, (run, 1))
    assert row.error == f"step1 of run {run} is neither on this disk nor in the store"
    assert (row.disk, row.tries) == (Disk.KEPT, 1)


def done(lab: Lab, conf: Settings, run: int) -> None:
    """The run comes to its end on the host of these settings, whose carrier has put all of it into the store."""
    conf.home.mkdir(exist_ok=True)
    python = python_with_trainer(conf.home, WRITES)
    token, folder = admitted(lab, conf.home, run, LEASE)
    with supervised_by(lab, python, conf.home, LEASE, stores.environment(conf), run, token) as supervisor:
        assert supervisor.wait(PATIENCE) == 0
    with lab.db.read() as session:
        row = runs.load(session, run)
    assert row.state == RunState.FINISHED, row.reason
    wait_for((folder / carrier.DONE_FILE).exists, "the carrier's end")


def test_a_run_of_which_only_the_store_has_anything_is_sampled_and_shown(
    lab: Lab, here: Settings, there: Settings
) -> None:
    project = lab.project()
    lab.allocation(project)
    parent = lab.launch(project)
    done(lab, here, parent)
    shutil.rmtree(here.home)
    with lab.db.write() as session:
        sample = generation.generate(session, ADA, "ask", parent, "Once upon a time").run_id
    done(lab, there, sample)
    with lab.db.read() as session:
        assert runs.load(session, sample).sample == "Once upon a time of 20 steps"
        curve = curve_of(session, runs.view(session, parent))
    assert on_disk(there, parent) == [20], "it was fetched"
    assert curve.held_out == [(100, 0.2), (200, 0.1)]
    assert (len(curve.loss), curve.loss[-1]) == (20, (200, 1 / 20))
    log = shown(lab, there, parent)
    assert (log.lines, log.of_attempt) == (["from step 0"], 1)
