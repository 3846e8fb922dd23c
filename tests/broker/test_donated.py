"""Runs on donated machines, which reach the lab by its API alone: real machines, supervisors and trainers."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.runs.runs import RunState
from projects.settings import Settings, get_settings
from tests.broker.donating import POOL, SILENCE, Served, admit, donated, serving
from tests.broker.lab import Lab, settings
from tests.broker.supervised import TRAINER, admitted, attempt, charged, queued, supervised_by
from tests.databases import ONCE
from tests.forked import Forked
from tests.patience import PATIENCE, wait_for
from tests.standin import python_with_trainer

LEASE = 12.0  # the store is looked at every two seconds


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """The lab's settings, with an empty store, which are those of this process too."""
    monkeypatch.setenv("STOA_STORE", f"file://{tmp_path}/store")
    monkeypatch.setenv("STOA_ENV_FILE", "")
    get_settings.cache_clear()
    yield settings(tmp_path, store=f"file://{tmp_path}/store")
    get_settings.cache_clear()


@pytest.fixture
def served(lab: Lab, ours: Settings) -> Iterator[Served]:
    """The lab's API."""
    with serving(lab, ours) as served:
        yield served


@pytest.fixture
def run(lab: Lab) -> int:
    """A queued run on a pool of donated machines."""
    return queued(lab, POOL, "donated", {"silence_seconds": str(SILENCE)})


@contextmanager
def supervised(lab: Lab, home: Path, run: int, *, lease: float = LEASE) -> Iterator[tuple[Forked, int, Path]]:
    """A supervisor of the run's next attempt, its token and folder."""
    token, folder = admitted(lab, home, run, lease)
    places = {"STOA_STORE": f"file://{home}/store"}
    with supervised_by(lab, Path(sys.executable), home, lease, places, run, token) as supervisor:
        yield supervisor, token, folder


def standin(home: Path, last: int) -> Path:
    """A Python of a machine, whose trainer does so many steps and keeps the contract."""
    return python_with_trainer(home, TRAINER.replace("LAST", str(last)))


def said(folder: Path) -> str:
    log = folder / "trainer.log"
    return log.read_text() if log.exists() else ""


@ONCE
def test_a_donated_machine_trains_a_run(lab: Lab, served: Served, tmp_path: Path, run: int) -> None:
    token = admit(lab, "ada", POOL)
    with supervised(lab, tmp_path, run) as (supervisor, number, folder):
        wait_for(lambda: "no machine of the pool garage" in attempt(lab, run, number).waiting, "the reason")
        assert charged(lab, run, number) == 0
        with donated(served.address, tmp_path, "ada", token):
            assert supervisor.wait(PATIENCE) == 0
    assert lab.run(run).state == RunState.FINISHED, said(folder)
    assert lab.row(run).step == 4
    row = attempt(lab, run, number)
    assert (row.boot_id, row.waiting) == ("donated", "")
    assert charged(lab, run, number) > 0
    assert list((tmp_path / "store").glob("runs/*/attempt-1/checkpoints/step4/whole"))
    assert not list((tmp_path / "store").glob("donated/*/*")), "the board is empty"
