"""Programs of other people from their proposal to their results, over the queue, the supervisor and the ledger."""

import sys
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import update
from sqlmodel import col

from broker import catalogue
from broker.publishing import disk
from broker.runners import processes
from broker.runs import programs, results
from broker.runs.kinds.kind import Start, kind_of
from broker.runs.progress import Checkpoint, Ending, Progress, Result
from broker.runs.runs import Run, RunState
from projects.db.columns import utcnow
from projects.errors import ConflictError, DomainError, InvalidError
from projects.record import record
from tests import forked
from tests.broker.lab import ADA, Lab, settings
from tests.broker.supervised import admitted, charged, supervised_by
from tests.databases import ONCE
from tests.environment import bare
from tests.patience import PATIENCE, wait_for
from tests.programs import program
from trainer import contract


@pytest.fixture
def trained(lab: Lab, tmp_path: Path) -> int:
    """A paused run with checkpoints of the steps 10 and 20 here, of one file each."""
    project = lab.project()
    lab.allocation(project)
    run = lab.launch(project)
    token = lab.start(run, 0)
    kept = {step: contract.checkpoint_folder(tmp_path / "runs" / str(run) / "attempt-1", step) for step in (10, 20)}
    for folder in kept.values():
        folder.mkdir(parents=True)
        (folder / "weights").touch()
    checkpoints = [Checkpoint(step, str(folder)) for step, folder in kept.items()]
    lab.renew(run, token, 5, Progress(0, 0, step=20, tokens=2000, checkpoints=checkpoints))
    lab.settle(run, token, 5, Ending(75))
    lab.pause(run)
    return run


def stoa(lab: Lab, home: Path, *words: str | Path) -> tuple[int, str]:
    """What the command line answers: its status, and all that it prints."""
    told = {"STOA_ENV_FILE": "", "STOA_HOME": str(home)}
    told |= {"STOA_DATABASE_URL": lab.db.url.render_as_string(hide_password=False)}
    done = forked.run_module("cli.main", bare() | told, *map(str, words))
    return done.returncode, done.stdout + done.stderr


def accepted(lab: Lab, described: dict[str, Any]) -> None:
    """The program `tiny`, as if an operator had tried it and accepted it."""
    with lab.db.write() as session:
        catalogue.propose_program(session, None, "propose", name="tiny", body=yaml.safe_dump(described))
        catalogue.tried(session, "tiny", catalogue.proposed_program(session, "tiny"), 3)
        catalogue.accept(session, None, "tiny", reason="It is small.")


def launch(lab: Lab, run: int, parameters: str = "", **asked: str) -> int:
    with lab.db.write() as session:
        ask = f"ask {parameters} {asked}"
        return programs.launch(session, ADA, ask, run, program="tiny", parameters=parameters, **asked).run_id


def supervise(lab: Lab, home: Path, run: int) -> int:
    """Let a supervisor see the next attempt of a run through to its end; its token."""
    token, _ = admitted(lab, home, run, 60)
    with supervised_by(lab, Path(sys.executable), home, 60, {}, run, token, forks=True) as supervisor:
        assert supervisor.wait(PATIENCE) == 0
    return token


@ONCE
def test_a_program_is_proposed_tried_accepted_and_run(lab: Lab, trained: int, tmp_path: Path) -> None:
    described = program(tmp_path / "repository")
    (tmp_path / "tiny.yml").write_text(yaml.safe_dump(described))
    assert stoa(lab, tmp_path, "program", "add", tmp_path / "tiny.yml")[0] == 0
    with lab.db.write() as session, pytest.raises(ConflictError, match="was not tried yet; an operator tries it with"):
        catalogue.accept(session, None, "tiny", reason="It is small.")
    checkpoint = contract.checkpoint_folder(tmp_path / "runs" / str(trained) / "attempt-1", 10)
    tries: list[str | Path] = ["program", "try", "tiny", "--checkpoint", checkpoint]
    status, said = stoa(lab, tmp_path, *tries, "--parameters", "how=fails")
    assert (status, said.strip().splitlines()[-1]) == (2, "tiny did not end well, and cannot be accepted as it is.")
    status, said = stoa(lab, tmp_path, *tries, "--parameters", "how=prints")
    assert (status, "tiny has ended well" in said) == (0, True)
    assert stoa(lab, tmp_path, "catalogue", "accept", "tiny", "--why", "It is small.")[0] == 0
    with lab.db.read() as session:
        entries = record.since(session, record.LAB, 0)
    assert [entry.payload["name"] for entry in entries if entry.kind == "catalogue.tried" and entry.payload] == ["tiny"]

    run = launch(lab, trained)
    token = supervise(lab, tmp_path, run)
    assert lab.run(run).state == RunState.FINISHED, lab.run(run).reason
    project = lab.row(trained).project_id
    finished = lab.payloads(project, "run.finished")[-1]
    assert (finished["run"], finished["program"], finished["tasks"]) == (trained, run, ["tiny"])
    assert finished["text"].startswith("explained: 0.25\nnote: fine\n")
    [[task, metric, step, value, error]] = finished["results"]
    assert (task, metric, value, error) == ("metrics", "loss", 1 / step, None)
    assert step > 1900
    assert finished["spent"] == charged(lab, run, token)
    with lab.db.read() as session:
        [loss] = results.measured_by(session, run)
        assert loss.values[1] == (1.0, None)
    assert lab.run(trained).evaluations == (), "its steps are its own, and not those of the run that it reads"

    run = launch(lab, trained, "how=fails")
    token = supervise(lab, tmp_path, run)
    failed = lab.payloads(project, "run.failed")[-1]
    assert failed["why"] == "The program ended with status 1; the last line of its output is: it does not work"
    assert failed["spent"] == charged(lab, run, token)

    run = launch(lab, trained, "how=forever")
    token, folder = admitted(lab, tmp_path, run, 60)
    with supervised_by(lab, Path(sys.executable), tmp_path, 60, {}, run, token, forks=True) as supervisor:
        wait_for(lambda: (folder / "trainer.log").exists() and "it begins" in (folder / "trainer.log").read_text())
        lab.cancel(run)
        assert supervisor.wait(PATIENCE) == 0
    assert lab.run(run).state == RunState.CANCELLED
    assert processes.named_by(str(folder / "work")) == []


