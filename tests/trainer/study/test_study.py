"""The command `study`: one line a checkpoint and analysis, however often it is killed; what it refuses."""

import json
import os
import shutil
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner
from typer.testing import Result as Ended

from tests.patience import PATIENCE, wait_for
from tests.trainer.conftest import run_trainer, start_trainer
from tests.trainer.study.conftest import STEPS
from tests.trainer.study.world import WORDS, config, drawn, tokenizer, write_checkpoint, write_data
from trainer.evaluation.open_checkpoint import OpenCheckpoint
from trainer.model.transformer import Transformer
from trainer.study import registry, results, run, selection
from trainer.study.analysis import Analysis, Study, Values
from trainer.study.commands import app
from trainer.study.registry import ANALYSES
from trainer.study.results import Result

PAIRS = [
    {"prompt": "a b", "preferred": " c", "other": " d", "group": "first"},
    {"prompt": "b", "preferred": " e", "other": " f g"},
]


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    return path


def arguments(place: Path, pairs: Path, out: Path, *others: str) -> list[str]:
    chosen = ["--analyses", "paired_prompts", "--set", f"paired_prompts.file={pairs}"]
    return ["study", str(place), *chosen, "--out", str(out), *others]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def invoke(*given: str | Path) -> Ended:
    return CliRunner().invoke(app, [str(part) for part in given if part != "study"])


def test_a_study_that_is_killed_goes_on_with_the_checkpoint_that_is_not_done(
    run_folder: Path, pairs: Path, tmp_path: Path
) -> None:
    """The third checkpoint cannot be read to its end: its tokenizer is a pipe that nobody writes into."""
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(run_folder / "checkpoints", run / "checkpoints")
    pipe = run / "checkpoints" / "step2" / "tokenizer.json"
    pipe.unlink()
    os.mkfifo(pipe)
    for number, status in ((signal.SIGKILL, -9), (signal.SIGTERM, 75)):
        log = tmp_path / f"log{status}"
        log.touch()
        process = start_trainer(*arguments(run, pairs, out), log=log)
        try:
            wait_for(lambda log=log: "step 2: paired_prompts" in log.read_text())  # type: ignore[misc]
            os.killpg(process.pid, number)
            assert process.wait(PATIENCE) == status
        finally:
            process.kill()
    first = (out / "results.jsonl").read_bytes()
    assert [line["step"] for line in lines(out / "results.jsonl")] == [0, 1]
    stopped = lines(out / "events.jsonl")[-1]
    assert (stopped["event"], stopped["status"]) == ("stopped", 75)

    pipe.unlink()
    shutil.copyfile(run_folder / "checkpoints" / "step2" / "tokenizer.json", pipe)
    # What a machine leaves that goes down in the middle of a line.
    (out / "results.jsonl").write_bytes(first + first[:100])
    done = run_trainer(*arguments(run, pairs, out))
    assert done.returncode == 0, done.stderr
    assert (out / "results.jsonl").read_bytes().startswith(first)
    whole = lines(out / "results.jsonl")
    assert [(line["step"], line["analysis"]) for line in whole] == [(step, "paired_prompts") for step in STEPS]
    said = [event.get("message", event["event"]) for event in lines(out / "events.jsonl")[-4:]]
    expected = [f"step {step}: paired_prompts (checkpoint {at} of 4)" for at, step in ((3, 2), (4, 4))]
    assert said == ["started", *expected, "finished"]
    assert json.loads((out / "outcome.json").read_text())["step"] == 4

    untroubled = invoke(*arguments(run_folder, pairs, tmp_path / "untroubled"))
    assert untroubled.exit_code == 0, untroubled.output
    for name in ("results.json", "results.jsonl", "metrics.jsonl"):
        found, wanted = (
            [{key: value for key, value in line.items() if key not in ("seconds", "time")} for line in lines(path)]
            if path.suffix == ".jsonl"
            else json.loads(path.read_text())
            for path in (out / name, tmp_path / "untroubled" / name)
        )
        assert found == wanted, name


