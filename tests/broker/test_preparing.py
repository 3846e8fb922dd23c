"""Preparing data is a run like any other, by the real trainer; later runs of the recipe train from what it made."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import yaml

from broker import catalogue
from broker.reports import run_plan
from broker.runs import launching, runs
from broker.runs.runs import RunKind, RunState
from projects.errors import ConflictError, NotFoundError
from tests.broker.lab import ADA, Lab, request_id
from tests.databases import ONCE
from tests.environment import bare
from tests.patience import PATIENCE
from trainer.config import RECIPES


@pytest.fixture
def project(lab: Lab) -> int:
    """A project with an allocation, and an accepted recipe of next to no data."""
    values = yaml.safe_load((RECIPES / "demo.yml").read_text())
    values["data"]["sources"] = [values["data"]["sources"][0] | {"max_bytes": 60_000, "weight": 1.0}]
    values["data"]["tokenizer"] = {"vocabulary": 512, "train_bytes": 20_000}
    values["model"] |= {"layers": 1, "hidden_size": 32, "heads": 2}
    values["training"] |= {"steps": 2, "batch": 2, "micro_batch": 2, "evaluation_tokens": 256}
    with lab.db.write() as session:
        catalogue.propose_recipe(session, None, request_id(), name="tiny", body=yaml.safe_dump(values))
        catalogue.accept(session, None, "tiny", reason="For all.")
    project = lab.project()
    lab.allocation(project)
    return project


def prepare(lab: Lab, project: int, recipe: str = "tiny") -> int:
    with lab.db.write() as session:
        asked = {"project_id": project, "recipe": recipe, "time_limit": "10m"}
        return launching.prepare(session, ADA, request_id(), **asked).run_id  # type: ignore[arg-type]


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
    command = [sys.executable, "-m", "broker.runners.supervisor", str(run), str(token)]
    subprocess.run(command, env=environment, check=True, timeout=PATIENCE)


@ONCE
def test_data_are_prepared_once_and_later_runs_train_from_them(lab: Lab, project: int, tmp_path: Path) -> None:
    run = prepare(lab, project)
    assert lab.run(run).kind == RunKind.PREPARE
    see_through(lab, tmp_path, run)
    view = lab.run(run)
    assert (view.state, view.reason) == (RunState.FINISHED, "")
    place = tmp_path / "data" / "tiny" / f"{run}-1"
    assert (place / "manifest.json").exists()
    with pytest.raises(ConflictError, match="prepared already"):
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


def test_one_run_at_a_time_prepares_a_recipe(lab: Lab, project: int) -> None:
    with lab.db.write() as session:
        asked = {"project_id": project, "recipe": "tiny", "time_limit": "10m"}
        said = [launching.prepare(session, ADA, "twice", **asked) for _ in range(2)]  # type: ignore[arg-type]
    assert said[0].run_id == said[1].run_id
    with pytest.raises(ConflictError, match=f"Run {said[0].run_id} is preparing the data of “tiny”"):
        prepare(lab, project)
    lab.cancel(said[0].run_id)
    together = Barrier(4)

    def try_to(_: int) -> bool:
        together.wait(PATIENCE)
        try:
            prepare(lab, project)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(try_to, range(4))) == 1


def test_what_a_preparation_is_not_for_says_so(lab: Lab, project: int) -> None:
    run = prepare(lab, project)
    with pytest.raises(ConflictError, match="prepares the data of “tiny”, and would begin anew"):
        lab.pause(run)
    with pytest.raises(ConflictError, match="prepares the data of “tiny”; only a run that trains"), lab.db.write() as s:
        run_plan.plan_rerun(s, ADA, request_id(), run)
    with lab.db.read() as session:
        assert (
            launching.receipt(session, runs.load(session, run)).basis
            == "a preparation takes as long as its recipe has data"
        )
    assert lab.extend(run, "10m").cost == 1200
