"""Prepared data leave the store once nobody can read them there any more."""

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlmodel import col, select

from broker import catalogue
from broker import store as stores
from broker.allocations import corpora
from broker.allocations.corpora import Corpus
from broker.allocations.pools import Pool
from broker.catalogue import CatalogueEntry
from broker.publishing import prepared_data
from broker.publishing.retention import Looked
from broker.runners import elsewhere
from broker.runs import evaluations, folders
from broker.runs.attempts import Attempt
from broker.runs.kinds.kind import Start, kind_of
from broker.runs.progress import Checkpoint, Ending, Progress
from broker.runs.runs import Run, RunState
from broker.store import Store, StoreError
from projects.db.columns import utcnow
from projects.settings import Settings
from tests import forked
from tests.broker.copying import told
from tests.broker.lab import ADA, POOL, Lab, settings
from tests.broker.test_preparing import accept_tiny, prepare
from tests.databases import ONCE
from trainer import contract
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


def cleared(lab: Lab, run: int) -> list[bool]:
    """Which attempts of a run are noted to have no data in the store any more."""
    with lab.db.read() as session:
        its = select(Attempt.data_cleared).where(Attempt.run_id == run).order_by(col(Attempt.token))
        return list(session.scalars(its))


def outlast_launches(lab: Lab) -> None:
    """Let all that is retired have been retired more than an hour ago."""
    long_ago = utcnow() - timedelta(minutes=61)
    with lab.db.write() as session:
        session.execute(update(CatalogueEntry).values(decided_at=long_ago))
        session.execute(update(Corpus).where(col(Corpus.retired_at).is_not(None)).values(retired_at=long_ago))


def clear(lab: Lab, conf: Settings) -> int:
    return prepared_data.clear(conf, lab.db, Looked())


@ONCE
def test_data_of_a_recipe_stay_until_it_is_retired_and_its_last_run_has_ended(
    lab: Lab, conf: Settings, project: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    assert clear(lab, conf) == 0, "a launch that has read the recipe before may not have ended"
    outlast_launches(lab)
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
            elsewhere.bring(conf, lab.db, lab.row(run), pytest.fail, begins=False, fetch=fetch)

    assert not any(cleared(lab, made)), "more may come"
    Store(conf).write(f"{Path(early).parent}/outcome.json", b"{}")
    assert clear(lab, conf) == 0
    assert cleared(lab, made) == [True, False]
    with lab.db.write() as session:
        session.get_one(Run, made).ended_at = utcnow() - timedelta(days=2)
    assert clear(lab, conf) == 0
    assert cleared(lab, made) == [True, True]
    (tmp_path / "store").rename(tmp_path / "store-before")
    (tmp_path / "store").touch()
    assert clear(lab, conf) == 0, "the store is asked no more"


@ONCE
def test_an_evaluation_of_held_out_text_fetches_the_data_that_the_catalogue_has(
    lab: Lab, conf: Settings, project: int
) -> None:
    made = prepare(lab, project)
    token = lab.start(made)
    carried(lab, conf, made, token)
    lab.settle(made, token, 1, Ending(0))
    run = lab.launch(project, recipe="tiny")
    lab.start(run)
    folders.own(conf, run, lab.row(run).request_id)
    kept = contract.checkpoint_folder(conf.runs_dir / str(run) / "attempt-1", 4)
    kept.mkdir(parents=True)
    lab.renew(run, 1, 1, Progress(0, 0, step=4, tokens=4, checkpoints=[Checkpoint(4, str(kept))]))

    def given(tasks: str) -> list[str]:
        """What the trainer of an evaluation is given, once all that it reads is on its host."""
        with lab.db.write() as session:
            asked = evaluations.launch(session, ADA, tasks, run, tasks=tasks, time_limit="5m").run_id
        elsewhere.bring(conf, lab.db, lab.row(asked), pytest.fail, begins=True)
        attempt = conf.runs_dir / str(asked) / "attempt-1"
        return kind_of(lab.row(asked)).command(Start(conf, lab.db, lab.row(asked), attempt))

    assert "--data" not in given("arc_easy"), "it does without, and they may be large"
    told_trainer = given("heldout")
    data = Path(told_trainer[told_trainer.index("--data") + 1])
    assert (data / "packed.bin").read_text() == "la"


@ONCE
def test_a_folder_that_cannot_be_looked_at_keeps_no_other(lab: Lab, conf: Settings, project: int) -> None:
    found = []
    for _ in range(2):
        made = prepare(lab, project)
        token = lab.start(made)
        found.append(carried(lab, conf, made, token))
        lab.settle(made, token, 1, Ending(70))
    whole = Path(conf.store.removeprefix("file://")) / found[0] / "whole"
    whole.unlink()
    whole.mkdir()
    with pytest.raises(StoreError):
        clear(lab, conf)
    assert [bool(Store(conf).names(folder)) for folder in found] == [True, False]


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
    assert clear(lab, conf) == 0, "a launch that has read of them before may not have ended"
    lab.pool("garage", runner="donated")
    asked = [
        "songs-512",
        "--pool",
        "garage",
        "--kind",
        "prepared",
        "--path",
        str(conf.data_dir / "songs" / f"{made}-{token}"),
    ]

    def add() -> str:
        """What an operator is told who registers the data again, of which this host has none."""
        done = forked.run_module("cli.main", told(lab, conf), "corpus", "add", *asked)
        assert done.returncode == 2
        return done.stderr

    lost = f"The store does not have the data that run {made} has prepared, and the runs of “garage” read them there"
    assert lost not in add()
    outlast_launches(lab)
    assert clear(lab, conf) == 1
    assert Store(conf).names(data) == []
    assert lost in add()
