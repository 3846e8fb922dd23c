"""Preparing data is a run like any other, by the real trainer; later runs of the recipe train from what it made."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml

from broker import catalogue
from broker.allocations import corpora, pools
from broker.reports import run_plan
from broker.runs import launching, preparing, runs
from broker.runs.runs import Run, RunKind, RunState
from projects.errors import ConflictError, InvalidError, NotFoundError
from projects.record import record
from tests import forked
from tests.at_once import allowed
from tests.broker.lab import ADA, Lab, request_id, settings
from tests.broker.test_corpora import BIG, MEASURED, add, big_pool
from tests.corpora import stand_ins
from tests.databases import ONCE
from tests.environment import bare
from tests.patience import PATIENCE
from trainer.config import RECIPES, load_recipe
from trainer.contract import CorpusKind, Measured


@pytest.fixture
def project(lab: Lab) -> int:
    """A project with an allocation, and an accepted recipe of next to no data."""
    accept_tiny(lab)
    project = lab.project()
    lab.allocation(project)
    return project


def accept_tiny(lab: Lab) -> None:
    """The accepted recipe “tiny”, of next to no data."""
    values = yaml.safe_load((RECIPES / "demo.yml").read_text())
    values["data"]["sources"] = [values["data"]["sources"][0] | {"max_bytes": 60_000, "weight": 1.0}]
    values["data"]["tokenizer"] = {"vocabulary": 512, "train_bytes": 20_000}
    values["model"] |= {"layers": 1, "hidden_size": 32, "heads": 2}
    values["training"] |= {"steps": 2, "batch": 2, "micro_batch": 2, "evaluation_tokens": 256}
    with lab.db.write() as session:
        catalogue.propose_recipe(session, None, request_id(), name="tiny", body=yaml.safe_dump(values))
        catalogue.accept(session, None, "tiny", reason="For all.")


def prepare(lab: Lab, project: int, recipe: str = "tiny", gpus: int = 1) -> int:
    with lab.db.write() as session:
        return launching.prepare(
            session, ADA, request_id(), project_id=project, recipe=recipe, time_limit="10m", gpus=gpus
        ).run_id


def see_through(lab: Lab, home: Path, run: int) -> None:
    """A supervisor, to the end of its trainer."""
    token = lab.admit(run)
    assert lab.claim(run, token)
    (home / "runs" / str(run)).mkdir(parents=True)
    environment = bare() | {
        "STOA_ENV_FILE": "",
        "STOA_HOME": str(home),
        "STOA_DATABASE_URL": lab.db.url.render_as_string(hide_password=False),
        "STOA_DISK_FLOOR_GIB": "0",
    }
    log = home / "supervisor.log"
    supervisor = forked.module("broker.runners.supervisor", log, environment, str(run), str(token))
    assert supervisor.wait(PATIENCE) == 0, log.read_text()


@ONCE
def test_data_are_prepared_once_and_later_runs_train_from_them(lab: Lab, project: int, tmp_path: Path) -> None:
    run = prepare(lab, project)
    assert lab.run(run).kind == RunKind.PREPARE
    see_through(lab, tmp_path, run)
    view = lab.run(run)
    assert (view.state, view.reason) == (RunState.FINISHED, "")
    place = tmp_path / "data" / "tiny" / f"{run}-1"
    assert (place / "manifest.json").exists()
    with pytest.raises(ConflictError, match="already prepared"):
        prepare(lab, project)
    later = lab.launch(project, recipe="tiny")
    see_through(lab, tmp_path, later)
    assert (lab.run(later).state, lab.run(later).step) == (RunState.FINISHED, 2)
    attempt = tmp_path / "runs" / str(later) / "attempt-1"
    assert yaml.safe_load((attempt / "config.yml").read_text())["data"]["prepared"] == str(place)
    assert not (attempt / "data").exists()


def test_only_recipes_of_the_catalogue_are_prepared(lab: Lab, project: int) -> None:
    before = lab.everything()
    with pytest.raises(NotFoundError, match="no accepted recipe of the catalogue; those to prepare are: tiny"):
        prepare(lab, project, "nothing")
    with pytest.raises(ConflictError, match="“demo” is built in, and its data are on every host"):
        prepare(lab, project, "demo")
    assert lab.everything() == before


def test_nodes_that_share_no_disk_do_not_prepare_together_nor_fetch_a_base(lab: Lab) -> None:
    accept_tiny(lab)
    lab.pool("cloud", gpus=16, gpus_a_node=8, runner="kubernetes", options={"store_secret": "keys"})
    project = lab.project()
    lab.approve(lab.request(project, pool="cloud"), "2")
    with pytest.raises(InvalidError, match="“cloud” share no disk, so one of them prepares by itself; ask for 1 to 8"):
        prepare(lab, project, gpus=16)
    assert lab.run(prepare(lab, project, gpus=8)).state == RunState.QUEUED
    lab.recipe("tuned", "like: demo\nbase: org/name@main\n")
    with pytest.raises(InvalidError, match="The machines of “cloud” cannot fetch the base org/name@main from the Hub"):
        lab.launch(project, recipe="tuned")


def test_one_run_at_a_time_prepares_a_recipe(lab: Lab, project: int) -> None:
    with lab.db.write() as session:
        asked = {"project_id": project, "recipe": "tiny", "time_limit": "10m"}
        said = [launching.prepare(session, ADA, "twice", **asked) for _ in range(2)]  # type: ignore[arg-type]
    assert said[0].run_id == said[1].run_id
    with pytest.raises(ConflictError, match=f"Run {said[0].run_id} is preparing the data of “tiny”"):
        prepare(lab, project)
    lab.cancel(said[0].run_id)
    assert sum(allowed([partial(prepare, lab, project)] * 4, ConflictError)) == 1


def test_what_a_preparation_is_not_for_says_so(lab: Lab, project: int) -> None:
    run = prepare(lab, project)
    with pytest.raises(ConflictError, match="prepares the data of “tiny”, and would begin again"):
        lab.pause(run)
    with pytest.raises(ConflictError, match="prepares the data of “tiny”; only a run that trains"), lab.db.write() as s:
        run_plan.plan_rerun(s, ADA, request_id(), run)
    with lab.db.read() as session:
        assert (
            launching.receipt(session, runs.load(session, run)).basis
            == "a preparation takes as long as its recipe has data"
        )
    assert lab.extend(run, "10m").cost == 1200


@ONCE
def test_the_data_of_a_built_in_recipe_are_prepared_from_the_corpora_of_a_pool(lab: Lab, tmp_path: Path) -> None:
    project = big_pool(lab)
    with lab.db.read() as session:
        assert preparing.preparable(session) == []
    with pytest.raises(NotFoundError, match="No pool has the data of “pythia-14m-deduped”"):
        prepare(lab, project, "pythia-14m-deduped")
    for name, path in stand_ins(tmp_path).items():
        add(lab, name, path, licence="")
    with lab.db.read() as session:
        assert "pythia-14m-deduped" in preparing.preparable(session)
        assert "demo" not in preparing.preparable(session)
    run = prepare(lab, project, "pythia-14m-deduped")
    with pytest.raises(
        ConflictError, match=rf"Run {run} is preparing these data on the pool “big”, for “pythia-14m-deduped”; let it"
    ):
        prepare(lab, project, "pythia-70m-deduped")
    see_through(lab, tmp_path / "home", run)
    assert (lab.run(run).state, lab.run(run).reason) == (RunState.FINISHED, "")
    with lab.db.read() as session:
        made = corpora.on_pool(session, pools.named(session, BIG).id)["pile-deduplicated-50277"]
        assert (made.kind, made.documents, made.sources) == (
            CorpusKind.PREPARED,
            24,  # of each of the 12 documents the end is held out
            {"pile-deduplicated": "LicenseRef-Pile-Mixed"},
        )
        assert made.tokens
        assert "pythia-70m-deduped" not in preparing.preparable(session)
        told = [entry.payload or {} for entry in record.since(session, record.LAB, 0) if entry.kind == "corpus.added"]
    assert told[-1]["name"] == "pile-deduplicated-50277"
    assert "path" not in told[-1]
    with pytest.raises(
        ConflictError,
        match="of “pythia-70m-deduped” are already prepared on the pool “big”, as “pile-deduplicated-50277”",
    ):
        prepare(lab, project, "pythia-70m-deduped")
    later = lab.launch(project, recipe="pythia-70m-deduped")
    with lab.db.read() as session:
        given = yaml.safe_load(preparing.using(settings(tmp_path), session, session.get_one(Run, later)))
    assert given["data"]["prepared"] == made.path
    assert Path(made.path) == tmp_path / "home" / "data" / "pythia-14m-deduped" / f"{run}-1"
    measured = subprocess.run(
        [sys.executable, "-m", "trainer", "data", "measure", "prepared", made.path],
        check=True,
        timeout=PATIENCE,
        env=bare(),
        stdout=subprocess.PIPE,
    )
    assert Measured.model_validate_json(measured.stdout).tokens == made.tokens


def test_data_of_another_tokenizer_serve_no_other_recipe(lab: Lab) -> None:
    project = big_pool(lab)
    for source in load_recipe("gpt-neo-125m").data.sources:
        add(lab, source.corpus or "", licence="")
    sources = {source.name: source.licence for source in load_recipe("gpt-neo-125m").data.sources}
    with lab.db.write() as session:
        pool = pools.named(session, BIG)
        measured = MEASURED.model_copy(update={"sources": sources})
        corpora.add_prepared(session, pool, "pile-50277", "/data/pile-50277", measured)
        corpora.add_prepared(session, pool, "pile-50277", "/data/other", measured)
        assert corpora.on_pool(session, pool.id)["pile-50277"].path == "/data/pile-50277"
    runs_of = {name: lab.launch(project, recipe=name) for name in ("pythia-70m", "gpt-neo-125m")}
    with lab.db.read() as session:
        prepared = {
            name: yaml.safe_load(preparing.using(settings(Path("/home")), session, session.get_one(Run, run)))["data"]
            for name, run in runs_of.items()
        }
    assert prepared["pythia-70m"]["prepared"] == "/data/pile-50277"
    assert prepared["gpt-neo-125m"]["prepared"] is None


@ONCE
def test_a_corpus_that_has_vanished_since_it_was_registered_fails_the_run_with_a_sentence(
    lab: Lab, tmp_path: Path
) -> None:
    project = big_pool(lab)
    places = stand_ins(tmp_path)
    for name, path in places.items():
        add(lab, name, path, licence="")
    run = prepare(lab, project, "pythia-14m-deduped")
    places["pile-deduplicated"].unlink()
    see_through(lab, tmp_path / "home", run)
    assert (lab.run(run).state, lab.run(run).reason) == (
        RunState.FAILED,
        "The corpus pile-deduplicated is no longer where its pool has it: an operator says where it lies with "
        "`stoa corpus add`.",
    )
