"""Going on from what another host has put into the store: the newest whole checkpoint, or none, and then aloud."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from broker import store as stores
from broker.end_reasons import EndReason
from broker.publications import Disk, Publication
from broker.runners import elsewhere
from broker.runners.elsewhere import NoCheckpointError
from broker.runs import folders
from broker.runs.attempts import Attempt
from broker.runs.progress import Checkpoint, Ending, Progress
from broker.runs.runs import Run, RunState
from broker.store import Store
from projects.settings import Settings
from tests.broker.lab import Lab, settings
from tests.broker.test_store import checkpoint
from tests.databases import ONCE
from tests.environment import bare
from tests.patience import PATIENCE, wait_for

pytestmark = ONCE
LEASE = 4.0


@pytest.fixture
def conf(tmp_path: Path) -> Settings:
    """The settings of the host that is to go on."""
    return settings(tmp_path / "there", store=f"file://{tmp_path}/store")


@pytest.fixture
def run(lab: Lab) -> int:
    """A run whose first attempt, on another host, told of checkpoints at 10 and 20 and is over."""
    project = lab.project()
    lab.allocation(project)
    run = lab.launch(project)
    lab.start(run)
    told = [Checkpoint(step, f"/elsewhere/runs/{run}/attempt-1/checkpoints/step{step}") for step in (10, 20)]
    lab.renew(run, 1, 5, Progress(0, 0, step=20, tokens=200, checkpoints=told))
    lab.settle(run, 1, 5, Ending(75, "its host was drained"))
    return run


def attempt(lab: Lab, run: int) -> str:
    with lab.db.read() as session:
        return stores.attempt_folder(run, session.get_one(Run, run).request_id, 1)


def carry(lab: Lab, conf: Settings, run: int, folder: Path, *steps: int) -> None:
    """The other host's carrier puts checkpoints there."""
    for step in steps:
        Store(conf).push(checkpoint(folder / f"step{step}"), stores.checkpoint_folder(attempt(lab, run), step))


def found(lab: Lab, conf: Settings, run: int, token: int = 2) -> list[int]:
    """The steps of the checkpoints before an attempt; the last one is on the disk."""

    def hold(why: str) -> None:
        raise AssertionError(why)

    with lab.db.read() as session:
        row = session.get_one(Run, run)
    checkpoints = elsewhere.earlier(conf, lab.db, row, token, hold)
    assert (Path(checkpoints[-1].folder) / "model.safetensors").exists()
    return [each.step for each in checkpoints]


def test_the_newest_whole_checkpoint_is_fetched(lab: Lab, conf: Settings, run: int, tmp_path: Path) -> None:
    carry(lab, conf, run, tmp_path, 10, 20)
    assert found(lab, conf, run) == [20]
    assert found(lab, conf, run) == [20], "it is on the disk now"


def test_one_that_the_store_has_lost_a_part_of_is_left_for_the_one_before(
    lab: Lab, conf: Settings, run: int, tmp_path: Path
) -> None:
    carry(lab, conf, run, tmp_path, 10, 20)
    Store(conf).remove(f"{stores.checkpoint_folder(attempt(lab, run), 20)}/model.safetensors")
    assert found(lab, conf, run) == [10]


def test_one_that_nobody_had_told_of_is_found_too(lab: Lab, conf: Settings, run: int, tmp_path: Path) -> None:
    carry(lab, conf, run, tmp_path, 20, 30)
    assert found(lab, conf, run) == [30]


def test_what_a_stale_trainer_adds_later_is_not_read(lab: Lab, conf: Settings, run: int, tmp_path: Path) -> None:
    carry(lab, conf, run, tmp_path, 20)
    assert found(lab, conf, run) == [20]
    carry(lab, conf, run, tmp_path, 30)
    assert found(lab, conf, run, token=3) == [20]


def test_an_old_list_hides_no_checkpoint_that_was_told(
    lab: Lab, conf: Settings, run: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry(lab, conf, run, tmp_path, 10, 20)
    # No server at hand answers with what was there a while ago.
    monkeypatch.setattr(Store, "names", lambda self, folder: ["step10"] if folder.endswith("checkpoints") else [])
    assert found(lab, conf, run) == [20]


def test_a_later_one_in_the_store_goes_before_an_earlier_one_here(
    lab: Lab, conf: Settings, run: int, tmp_path: Path
) -> None:
    checkpoint(folders.of_run(conf, run) / "attempt-1" / "checkpoints" / "step10")
    carry(lab, conf, run, tmp_path, 20)
    assert found(lab, conf, run) == [10, 20]


@pytest.mark.parametrize("has_store", [False, True])
def test_a_run_of_which_there_is_none_says_so(lab: Lab, conf: Settings, run: int, has_store: bool) -> None:
    if not has_store:
        conf = conf.model_copy(update={"store": ""})
    where = "neither on this host nor in the store" if has_store else "not on this host, and there is no store"
    with pytest.raises(
        NoCheckpointError, match=f"^the checkpoints of its 20 steps are {where}; it does not start over"
    ):
        found(lab, conf, run)


def test_one_that_was_removed_from_the_store_is_not_waited_for(lab: Lab, conf: Settings, run: int) -> None:
    Store(conf).write(f"{attempt(lab, run)}/carrier", b'{"beat": 1}')  # of a carrier that was killed
    with lab.db.write() as session:
        session.get_one(Publication, (run, 10)).disk = Disk.CLEARED
        row = session.get_one(Run, run)
    waited: list[str] = []
    with pytest.raises(NoCheckpointError):
        elsewhere.earlier(conf, lab.db, row, 2, waited.append)
    assert set(waited) == {"Another host still puts step20 into the store"}


def test_a_store_that_is_away_is_waited_for_until_the_run_is_stopped(lab: Lab, conf: Settings, run: int) -> None:
    token = lab.admit(run)
    assert lab.claim(run, token, lease=LEASE)
    secret = "the-secret-of-the-store"
    away = {"store": "s3://lab/away", "store_endpoint": "http://127.0.0.1:9", "store_key": SecretStr("key")}
    place = stores.environment(conf.model_copy(update=away | {"store_secret": SecretStr(secret)}))
    environment = bare() | place | {"STOA_ENV_FILE": "", "STOA_HOME": str(conf.home)}
    environment |= {"STOA_DATABASE_URL": lab.db.url.render_as_string(hide_password=False)}
    environment |= {"STOA_LEASE_SECONDS": str(LEASE)}
    folders.own(conf, run, "x")
    command = [sys.executable, "-m", "broker.runners.supervisor", str(run), str(token)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as supervisor:

        def waits() -> str:
            with lab.db.read() as session:
                return session.get_one(Attempt, (run, token)).waiting

        wait_for(waits, "a word on what it waits for")
        assert waits() == "The store does not answer; it is tried again"
        assert lab.run(run).state == RunState.STARTING
        lab.cancel(run)
        said = b"".join(supervisor.communicate(timeout=PATIENCE))
    assert secret.encode() not in said
    assert lab.run(run).state == RunState.CANCELLED
    with lab.db.read() as session:
        row = session.get_one(Attempt, (run, token))
    assert (row.end_reason, row.charged) == (EndReason.STOP_REQUESTED, 0)
