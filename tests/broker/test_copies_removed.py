"""Copies of corpora leave a host once no run has needed them for a while, and are fetched again when one does."""

import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import text

from broker import corpus_copies
from broker import store as stores
from broker.publishing import copies
from broker.runners import elsewhere
from broker.runners.staging import AskedToStop
from broker.runners.trainer_command import trainer_command
from broker.runs.kinds.kind import Start
from broker.runs.progress import Ending
from broker.runs.runs import RunState
from projects.db.database import Database
from projects.settings import Settings
from tests import forked
from tests.broker.copying import LACKS, add, launch, pushed, supervised, told
from tests.broker.lab import Lab, settings
from tests.broker.supervised import attempt
from tests.databases import ONCE
from tests.environment import bare
from tests.patience import PATIENCE

FULL = 1e9
A_DAY = timedelta(days=1)


@pytest.fixture
def conf(tmp_path: Path) -> Settings:
    """The settings of the host that lacks the corpus, whose store is a folder."""
    return settings(tmp_path / "there", store=f"file://{tmp_path}/store")


def nobody(why: str) -> None:
    raise AssertionError(why)


def unheard(_: str) -> None:
    pass


def bring(lab: Lab, conf: Settings, run: int) -> str:
    """The name of the one copy here, once a run has what it reads."""
    elsewhere.bring_corpora(conf, lab.db, lab.row(run), nobody, unheard)
    [copy] = corpus_copies.here(conf.corpora_dir)
    assert sorted(path.name for path in (conf.corpora_dir / copy.name).rglob("*.jsonl")) == ["a.jsonl", "c.jsonl"]
    return copy.name


def age(conf: Settings, copy: str, days: float) -> None:
    """Let a copy have been used that many days ago."""
    then = time.time() - days * 86_400
    os.utime(conf.corpora_dir / f".{copy}.lock", (then, then))


def remove(lab: Lab, conf: Settings) -> int:
    return copies.remove_unneeded(conf, lab.db)


def test_a_copy_goes_a_while_after_the_last_run_that_needs_it(
    lab: Lab, conf: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = pushed(lab, conf, tmp_path / "data")
    run = launch(lab, project, LACKS)
    assert remove(lab, conf) == 0, "there is none"
    copy = bring(lab, conf, run)

    def stays() -> None:
        age(conf, copy, 15)
        assert remove(lab, conf) == 0, lab.run(run).state
        assert datetime.now(UTC) - corpus_copies.here(conf.corpora_dir)[0].used_at < A_DAY, "it counts as used now"

    stays()
    lab.pause(run)
    stays()
    lab.resume(run)
    token = lab.start(run)
    stays()
    lab.pause(run)
    assert lab.run(run).state == RunState.STOPPING
    stays()
    lab.settle(run, token, 1, Ending(75))
    lab.cancel(run)
    assert lab.run(run).state == RunState.CANCELLED
    age(conf, copy, 13)
    assert remove(lab, conf) == 0
    listed = forked.run_module("cli.main", told(lab, conf), "corpus", "list").stdout
    assert "Copies on this host" in listed
    assert copy in listed
    age(conf, copy, 15)
    assert remove(lab, conf) == 1
    assert corpus_copies.here(conf.corpora_dir) == []
    assert "Copies on this host" not in forked.run_module("cli.main", told(lab, conf), "corpus", "list").stdout

    again = launch(lab, project, LACKS)
    assert bring(lab, conf, again) == copy, "fetched again"
    lab.cancel(again)
    assert remove(lab, conf) == 0
    scarce = conf.model_copy(update={"disk_floor_gib": 2**10})
    with monkeypatch.context() as disks:  # of two sizes, as not every user may mount one
        free = {conf.runs_dir: 0, conf.home: 2**50, conf.corpora_dir: 2**50}
        disks.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free[place]))
        assert remove(lab, scarce) == 0, "room is scarce on another disk"
        free[conf.corpora_dir] = 0
        assert remove(lab, scarce) == 1, "room is scarce"


@ONCE
def test_what_a_trainer_reads_stays_though_its_pool_has_got_it_meanwhile(
    lab: Lab, conf: Settings, tmp_path: Path
) -> None:
    # YAML escapes the accents, and folds the long text at its spaces.
    conf = conf.model_copy(update={"home": tmp_path / ("où " * 30 + "là-bas")})
    run = launch(lab, pushed(lab, conf, tmp_path / "data"), LACKS)
    token = lab.start(run)
    copy = bring(lab, conf, run)
    (conf.runs_dir / str(run)).mkdir(parents=True)
    trainer_command(Start(conf, lab.db, lab.row(run), conf.runs_dir / str(run) / f"attempt-{token}"))
    add(lab, LACKS, tmp_path / "data" / "**" / "*.jsonl")
    scarce = conf.model_copy(update={"disk_floor_gib": FULL})
    assert remove(lab, scarce) == 0
    lab.settle(run, token, 1, Ending(0))
    assert remove(lab, scarce) == 1
    assert not (conf.corpora_dir / copy).exists()


