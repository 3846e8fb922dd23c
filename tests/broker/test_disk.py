"""The disk stays bounded: what is safe on the Hub and not needed goes, and below the floor nothing starts."""

import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import delete, update
from sqlmodel import col

from broker import catalogue, publications
from broker.allocations import corpora, pools
from broker.allocations.corpora import Corpus
from broker.catalogue import CatalogueEntry
from broker.publications import Disk, Publication
from broker.publishing import disk
from broker.reports import why
from broker.runs import attempts, runs, studies
from broker.runs.attempts import Attempt, AttemptState
from broker.runs.progress import Checkpoint, Ending, Progress
from broker.runs.runs import RunState
from broker.scheduling.scheduler import Scheduler
from projects.record import record
from projects.settings import Settings
from tests.broker.lab import ADA, POOL, Lab, settings
from trainer.config import RECIPES
from trainer.contract import Measured

FULL = 1e9


@pytest.fixture
def conf(tmp_path: Path) -> Settings:
    return settings(tmp_path)


@pytest.fixture
def run(lab: Lab) -> int:
    """A running run."""
    project = lab.project()
    lab.allocation(project)
    run = lab.launch(project)
    lab.start(run)
    return run


def write(lab: Lab, conf: Settings, run: int, *steps: int) -> None:
    """The trainer writes checkpoints, and its supervisor tells of them."""
    folders = {step: conf.runs_dir / str(run) / "attempt-1" / "checkpoints" / f"step{step}" for step in steps}
    for folder in folders.values():
        (folder / "trainer").mkdir(parents=True)
    found = [Checkpoint(step, str(folder)) for step, folder in folders.items()]
    lab.renew(run, 1, 0, Progress(0, 0, checkpoints=found))


def publish(lab: Lab, run: int, steps: Iterable[int]) -> None:
    """Those steps stand verified on the Hub."""
    with lab.db.write() as session:
        session.execute(
            update(Publication)
            .where(col(Publication.run_id) == run, col(Publication.step).in_(list(steps)))
            .values(url="there")
        )


def here(conf: Settings, run: int) -> list[int]:
    """The steps whose folders are on the disk."""
    return sorted(int(path.name[4:]) for path in conf.runs_dir.glob(f"{run}/attempt-*/checkpoints/step*"))


def told(lab: Lab) -> list[str]:
    with lab.db.read() as session:
        return [entry.kind for entry in record.since(session, record.LAB, 0) if entry.kind.startswith("disk")]


def queued(lab: Lab) -> int:
    project = lab.project(title="Another one")
    lab.allocation(project)
    return lab.launch(project)


def test_only_what_is_published_goes_and_the_newest_stay(lab: Lab, conf: Settings, run: int) -> None:
    write(lab, conf, run, 0, 1, 2, 4, 8, 16)
    assert disk.tidy(conf, lab.db) == 0
    publish(lab, run, (0, 1, 4, 8))
    assert disk.tidy(conf, lab.db) == 3
    assert here(conf, run) == [2, 8, 16], "2 is not published, 8 and 16 are the newest"
    publish(lab, run, (2, 16))
    assert disk.tidy(conf, lab.db) == 1
    assert disk.tidy(conf, lab.db) == 0
    assert here(conf, run) == [8, 16]
    with lab.db.read() as session:
        assert publications.kept(session, run) == [8, 16]


def test_a_removal_cut_short_is_finished(lab: Lab, conf: Settings, run: int) -> None:
    write(lab, conf, run, 0, 1, 2)
    publish(lab, run, (0, 1, 2))
    with lab.db.write() as session:
        session.execute(update(Publication).where(col(Publication.step) == 0).values(disk=Disk.LEAVING))
    assert disk.tidy(conf, lab.db) == 1
    assert here(conf, run) == [1, 2]


def test_what_a_waiting_run_needs_of_another_stays(lab: Lab, conf: Settings, run: int) -> None:
    write(lab, conf, run, 0, 1, 2, 3)
    publish(lab, run, range(4))
    lab.settle(run, 1, 1, Ending(0))
    sample = run + 1
    assert lab.run(sample).parent_id == run
    assert disk.tidy(conf.model_copy(update={"disk_floor_gib": FULL}), lab.db) == 0
    token = lab.start(sample)
    lab.settle(sample, token, 1, Ending(0))
    assert disk.tidy(conf, lab.db) == 2
    assert here(conf, run) == [2, 3]
    assert disk.tidy(conf.model_copy(update={"disk_floor_gib": FULL}), lab.db) == 2, "room is scarce"
    assert here(conf, run) == []


def test_a_scarce_disk_leaves_an_unfinished_run_its_newest(lab: Lab, conf: Settings, run: int) -> None:
    write(lab, conf, run, 0, 1, 2)
    publish(lab, run, range(3))
    disk.tidy(conf.model_copy(update={"disk_floor_gib": FULL}), lab.db)
    assert here(conf, run) == [2]


def test_the_data_of_an_attempt_go_once_it_is_over(lab: Lab, conf: Settings, run: int) -> None:
    runs_of_another = conf.runs_dir / f"{run}.before-7" / "attempt-1" / "data"
    first, second = (conf.runs_dir / str(run) / f"attempt-{token}" / "data" for token in (1, 2))
    for folder in (first, runs_of_another):
        folder.mkdir(parents=True)
    disk.tidy(conf, lab.db)
    assert first.exists(), "it trains from them"
    lab.settle(run, 1, 1, Ending(75))
    lab.start(run)
    second.mkdir(parents=True)
    disk.tidy(conf, lab.db)
    assert not first.exists()
    assert second.exists()
    lab.settle(run, 2, 1, Ending(0))
    disk.tidy(conf, lab.db)
    assert not second.exists()
    assert runs_of_another.exists()


