"""Prepared data leave the store once nobody can read them there any more."""

from pathlib import Path

import pytest

from broker import catalogue
from broker import store as stores
from broker.allocations import corpora
from broker.allocations.pools import Pool
from broker.publishing import prepared_data
from broker.publishing.retention import Looked
from broker.runners import elsewhere
from broker.runs.progress import Ending
from broker.runs.runs import RunState
from broker.store import Store, StoreError
from projects.settings import Settings
from tests.broker.lab import POOL, Lab, settings
from tests.broker.test_preparing import accept_tiny, prepare
from tests.databases import ONCE
from trainer.contract import Measured

MADE = Measured(files=2, bytes=6, sources={"songs": "MIT"})


@pytest.fixture
def conf(tmp_path: Path) -> Settings:
    return settings(tmp_path / "home", store=f"file://{tmp_path}/store")


@pytest.fixture
def project(lab: Lab) -> int:
    accept_tiny(lab)
    project = lab.project()
    lab.allocation(project, hours="10")
    return project


def carried(lab: Lab, conf: Settings, run: int, token: int) -> str:
    """The folder in the store of the data that an attempt has prepared and its carrier has put there."""
    made = conf.home / f"{run}-{token}"
    (made / "deep").mkdir(parents=True)
    (made / "packed.bin").write_text("la")
    (made / "deep" / "index.json").write_text("[0]")
    folder = f"{stores.attempt_folder(run, lab.row(run).request_id, token)}/data"
    Store(conf).push(made, folder)
    return folder


def clear(lab: Lab, conf: Settings) -> int:
    return prepared_data.clear(conf, lab.db, Looked())


@ONCE
def test_data_of_a_recipe_stay_until_it_is_retired_and_its_last_run_has_ended(
    lab: Lab, conf: Settings, project: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepare(lab, project)
    lost, last = lab.start(made), 2
    early = carried(lab, conf, made, lost)
    assert clear(lab, conf) == 0, "the run goes on"
    lab.settle(made, lost, 1, Ending(75))
    assert lab.start(made) == last
    data = carried(lab, conf, made, last)
    lab.settle(made, last, 1, Ending(0))
    assert clear(lab, conf) == 1, "those of the attempt that was not the last"
    assert (Store(conf).names(early), Store(conf).is_whole(data)) == ([], True)

    run = lab.launch(project, recipe="tiny")
    with lab.db.write() as session:
        catalogue.retire(session, None, "tiny", reason="Old.")
    assert clear(lab, conf) == 0, "a run waits that reads them"
    token = lab.start(run)
    lab.pause(run)
    lab.settle(run, token, 1, Ending(75))
    assert lab.run(run).state == RunState.PAUSED
    assert clear(lab, conf) == 0, "a run is paused that reads them"
    lab.cancel(run)
    assert clear(lab, conf.model_copy(update={"store_keep": "all"})) == 0

    def ends(self: Store, name: str) -> None:
        raise StoreError("The process has ended.")

    with monkeypatch.context() as cut:
        cut.setattr(Store, "remove", ends)  # a process that ends before it has removed anything
        with pytest.raises(StoreError):
            clear(lab, conf)
    assert clear(lab, conf) == 1
    assert Store(conf).names(data) == []
    assert clear(lab, conf) == 0
    for fetch in (True, False):
        with pytest.raises(OSError, match=f"the store has lost {data}"):
            elsewhere.bring(conf, lab.db, lab.row(run), pytest.fail, forks=False, fetch=fetch)


@ONCE
def test_data_of_a_pool_stay_until_they_are_retired_and_the_last_run_there_has_ended(
    lab: Lab, conf: Settings, project: int
) -> None:
    made = prepare(lab, project)
    token = lab.start(made)
    data = carried(lab, conf, made, token)
    with lab.db.write() as session:
        pool = session.get_one(Pool, lab.row(made).pool_id)
        corpora.add_prepared(session, pool, "songs-512", str(conf.data_dir / "songs" / f"{made}-{token}"), MADE)
        corpora.add_prepared(session, pool, "elsewhere", "/srv/corpora/elsewhere", MADE)
    run = lab.launch(project)
    lab.settle(made, token, 1, Ending(70))
    assert lab.run(made).state == RunState.FAILED
    assert clear(lab, conf) == 0, "the pool has them"
    with lab.db.write() as session:
        corpora.retire(session, pool=POOL, name="songs-512", reason="Old.")
    assert clear(lab, conf) == 0, "a run on the pool may read them"
    lab.cancel(run)
    assert clear(lab, conf) == 1
    assert Store(conf).names(data) == []