@ONCE
def test_a_run_that_can_never_start_ends_and_keeps_no_copy(lab: Lab, conf: Settings, tmp_path: Path) -> None:
    project = pushed(lab, conf, tmp_path / "data")
    other = launch(lab, project, LACKS)
    copy = bring(lab, conf, other)
    lab.cancel(other)
    run = launch(lab, project, LACKS)
    with lab.db.write() as session:  # as an earlier version may have written it
        session.execute(text("UPDATE runs SET config = 'version: 1' WHERE id = :run"), {"run": run})
    age(conf, copy, 15)
    assert remove(lab, conf) == 1
    with supervised(lab, conf, run) as (supervisor, token, _):
        assert supervisor.wait(PATIENCE) == 0
    assert lab.run(run).state == RunState.FAILED
    assert attempt(lab, run, token).reason.startswith("it could not be started: ")


@ONCE
def test_nothing_is_removed_that_is_fetched_now_or_has_just_got_a_run(
    lab: Lab, conf: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = pushed(lab, conf, tmp_path / "data")
    run = launch(lab, project, LACKS)

    def stop(_: str) -> None:
        raise AskedToStop

    with pytest.raises(AskedToStop):
        elsewhere.bring_corpora(conf, lab.db, lab.row(run), nobody, stop)
    lab.cancel(run)
    [copy] = corpus_copies.here(conf.corpora_dir)
    staging = stores.staging_of(conf.corpora_dir / copy.name)
    age(conf, copy.name, 15)
    with corpus_copies.alone(conf.corpora_dir / f".{copy.name}.lock", "Run 99", nobody):
        age(conf, copy.name, 15)
        assert remove(lab, conf) == 0
    assert staging.exists()
    asked, waited = [], []
    is_needed = copies._is_needed

    def launched_first(settings: Settings, db: Database, name: str) -> bool:
        """The worker's last look, just before which a run was launched, which finds the copy about to be removed."""
        asked.append(launch(lab, project, LACKS))

        def wait(why: str) -> None:
            waited.append(why)
            raise AskedToStop

        with pytest.raises(AskedToStop):
            elsewhere.bring_corpora(conf, lab.db, lab.row(asked[0]), wait, unheard)
        return is_needed(settings, db, name)

    with monkeypatch.context() as moment:  # which nobody could hit by chance
        moment.setattr(copies, "_is_needed", launched_first)
        assert remove(lab, conf) == 0
    assert waited == ["The worker looks whether the copy of songs on this host is still needed"]
    assert staging.exists()
    for each in asked:
        lab.cancel(each)
    age(conf, copy.name, 15)
    assert remove(lab, conf) == 1, "what was cut short goes too"
    assert not staging.exists()


@ONCE
def test_who_is_killed_while_removing_leaves_nothing_that_is_taken_for_whole(
    lab: Lab, conf: Settings, tmp_path: Path
) -> None:
    run = launch(lab, pushed(lab, conf, tmp_path / "data"), LACKS)
    copy = bring(lab, conf, run)
    code = f"""
import os, shutil, signal
from pathlib import Path
from broker import corpus_copies
home = Path({str(conf.corpora_dir)!r})
def killed(path, **_):
    if path.exists():
        next(path.rglob("a.jsonl")).unlink()
        os.kill(os.getpid(), signal.SIGKILL)
shutil.rmtree = killed
corpus_copies.remove(home, {copy!r})
"""
    killed = subprocess.run([sys.executable, "-c", code], env=bare(), check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(conf.corpora_dir.rglob("*.jsonl")), "a part is left"
    assert corpus_copies.here(conf.corpora_dir) == []
    assert bring(lab, conf, run) == copy
    remove(lab, conf)
    assert sorted(path.name for path in conf.corpora_dir.iterdir()) == [f".{copy}.lock", copy]


@ONCE
def test_a_copy_that_no_run_needs_makes_room_for_another(
    lab: Lab, conf: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = launch(lab, pushed(lab, conf, tmp_path / "data"), LACKS)
    old = conf.corpora_dir / "older-0123456789ab"
    old.mkdir(parents=True)
    (old / "a.jsonl").write_text("la")

    def disk_usage(_: Path) -> SimpleNamespace:
        """A disk that has room for one of the two, which none here is."""
        return SimpleNamespace(free=0 if old.exists() else 2**40)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    bring(lab, conf, run)
    assert not old.exists()