def test_what_cannot_be_run_is_refused_and_changes_nothing(lab: Lab, trained: int, tmp_path: Path) -> None:
    described = program(tmp_path / "repository")
    with lab.db.write() as session, pytest.raises(InvalidError, match="is an https:// address"):
        catalogue.propose_program(session, ADA, "ask", name="tiny", body=yaml.safe_dump(described))
    with pytest.raises(DomainError, match="There is no program “tiny”; there are none yet"):
        launch(lab, trained)
    accepted(lab, described)
    before = lab.everything()
    for parameters, asked, said in (
        ("how=badly", {}, "how is one of well, forever"),
        ("why=badly", {}, "There is no parameter 'why'; the parameters are: how"),
        ("", {"step": "11"}, "has no checkpoint of step 11 here"),
        ("", {"time_limit": "now"}, "A time limit is written like 45m"),
        ("", {"time_limit": "90h"}, "left"),
    ):
        with pytest.raises(DomainError, match=said):
            launch(lab, trained, parameters, **asked)
        assert lab.everything() == before
    with pytest.raises(InvalidError, match="“tiny” reads one checkpoint; name one step, or say last"):
        launch(lab, trained, step="10 20")
    run = launch(lab, trained)
    assert (lab.row(run).gpus, lab.row(run).time_limit) == (1, 300)
    token = lab.start(run, 0)
    folder = tmp_path / "runs" / str(run) / "attempt-1"
    folder.mkdir(parents=True)
    command = kind_of(lab.row(run)).command(
        Start(settings(tmp_path, programs_provides="torch"), lab.db, lab.row(run), folder)
    )
    assert command[:2] == ["program", str(folder.parent / "config.yml")]
    assert command[command.index("--provides") + 1] == "torch"
    lab.renew(run, token, 40, Progress(0, 0, results=[Result(1, "metrics", "loss", 1.0)]))
    lab.settle(run, token, 50, Ending(-9, "its host fell over", transient=True))
    assert lab.run(run).spent == 0, "it begins again, and so all is refunded"

    (folder / "work").mkdir()
    conf = settings(tmp_path)
    disk.tidy(conf, lab.db)
    assert (folder / "work").is_dir(), "it has not ended"
    lab.cancel(run)
    disk.tidy(conf, lab.db)
    assert (folder / "work").is_dir(), "somebody may want it"
    disk.tidy(conf.model_copy(update={"disk_floor_gib": 1e9}), lab.db)
    assert not (folder / "work").exists()
    (folder / "work").mkdir()
    with lab.db.write() as session:
        session.execute(update(Run).where(col(Run.id) == run).values(ended_at=utcnow() - timedelta(days=8)))
    disk.tidy(conf, lab.db)
    assert not (folder / "work").exists()


def test_a_program_of_several_checkpoints_is_given_each(lab: Lab, trained: int, tmp_path: Path) -> None:
    described = program(tmp_path / "repository")
    accepted(lab, described | {"command": ["python", "main.py", "{how}", "{checkpoints}"]})
    run = launch(lab, trained, step="10 20")
    folder = tmp_path / "runs" / str(run) / "attempt-1"
    folder.mkdir(parents=True)
    command = kind_of(lab.row(run)).command(Start(settings(tmp_path), lab.db, lab.row(run), folder))
    given = [word for before, word in pairwise(command) if before == "--checkpoint"]
    attempt = tmp_path / "runs" / str(trained) / "attempt-1"
    assert given == [str(contract.checkpoint_folder(attempt, step)) for step in (10, 20)]