def test_another_attempt_begins_with_what_the_earlier_one_has_left(
    run_folder: Path, pairs: Path, tmp_path: Path
) -> None:
    """The earlier one had a damaged checkpoint; its folder stays as it is."""
    run, first, second = tmp_path / "run", tmp_path / "first", tmp_path / "second"
    shutil.copytree(run_folder / "checkpoints", run / "checkpoints")
    weights = run / "checkpoints" / "step2" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    given = ["--analyses", "paired_prompts,similarity", "--data", str(run_folder / "data")]
    broken = invoke(*arguments(run, pairs, first, *given))
    assert (broken.exit_code, broken.stderr.count("\n")) == (78, 1), broken.output
    assert f"The checkpoint {run}/checkpoints/step2 is damaged" in broken.stderr
    before = (first / "results.jsonl").read_bytes()
    assert [(line["step"], line["analysis"]) for line in lines(first / "results.jsonl")] == [
        (step, name) for step in (0, 1) for name in ("paired_prompts", "similarity")
    ]
    done = invoke(*arguments(run_folder, pairs, second, *given, "--resume", str(first)))
    assert done.exit_code == 0, done.output
    assert (second / "results.jsonl").read_bytes().startswith(before)
    assert [line["step"] for line in lines(second / "metrics.jsonl")] == list(STEPS)
    [of_step_2] = [
        line["values"]
        for line in lines(second / "results.jsonl")
        if (line["step"], line["analysis"]) == (2, "similarity")
    ]
    assert (of_step_2["first_step"], of_step_2["previous_step"]) == (0, 1)
    assert (first / "results.jsonl").read_bytes() == before
    none = invoke(*arguments(run_folder, pairs, tmp_path / "third", "--resume", str(tmp_path / "none")))
    assert none.stderr == f"--resume {tmp_path}/none is no folder; give that of an earlier attempt at this study.\n"


@pytest.mark.parametrize(
    "model",
    [
        {
            "positions": "learned",
            "parallel_residual": False,
            "attention": ["global", "local"],
            "window": 4,
            "tied_head": True,
        },
        {"norm": "rmsnorm", "activation": "swiglu", "parallel_residual": False, "kv_heads": 1, "rotary_pct": 1.0},
        {"norms": "one", "rotary_layout": "interleaved", "head_bias": True, "rotary_pct": 0.5},
        {"positions": "t5", "logit_scale": 1.0},
    ],
    ids=["GPT-Neo", "Llama", "GPT-J", "our own"],
)
def test_models_of_other_shapes(run_folder: Path, tmp_path: Path, model: dict[str, Any]) -> None:
    settings = config(run_folder, **model)
    write_checkpoint(tmp_path / "run", settings, 1, drawn(settings))
    chosen = registry.choose(
        "weights,similarity,induction,ngrams,logit_lens,tuned_lens,sources",
        ["tuned_lens.steps=2", "sources.documents=2"],
    )
    found = run.run(selection.choose([tmp_path / "run"], None), chosen, run_folder / "data", tmp_path)
    assert found.keys() == chosen.keys()
    # Two ways to the same number, the second by logits with a gradient.
    lens, tuned = (results.read(tmp_path)[at].values for at in (4, 5))
    assert lens["final_loss"] == tuned["final_loss"]
    read = next(value for name, value in tuned.items() if name == "kl")
    assert isinstance(read, list)
    assert all(value is not None and value >= -1e-6 for value in read)


