"""Evaluations and studies: what members may ask for, what an attempt runs, and what becomes of the results."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from sqlalchemy import update
from sqlmodel import col, select

from broker import catalogue
from broker.allocations.pools import Pool
from broker.plots.curve_of_run import curve_of
from broker.publications import Publication
from broker.runners import output
from broker.runs import baselines, evaluations, launching, results, runs, studies
from broker.runs.evaluation_plans import EvaluationPlan
from broker.runs.kinds.kind import Start, kind_of
from broker.runs.progress import Checkpoint, Ending, Progress
from broker.runs.runs import Run, RunKind, RunState
from broker.runs.series import Measured
from broker.scheduling.scheduler import Scheduler
from projects.errors import ConflictError, DomainError, InvalidError, NotFoundError
from projects.projects import Project, Stage
from tests.broker.lab import ADA, ROSA, Lab, settings
from trainer import contract

DOCUMENT = Path(__file__).parents[2] / "docs" / "how-to-add-a-kind-of-run.md"
VERBS = "pairs:\n- {prompt: The cats, preferred: ' are', other: ' is'}\n"
TASK = {"task": "heldout_docs", "metric": "bits_per_byte", "documents": 9, "shots": 0, "version": "1.0"}


@pytest.fixture
def trained(lab: Lab, tmp_path: Path) -> int:
    """A run that has left checkpoints of the steps 10, 20 and 30 here."""
    project = lab.project()
    lab.allocation(project)
    run = lab.launch(project)
    token = lab.start(run, 0)
    attempt = tmp_path / "runs" / str(run) / "attempt-1"
    kept = [Checkpoint(step, str(contract.checkpoint_folder(attempt, step))) for step in (10, 20, 30)]
    points = [Measured("loss", step, step * 100, 5.0) for step in (10, 20, 30)]
    lab.renew(run, token, 5, Progress(0, 0, step=30, tokens=3000, points=points, checkpoints=kept))
    lab.settle(run, token, 5, Ending(75))
    lab.pause(run)
    return run


def evaluate(lab: Lab, run: int, **asked: object) -> int:
    """The number of an evaluation that Ada asks for."""
    wanted = {"tasks": "heldout, arc_easy", "steps": "all", "time_limit": "10m"} | asked
    with lab.db.write() as session:
        return evaluations.launch(session, ADA, f"ask {wanted}", run, **wanted).run_id  # type: ignore[arg-type]


def command(lab: Lab, run: int, home: Path, out: Path | None = None) -> list[str]:
    """What an attempt gives to the trainer."""
    return kind_of(lab.row(run)).command(Start(settings(home), lab.db, lab.row(run), out or home / "out"))


def told(step: int, value: object, **changes: object) -> str:
    """The line of a trainer that has evaluated a step."""
    result = TASK | {"value": value, "stderr": None} | changes
    return json.dumps({"time": 1.0, "event": "result", "step": step, "results": [result]}) + "\n"


def test_an_evaluation_runs_the_tasks_on_the_checkpoints_that_are_left(lab: Lab, trained: int, tmp_path: Path) -> None:
    run = evaluate(lab, trained, shots=2, limit=50)
    assert evaluate(lab, trained, shots=2, limit=50) == run
    folders = [str(tmp_path / f"runs/{trained}/attempt-1/checkpoints/step{step}") for step in (10, 20, 30)]
    options = ["--tasks=heldout,arc_easy", "--out", str(tmp_path / "out"), "--num-fewshot=2", "--limit=50"]
    assert command(lab, run, tmp_path) == ["eval", *folders, *options]

    attempt = tmp_path / "attempt"
    attempt.mkdir()
    (attempt / "events.jsonl").write_text(told(10, 2.5, stderr=0.25) + told(20, 2.0))
    token = lab.start(run, 0)
    lab.renew(run, token, 60, output.read(attempt, 0, 0))
    lab.settle(run, token, 60, Ending(75, "its host is being drained"))
    assert lab.run(run).state == RunState.QUEUED
    assert command(lab, run, tmp_path) == ["eval", folders[2], *options]

    token = lab.start(run, 0)
    (attempt / "events.jsonl").write_text(told(30, 1.5))
    lab.renew(run, token, 60, output.read(attempt, 0, 0))
    lab.settle(run, token, 60, Ending(0))
    view = lab.run(trained)
    [scored] = view.evaluations
    assert scored == ("heldout_docs", "bits_per_byte", {10: (2.5, 0.25), 20: (2.0, None), 30: (1.5, None)})
    with lab.db.read() as session:
        [panel] = curve_of(session, view).evaluations
    assert panel.label == "heldout_docs · bits_per_byte"
    assert panel.points == [(1000, 2.5, 0.25), (2000, 2.0, None), (3000, 1.5, None)]

    project = lab.row(trained).project_id
    about = {"run": trained, "evaluation": run, "nth": 1, "tasks": ["heldout", "arc_easy"], "steps": [10, 20, 30]}
    queued = lab.payloads(project, "run.queued")[-1]
    assert queued.items() >= about.items()
    finished = lab.payloads(project, "run.finished")[-1]
    assert finished.items() >= about.items()
    assert finished["results"][0] == ["heldout_docs", "bits_per_byte", 10, 2.5, 0.25]
    assert finished["more_results"] == 0
    assert lab.run(run).spent > 0
    assert command(lab, run, tmp_path)[:2] == ["eval", folders[2]], "an attempt has something to end with"


def test_where_trainers_have_no_data_what_reads_them_is_refused(lab: Lab, trained: int) -> None:
    with lab.db.write() as session:
        session.execute(update(Pool).values(runner="kubernetes"))
    before = lab.everything()
    with pytest.raises(ConflictError, match=f"“heldout” reads the data that run {trained} was trained on, which the"):
        evaluate(lab, trained)
    with lab.db.write() as session, pytest.raises(ConflictError, match="“induction” reads the data that run"):
        studies.launch(session, ADA, "ask", trained, analyses="weights induction")
    project = lab.row(trained).project_id
    with pytest.raises(ConflictError, match="“heldout_docs” reads the run's data"):
        lab.launch(project, evaluate="arc_easy, heldout_docs every 2")
    assert lab.everything() == before
    assert evaluate(lab, trained, tasks="arc_easy")


def test_every_second_checkpoint_of_a_run_is_evaluated_as_it_comes(lab: Lab, tmp_path: Path) -> None:
    project = lab.project()
    lab.allocation(project)
    run = lab.launch(project, gpus=2, evaluate="heldout, arc_easy every 2")
    assert lab.payloads(project, "run.queued")[-1]["evaluate"] == {"tasks": ["heldout", "arc_easy"], "every": 2}
    token = lab.start(run, 0, 1)
    attempt = tmp_path / "runs" / str(run) / "attempt-1"

    def look() -> None:
        with lab.db.read() as session:
            due = evaluations.due(session)
        for one in due:
            with lab.db.write() as session:
                evaluations.queue_due(session, one)

    def saves(*steps: int) -> None:
        kept = [Checkpoint(step, str(contract.checkpoint_folder(attempt, step))) for step in steps]
        lab.renew(run, token, 5, Progress(0, 0, step=max(steps), tokens=3000, checkpoints=kept))

    def asked() -> list[list[int]]:
        with lab.db.read() as session:
            made = session.scalars(select(Run).where(Run.kind == RunKind.EVALUATE).order_by(col(Run.id)))
            return [evaluations.what(one).steps for one in made]

    look()
    saves(0)
    Scheduler(settings(tmp_path), lab.db).round()
    assert asked() == [[0]]
    saves(1, 2, 4, 8)
    look()
    assert asked() == [[0]], "one evaluation at a time"
    first = run + 1
    about = {"run": run, "evaluation": first, "tasks": ["heldout", "arc_easy"], "steps": [0]}
    queued = lab.payloads(project, "run.queued")[-1]
    assert queued.items() >= about.items()
    assert queued["by"] is None
    assert lab.row(first).requested_by == lab.row(run).requested_by
    lab.cancel(first)
    look()
    assert asked() == [[0], [2]]
    lab.cancel(first + 1)
    look()
    assert asked() == [[0], [2], [8]], "all that the allocation can pay for at a time"
    saves(16)
    lab.cancel(first + 2)
    lab.settle(run, token, 5, Ending(0))
    for another in (3, 4):
        look()
        lab.cancel(first + another)
    look()
    assert asked() == [[0], [2], [8], [16]], "the last one as well"
    with lab.db.read() as session:
        assert evaluations.due(session) == []
        assert launching.rerun_order(session, run).evaluate == "heldout, arc_easy every 2"


def test_nothing_more_is_evaluated_of_a_run_whose_project_is_over(lab: Lab, tmp_path: Path) -> None:
    project = lab.project()
    lab.allocation(project)
    run = lab.launch(project, evaluate="arc_easy")
    token = lab.start(run, 0)
    kept = Checkpoint(1, str(contract.checkpoint_folder(tmp_path / "runs" / str(run) / "attempt-1", 1)))
    lab.renew(run, token, 5, Progress(0, 0, step=1, tokens=100, checkpoints=[kept]))
    lab.settle(run, token, 5, Ending(0))
    with lab.db.write() as session:
        session.execute(update(Project).values(stage=Stage.COMPLETED))
    with lab.db.read() as session:
        assert evaluations.due(session) == [run]
    with lab.db.write() as session:
        evaluations.queue_due(session, run)
        session.flush()
        assert evaluations.due(session) == []
        session.execute(update(EvaluationPlan).values(is_over=False))
        assert evaluations.due(session) == [run], "it is over, and does not wait for its next try"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("heldot", "There is no task “heldot”; do you mean heldout"),
        ("heldout every 0", "“every” takes a number of checkpoints from 1 to 1,000, as in heldout every 4, not “0”."),
        ("heldout every so often", "There is no task “every”"),
        ("heldout every -2", "not “-2”"),
        (" every 4", "There is no task “every”"),
        ("📐" * 4000, "There is no task “📐📐"),
    ],
)
def test_an_order_of_evaluations_that_cannot_be_is_refused(lab: Lab, typed: str, said: str) -> None:
    project = lab.project()
    lab.allocation(project)
    before = lab.everything()
    with pytest.raises(InvalidError, match=re.escape(said)):
        lab.launch(project, evaluate=typed)
    assert lab.everything() == before


def test_what_was_spent_on_saved_results_is_not_refunded(lab: Lab, trained: int, tmp_path: Path) -> None:
    run = evaluate(lab, trained)
    token = lab.start(run, 0)
    (tmp_path / "events.jsonl").write_text(told(10, 2.5) + told(20, 2.0))
    lab.renew(run, token, 40, output.read(tmp_path, 0, 0))
    lab.renew(run, token, 50)
    lab.settle(run, token, 50, Ending(-9, "its host fell over", transient=True))
    assert lab.run(run).spent == 40
    assert lab.payloads(lab.row(run).project_id, "run.refunded")[-1]["seconds"] == 10


def test_a_trial_on_a_few_documents_does_not_take_the_place_of_all(lab: Lab, trained: int, tmp_path: Path) -> None:
    for number, (documents, shots, value) in enumerate(((900, 0, 2.5), (900, 5, 2.0), (20, 0, 1.0))):
        run = evaluate(lab, trained, steps="10 20", time_limit=f"{2 + number}m")
        token = lab.start(run, 0)
        attempt = tmp_path / str(run)
        attempt.mkdir()
        changes = {"documents": documents, "shots": shots}
        (attempt / "events.jsonl").write_text(told(10, value, **changes) + told(20, value, **changes))
        lab.renew(run, token, 5, output.read(attempt, 0, 0))
        lab.settle(run, token, 5, Ending(0))
    [scored] = lab.run(trained).evaluations
    assert scored.values == {10: (2.0, None), 20: (2.0, None)}, "of two on all documents, the newer one"


def test_a_later_evaluation_of_a_checkpoint_counts(lab: Lab, trained: int, tmp_path: Path) -> None:
    for number, value in enumerate((2.5, 1.25)):
        run = evaluate(lab, trained, steps="20", time_limit=f"{10 + number}m")
        token = lab.start(run, 0)
        attempt = tmp_path / str(run)
        attempt.mkdir()
        (attempt / "events.jsonl").write_text(told(20, value))
        lab.renew(run, token, 5, output.read(attempt, 0, 0))
        lab.settle(run, token, 5, Ending(0))
    [scored] = lab.run(trained).evaluations
    assert scored.values == {20: (1.25, None)}


def test_a_study_goes_on_from_its_earlier_attempt_and_its_numbers_are_saved(
    lab: Lab, trained: int, tmp_path: Path
) -> None:
    with lab.db.write() as session:
        run = studies.launch(
            session, ADA, "ask", trained, analyses="weights paired_prompts", steps="10 30", time_limit="9m"
        ).run_id
    folders = [str(tmp_path / f"runs/{trained}/attempt-1/checkpoints/step{step}") for step in (10, 30)]
    first, second = (tmp_path / "runs" / str(run) / f"attempt-{token}" for token in (1, 2))
    first.mkdir(parents=True)
    begins = ["study", *folders, "--analyses", "paired_prompts,weights", "--out"]
    assert command(lab, run, tmp_path, first) == [*begins, str(first)]
    data = tmp_path / "runs" / str(trained) / "attempt-2" / "data"
    data.mkdir(parents=True)
    (first / "results.jsonl").touch()
    assert command(lab, run, tmp_path, second) == [*begins, str(second), "--resume", str(first), "--data", str(data)]

    token = lab.start(run, 0)
    numbers = {"paired_prompts.preferred": 0.75, "paired_prompts.preferred_stderr": 0.1, "paired_prompts.pairs": 24}
    lines = [{"step": step, "tokens": step * 100, "time": 1.0} | numbers for step in (10, 30)]
    (first / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lab.renew(run, token, 60, output.read(first, 0, 0))
    lab.settle(run, token, 60, Ending(0))
    [preferred] = lab.run(trained).evaluations
    with lab.db.read() as session:
        _, pairs = results.measured_by(session, run)
    assert preferred == ("paired_prompts", "preferred", {10: (0.75, 0.1), 30: (0.75, 0.1)})
    assert pairs == ("paired_prompts", "pairs", {10: (24.0, None), 30: (24.0, None)})
    told = lab.payloads(lab.row(trained).project_id, "run.finished")[-1]
    assert (told["study"], told["nth"], told["analyses"]) == (run, 1, ["paired_prompts", "weights"])

    def ask(analyses: str) -> int:
        with lab.db.write() as session:
            return studies.launch(
                session, ADA, "ask verbs", trained, analyses=analyses, steps="10", pairs="verbs"
            ).run_id

    with lab.db.write() as session:
        with pytest.raises(
            InvalidError, match="Pair 1 of The text: other Field required; a pair has prompt, preferred"
        ):
            catalogue.propose_pairs(session, None, "no verbs", name="verbs", body="pairs: [{preferred: x}]")
        catalogue.propose_pairs(session, None, "verbs", name="verbs", body=VERBS)
    with pytest.raises(NotFoundError, match="The catalogue has no pairs “verbs”; there are none yet: /catalogue"):
        ask("paired_prompts")
    with lab.db.write() as session:
        catalogue.accept(session, None, "verbs", reason="It asks for agreement.")
    with pytest.raises(InvalidError, match="Pairs are what paired_prompts asks a model; add it to the analyses"):
        ask("weights")
    asking = ask("paired_prompts")
    with lab.db.write() as session:
        catalogue.retire(session, None, "verbs", reason="A better one is there.")
    attempt = tmp_path / "runs" / str(asking) / "attempt-1"
    attempt.mkdir(parents=True)
    told_trainer = command(lab, asking, tmp_path, attempt)
    assert Path(told_trainer[told_trainer.index("--pairs") + 1]).read_text() == VERBS
    token = lab.start(asking, 0)
    (attempt / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")
    lab.renew(asking, token, 60, output.read(attempt, 0, 0))
    assert {scored.task for scored in lab.run(trained).evaluations} == {"paired_prompts", "paired_prompts/verbs"}
    assert lab.payloads(lab.row(trained).project_id, "run.queued")[-1]["pairs"] == "verbs"

    for typed, said in (("", "Name an analysis; there are paired_prompts"), ("wieghts", "do you mean weights")):
        with lab.db.write() as session, pytest.raises(InvalidError, match=said):
            studies.launch(session, ADA, f"ask {typed}", trained, analyses=typed)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"tasks": " , "}, "Name one to 20 tasks, such as heldout, lambada_openai."),
        ({"tasks": "heldout, lambda_openai"}, "There is no task “lambda_openai”; do you mean lambada_openai or"),
        (
            {"tasks": "../../etc/passwd"},
            "There is no task “../../etc/passwd”; tasks are those of lm-evaluation",
        ),
        ({"tasks": "--data=/"}, "There is no task “--data=/”"),
        ({"tasks": "heldout_*"}, "There is no task “heldout_*”"),
        ({"tasks": "📐 @everyone"}, "There is no task “📐”"),
        ({"tasks": "a*"}, "There is no task “a*”"),
        ({"tasks": "a" * 4000}, "There is no task “aaaa"),
        ({"steps": "11"}, "has no checkpoint of step 11 here or open on the Hub; the nearest are 10, 20, 30."),
        ({"steps": "-1"}, "Steps are written like 10 20 30; or say last or all."),
        ({"time_limit": "now"}, "A time limit is written like 45m"),
        ({"time_limit": "90h"}, "left"),
        ({"shots": -1}, "The number of examples before each question is from 0 to 100, not -1."),
        ({"limit": 0}, "The number of documents of each task is from 1 to 1,000,000, not 0."),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_a_sentence(
    lab: Lab, trained: int, asked: dict[str, object], said: str
) -> None:
    before = lab.everything()
    with pytest.raises(DomainError, match=re.escape(said)):
        evaluate(lab, trained, **asked)
    assert lab.everything() == before


def test_a_run_without_a_checkpoint_and_an_evaluation_cannot_be_evaluated(lab: Lab, trained: int) -> None:
    run = evaluate(lab, trained, steps="last")
    with pytest.raises(ConflictError, match=f"Run {run} is an evaluation of run {trained}; only a run that trains has"):
        evaluate(lab, run)
    with pytest.raises(ConflictError, match="saved as they come; let it end, or cancel it"):
        lab.pause(run)
    assert lab.run(run).state == RunState.QUEUED
    with lab.db.write() as session, pytest.raises(DomainError):
        evaluations.launch(session, ROSA, "rosa", trained, tasks="heldout")
    with lab.db.write() as session:
        session.execute(update(Publication).where(col(Publication.run_id) == trained).values(disk="cleared"))
    with pytest.raises(ConflictError, match=f"Run {trained} has no checkpoint here or open on the Hub to read"):
        evaluate(lab, trained, steps="10")


def test_a_model_of_the_hub_is_evaluated_at_its_revisions(lab: Lab, tmp_path: Path) -> None:
    project = lab.project()
    lab.allocation(project)
    asked = {"model": "org/tiny @step20,step10", "tasks": "arc_easy", "shots": 2}
    with lab.db.write() as session, pytest.raises(InvalidError, match="“org/tiny @step20,step10” names no model"):
        baselines.launch(session, ADA, "ask", project, **asked)  # type: ignore[arg-type]
    asked["model"] = "org/tiny@step20 @step10, step20"
    for _ in range(2):
        with lab.db.write() as session:
            run = baselines.launch(session, ADA, "ask", project, **asked).run_id  # type: ignore[arg-type]
    copies = [str(tmp_path / "hub_copies" / "org--tiny" / f"base-step{step}") for step in (10, 20)]
    options = ["--tasks=arc_easy", "--out", str(tmp_path / "out"), "--num-fewshot=2"]
    assert command(lab, run, tmp_path) == ["eval", *copies, *options]
    queued = lab.payloads(project, "run.queued")[-1]
    assert queued.items() >= {"run": run, "baseline": "org/tiny@step10 @step20", "tasks": ["arc_easy"]}.items()

    (tmp_path / "events.jsonl").write_text(told(10, 0.25, task="arc_easy", metric="acc", stderr=0.5))
    token = lab.start(run, 0)
    lab.renew(run, token, 60, output.read(tmp_path, 0, 0))
    assert command(lab, run, tmp_path) == ["eval", copies[1], *options]
    lab.settle(run, token, 60, Ending(0))
    assert lab.run(run).spent == 60
    assert lab.run(run).evaluations == (("arc_easy", "acc", {10: (0.25, 0.5)}),)
    assert lab.payloads(project, "run.finished")[-1]["results"] == [["arc_easy", "acc", 10, 0.25, 0.5]]
    assert kind_of(lab.row(run)).what_it_is(lab.row(run)) == f"Run {run} evaluates org/tiny@step10 @step20"
    named = {"step10": 10, "seed2-step10": 0, "step10-last": 0, "main": 0, "step" + "9" * 13: 0}
    assert {each: contract.revision_step(each) for each in named} == named
    with pytest.raises(ConflictError, match=f"Run {run} evaluates org/tiny@step10 @step20; only a run that trains has"):
        evaluate(lab, run)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"model": "pythia-14m@main"}, "“pythia-14m@main” names no model of the Hub at a revision; write ORG/NAME@REV"),
        ({"model": "org/name"}, "“org/name” names no model of the Hub at a revision"),
        ({"model": "../../etc@main"}, "“../../etc@main” names no model"),
        ({"model": "org/name@--x"}, "“org/name@--x” names no model"),
        ({"model": "org/name@a/../b"}, "names no model"),
        ({"model": ""}, "“” names no model"),
        ({"model": "📐" * 4000}, "names no model"),
        ({"model": "org/name@main @step2"}, "Of several revisions each is a step, such as step1000; “main” is none."),
        ({"model": f"org/name@step1 {' '.join(f'@step{n}' for n in range(60))}"}, "at most 50 revisions; these are 60"),
        ({"tasks": "heldout_docs"}, "“heldout_docs” reads the data that a run was trained on; a model of the Hub has"),
        ({"tasks": "arc_easi"}, "There is no task “arc_easi”; do you mean arc_easy or"),
        ({"time_limit": "90h"}, "left"),
        ({"shots": 101}, "The number of examples before each question is from 0 to 100, not 101."),
        ({"limit": 0}, "The number of documents of each task is from 1 to 1,000,000, not 0."),
        ({"allocation_id": 99}, "There is no allocation 99"),
    ],
)
def test_a_model_that_cannot_be_evaluated_is_refused_in_a_sentence(
    lab: Lab, asked: dict[str, object], said: str
) -> None:
    project = lab.project()
    lab.allocation(project)
    wanted = {"model": "org/name@main", "tasks": "arc_easy", "time_limit": "10m"} | asked
    before = lab.everything()
    with pytest.raises(DomainError, match=re.escape(said)), lab.db.write() as session:
        baselines.launch(session, ADA, "ask", project, **wanted)  # type: ignore[arg-type]
    assert lab.everything() == before


def test_a_model_of_the_hub_is_evaluated_where_a_host_can_fetch_it_for_members_alone(lab: Lab) -> None:
    project = lab.project()
    lab.allocation(project)
    with lab.db.write() as session, pytest.raises(DomainError):
        baselines.launch(session, ROSA, "ask", project, model="org/name@main", tasks="arc_easy")
    with lab.db.write() as session:
        session.execute(update(Pool).values(runner="kubernetes"))
    with lab.db.write() as session, pytest.raises(ConflictError, match="cannot fetch a model from the Hub"):
        baselines.launch(session, ADA, "ask", project, model="org/name@main", tasks="arc_easy")


@pytest.mark.parametrize(
    "changes",
    [
        {"value": float("nan")},
        {"value": "2.5"},
        {"task": 7},
        {"task": "a" * 201},
        {"stderr": "small"},
        {"documents": -1},
        {"more": 1},
    ],
)
def test_a_result_of_another_form_is_left_out(tmp_path: Path, changes: dict[str, object]) -> None:
    (tmp_path / "events.jsonl").write_text(told(10, **{"value": 2.5, **changes}) + told(20, 2.0))
    assert [result.step for result in output.read(tmp_path, 0, 0).results] == [20]


def test_the_kinds_of_run_are_all_there() -> None:
    for kind in runs.RunKind:
        row = runs.Run(kind=kind, id=7, parent_id=3, recipe="demo")  # type: ignore[call-arg]
        assert "7" in kind_of(row).what_it_is(row)


def test_the_kind_of_the_document_gives_its_command(
    lab: Lab, trained: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert code is not None
    module = ModuleType("broker.runs.kinds.likeliest")
    exec(compile(code[1], DOCUMENT, "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    run = evaluate(lab, trained, steps="last")
    with lab.db.write() as session:
        session.execute(update(Run).where(col(Run.id) == run).values(kind="likeliest", prompt="Once upon a time"))
    newest = tmp_path / f"runs/{trained}/attempt-1/checkpoints/step30"
    likeliest = ["--prompt=Once upon a time", "--temperature=0", "--out", str(tmp_path / "out")]
    assert command(lab, run, tmp_path) == ["generate", str(newest), *likeliest]