def test_the_newest_data_of_a_published_run_stay_while_there_is_room(lab: Lab, conf: Settings, run: int) -> None:
    write(lab, conf, run, 0, 1, 2)
    publish(lab, run, [0])
    lab.settle(run, 1, 1, Ending(0))
    first, second = (conf.runs_dir / str(run) / f"attempt-{token}" / "data" for token in (1, 2))
    for folder in (first, second):
        folder.mkdir(parents=True, exist_ok=True)
    with lab.db.write() as session:
        session.add(Attempt(run_id=run, token=2, pool_id=1, devices="", state=AttemptState.ENDED, reserved=0))
    disk.tidy(conf, lab.db)
    assert (first.exists(), second.exists()) == (False, True)
    full = conf.model_copy(update={"disk_floor_gib": FULL})
    with lab.db.write() as session:
        study = studies.launch(session, ADA, "ask", run, analyses="induction", steps="last", time_limit="5m").run_id
    disk.tidy(full, lab.db)
    assert second.exists(), "a study is to read them"
    lab.cancel(study)
    disk.tidy(full, lab.db)
    assert not second.exists()


def test_nothing_outside_the_runs_is_removed(lab: Lab, conf: Settings, run: int, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    lab.renew(run, 1, 0, Progress(0, 0, checkpoints=[Checkpoint(0, str(elsewhere))]))
    write(lab, conf, run, 1, 2)
    publish(lab, run, range(3))
    disk.tidy(conf, lab.db)
    assert elsewhere.exists()


@pytest.mark.usefixtures("memory_queue")
def test_below_the_floor_no_run_starts_and_it_is_told_once(lab: Lab, conf: Settings) -> None:
    waiting = queued(lab)
    low = Scheduler(conf.model_copy(update={"disk_floor_gib": FULL}), lab.db)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: low.round(), range(3)))
    assert lab.run(waiting).state == RunState.QUEUED
    assert told(lab) == ["disk.low"]
    with lab.db.read() as session:
        reason = why.why(session, waiting)
    assert (reason.reason, reason.expected) == ("The disk is nearly full: no run starts until there is room.", None)
    almost = conf.model_copy(update={"disk_floor_gib": disk.free_gib(conf) / (disk.ENOUGH * 0.98)})
    assert not disk.admits(almost, lab.db), "a little more than the floor is not enough to start again"
    high = Scheduler(conf, lab.db)
    high.round()
    assert lab.run(waiting).state == RunState.STARTING
    assert told(lab) == ["disk.low", "disk.enough"]


def test_a_run_paused_by_the_disk_waits_and_loses_no_try(lab: Lab, conf: Settings, run: int) -> None:
    lab.settle(run, 1, 1, Ending(75, reason=disk.PAUSED), most=1)
    assert (lab.run(run).state, lab.run(run).reason) == (RunState.QUEUED, disk.PAUSED)
    with lab.db.read() as session:
        assert not session.get_one(attempts.Attempt, (run, 1)).failed
        assert runs.view(session, run).attempt == 1


def test_data_that_a_failed_preparation_left_goes_and_what_the_catalogue_names_stays(
    lab: Lab, conf: Settings, run: int
) -> None:
    def data(run_id: int, token: int) -> Path:
        folder = conf.data_dir / "tiny" / f"{run_id}-{token}"
        folder.mkdir(parents=True)
        return folder

    with lab.db.write() as session:
        catalogue.propose_recipe(session, None, "tiny", name="tiny", body=(RECIPES / "demo.yml").read_text())
    failed, going, other = data(run, 1), data(run, 2), data(4242, 1)
    disk.tidy(conf, lab.db)
    assert failed.exists(), "its attempt runs"
    lab.settle(run, 1, 1, Ending(70, "A host fell over.", transient=True))
    lab.start(run)
    with lab.db.write() as session:
        session.execute(update(CatalogueEntry).values(prepared=f"tiny/{run}-1"))
    disk.tidy(conf, lab.db)
    assert failed.exists(), "the catalogue names it"
    with lab.db.write() as session:
        session.execute(update(CatalogueEntry).values(prepared=""))
        pool = pools.named(session, POOL)
        measured = Measured(files=1, bytes=1, tokens=9, sources={"pile": "MIT"})
        corpora.add_prepared(session, pool, "pile-50277", str(failed), measured)
    disk.tidy(conf, lab.db)
    assert failed.exists(), "the pool has it"
    with lab.db.write() as session:
        session.execute(delete(Corpus))
    disk.tidy(conf, lab.db)
    assert [folder.exists() for folder in (failed, going, other)] == [False, True, True]


def test_a_disk_of_the_runs_own_counts(conf: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes are given: not every user may mount a disk."""
    free = {conf.home: 9 * 2**30, conf.runs_dir: 2**30}
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free[place]))
    assert disk.free_gib(conf) == 1
    free[conf.home] = 2**29
    assert disk.free_gib(conf) == 0.5