def test_what_a_study_writes(run_folder: Path, pairs: Path, tmp_path: Path) -> None:
    folders = [str(run_folder / "checkpoints" / f"step{step}") for step in (4, 0)]
    done = invoke(folders[0], *arguments(Path(folders[1]), pairs, tmp_path)[1:])
    assert done.exit_code == 0, done.output
    found = lines(tmp_path / "results.jsonl")
    assert [(line["step"], line["tokens"], line["version"]) for line in found] == [(0, 0, 1), (4, 256, 1)]
    assert found[0]["settings"].keys() == {"file", "pairs_sha256"}
    assert found[0]["weights"] != found[1]["weights"]
    odds = [line["values"]["log_odds"] for line in found]
    summary = json.loads((tmp_path / "results.json").read_text())["paired_prompts"]
    assert (summary["steps"], summary["values"]["log_odds"]) == ([0, 4], odds)
    metrics = lines(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["tokens"], line["paired_prompts.log_odds"]) for line in metrics] == [
        (0, 0, odds[0]),
        (4, 256, odds[1]),
    ]
    more = invoke(*arguments(run_folder, pairs, tmp_path))
    assert more.exit_code == 0, more.output
    assert [line["step"] for line in lines(tmp_path / "results.jsonl")] == [0, 4, 1, 2]
    assert json.loads((tmp_path / "results.json").read_text())["paired_prompts"]["steps"] == [0, 1, 2, 4]


def test_all_analyses_in_one_study(run_folder: Path, pairs: Path, tmp_path: Path) -> None:
    short = ["--set", "memorisation.prefix=8", "--set", "memorisation.continuation=8", "--set", "tuned_lens.steps=2"]
    command = arguments(run_folder, pairs, tmp_path / "out", "--analyses", ",".join(ANALYSES), *short)
    done = invoke(*command)
    assert done.exit_code == 0, done.output
    whole = (tmp_path / "out" / "results.jsonl").read_text()
    found = [Result.model_validate_json(line) for line in whole.splitlines()]
    assert [(one.step, one.analysis) for one in found] == [(step, name) for step in STEPS for name in ANALYSES]
    assert json.loads((tmp_path / "out" / "results.json").read_text()).keys() == ANALYSES.keys()
    for name in ANALYSES:
        assert name in done.stdout
    assert invoke(*command).exit_code == 0
    assert (tmp_path / "out" / "results.jsonl").read_text() == whole
    other = tmp_path / "other"
    other.mkdir()
    write_data(other, WORDS[::-1])
    refused = invoke(run_folder, "--analyses", "ngrams", "--data", other / "data", "--out", tmp_path / "refused")
    assert (refused.exit_code, refused.stderr.count("\n")) == (78, 1), refused.output
    assert "were made with another tokenizer than that of" in refused.stderr


class Probe(Analysis):
    """Notes the checkpoints that it is given, and their models."""

    given: ClassVar[list[tuple[int, OpenCheckpoint, Transformer]]] = []

    def measure(self, opened: OpenCheckpoint, study: Study) -> Values:
        self.given.append((opened.step, opened, opened.model))
        return {"number": float(opened.model.embed.tokens.get_parameter("weight").detach()[0, 0])}


def test_a_checkpoint_is_opened_once_and_one_model_is_in_memory(run_folder: Path, tmp_path: Path) -> None:
    Probe.given.clear()
    run.run(selection.choose([run_folder], None), {"one": Probe(), "two": Probe()}, None, tmp_path)
    assert [step for step, _, _ in Probe.given] == [step for step in STEPS for _ in range(2)]
    assert [one is two for (_, one, _), (_, two, _) in pairwise(Probe.given)] == [True, False] * 3 + [True]
    assert len({id(model) for _, _, model in Probe.given}) == 1
    settings = config(run_folder)
    expected = [float(drawn(settings, step)["embed.tokens.weight"][0, 0]) for step in STEPS for _ in range(2)]
    assert [result.values["number"] for result in results.read(tmp_path)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--steps", "3"], "There is no checkpoint of step 3; the nearest are 2 and 4."),
        (["--steps", "0,9-12"], "There is no checkpoint of a step from 9 to 12; the nearest is 4."),
        (["--steps", "last"], "--steps has 'last', which is no step; give steps such as 0,100-500."),
        (["--analyses", "pared_promts"], "There is no analysis 'pared_promts'; do you mean paired_prompts?"),
        (["--analyses", " ,"], "--analyses names none; the analyses are paired_prompts"),
        (["--set", "paired_prompts.files=x"], "paired_prompts has no setting 'files'; do you mean file?"),
        (
            ["--set", "other.file=x"],
            "--set 'other.file' is of an analysis that --analyses does not name; add it there.",
        ),
        (["--set", "file"], "--set 'file' must be ANALYSIS.KEY=VALUE, such as paired_prompts.file=my.yml."),
        (["--set", "paired_prompts.file=3"], "paired_prompts.file must be a valid string, not '3'."),
        (["--set", "paired_prompts.file=none.yml"], "The pairs none.yml cannot be read (No such file or directory)"),
    ],
)
def test_a_command_that_is_wrong_is_refused(
    run_folder: Path, pairs: Path, tmp_path: Path, given: list[str], said: str
) -> None:
    result = invoke(*arguments(run_folder, pairs, tmp_path / "out", *given))
    assert (result.exit_code, result.stderr.count("\n")) == (78, 1), result.output
    assert result.stderr.startswith(said)
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_checkpoints_that_are_not_of_one_run_are_refused(run_folder: Path, pairs: Path, tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.mkdir()
    (words / "tokenizer.json").write_text(tokenizer(WORDS[::-1]).to_str())
    settings = config(run_folder)
    other = config(run_folder, layers=1)
    write_checkpoint(tmp_path / "tokenizer", settings, 8, drawn(settings), words)
    write_checkpoint(tmp_path / "model", other, 8, drawn(other))
    write_checkpoint(tmp_path / "step", settings, 4, drawn(settings))
    for name, said in (
        ("tokenizer", "step8 has another tokenizer than"),
        ("model", "step8 has another model than"),
        ("step", "are both of step 4; a study reads one run."),
    ):
        result = invoke(tmp_path / name, *arguments(run_folder, pairs, tmp_path / "out"))
        assert (result.exit_code, result.stderr.count("\n")) == (78, 1), result.output
        assert said in result.stderr
    result = invoke(*arguments(words, pairs, tmp_path / "out"))
    assert result.stderr == f"{words} is no checkpoint and no run that has one; give step folders, or a run's folder.\n"
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_results_of_something_else_are_kept(run_folder: Path, pairs: Path, tmp_path: Path) -> None:
    """Other weights, other settings, another version, or a file that is none of results."""
    out, path = tmp_path / "out", tmp_path / "out" / "results.jsonl"
    assert invoke(*arguments(run_folder, pairs, out, "--steps", "0")).exit_code == 0
    before = path.read_text()
    settings = config(run_folder)
    other = write_checkpoint(tmp_path / "other", settings, 0, drawn(settings, 7))
    changed = tmp_path / "pairs.jsonl"
    changed.write_text(pairs.read_text().replace('" c"', '" h"'))
    for place, file, line, said in (
        (other, pairs, before, "paired_prompts of step 0 with other weights than"),
        (run_folder, changed, before, "paired_prompts of step 0 with another pairs_sha256; give --out another folder."),
        (
            run_folder,
            pairs,
            before.replace('"version": 1', '"version": 0'),
            "by version 0 of the analysis, which is at 1",
        ),
        (run_folder, pairs, f"none\n{before}", "holds no result in line 1; give --out another folder"),
    ):
        path.write_text(line)
        result = invoke(*arguments(place, file, out))
        assert (result.exit_code, result.stderr.count("\n")) == (78, 1), result.output
        assert said in result.stderr
        assert path.read_text() == line
    path.write_text(before)
    elsewhere = invoke(*arguments(run_folder, changed, out, "--steps", "1"))
    assert "paired_prompts of step 0 with another pairs_sha256" in elsewhere.stderr
    assert path.read_text() == before
