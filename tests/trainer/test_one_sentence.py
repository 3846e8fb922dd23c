"""Every command ends in one sentence and 78 or 70, whatever others' inputs bring, and holds the folder it writes."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.trainer.conftest import ROOT, SCRUBBED, run_trainer, trainer_command, write_config
from trainer.__main__ import app
from trainer.contract import Status
from trainer.folder_lock import locked, locked_beside

run = CliRunner()


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "{config}"],
        ["data", "prepare", "{config}", "--out", "{folder}/out"],
        ["data", "show", "{folder}", "--step", "1"],
        ["data", "inspect", "{folder}/none"],
        ["import", "{folder}", "--out", "{folder}/out"],
        ["eval", "{folder}", "--tasks", "heldout"],
        ["score", "{folder}", "--text", "{config}"],
        ["generate", "{folder}", "--prompt", "a", "--out", "{folder}/out"],
        ["study", "{folder}", "--analyses", "paired_prompts", "--out", "{folder}/out"],
    ],
)
@pytest.mark.parametrize("error", [RuntimeError("unheard\nof"), OSError(28, "No space left on device"), MemoryError()])
def test_an_error_that_nobody_expected_is_one_sentence(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], error: Exception
) -> None:
    """A mock, as a fault that is known beforehand has its own sentence: the first file that a command opens fails."""

    def fail(*_: object, **__: object) -> None:
        raise error

    for name in ("read_text", "read_bytes", "is_file"):
        monkeypatch.setattr(Path, name, fail)
    filled = [part.format(config=finished / "config.yml", folder=tmp_path) for part in arguments]
    result = run.invoke(app, filled)
    assert result.exit_code in (70, 78), result.output
    assert (result.stderr.count("\n"), "Traceback" in result.output) == (1, False), result.output
    if isinstance(error, RuntimeError):
        assert re.fullmatch(r"RuntimeError: .+ \(trainer/\S+\.py, line \d+\)\n", result.stderr), result.stderr


def test_names_that_are_not_utf8(finished: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9"))
    config = write_config(tmp_path / "tiny.yml")
    for command in (("train",), ("data", "prepare")):
        result = run_trainer(*command, config, "--out", odd)
        assert (result.returncode, result.stderr) == (
            78,
            f"The name of the folder {tmp_path}/caf\\xe9 is not UTF-8; give --out another.\n",
        )
    shutil.copytree(finished / "checkpoints" / "step12", odd / "step12")
    (odd / "text").write_text("some text")
    result = run_trainer("score", odd / "step12", "--text", odd / "text")
    assert (result.returncode, result.stderr) == (
        78,
        f"The name of the folder {tmp_path}/caf\\xe9/step12 is not UTF-8; rename it.\n",
    )


def test_a_standard_output_that_is_full(finished: Path) -> None:
    for command in (["data", "mixtures"], ["check", finished / "config.yml"]):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                trainer_command(*command), cwd=ROOT, env=SCRUBBED, text=True, stdout=full, stderr=subprocess.PIPE
            )
        sentence = "A file cannot be used (No space left on device); see to it and try again.\n"
        assert (done.returncode, done.stderr) == (Status.FAILED, sentence)


@pytest.mark.parametrize(
    ("arguments", "beside"),
    [
        (["data", "prepare", "{config}"], True),
        (["import", "{config}"], False),
        (["eval", "{config}", "--tasks", "heldout"], False),
        (["generate", "{config}", "--prompt", "a"], False),
    ],
)
def test_a_folder_that_another_command_writes_is_left_alone(
    finished: Path, tmp_path: Path, arguments: list[str], beside: bool
) -> None:
    out = tmp_path / "out"
    filled = [part.format(config=finished / "config.yml") for part in arguments]
    hold = locked_beside if beside else locked
    with hold(out):
        before = set(tmp_path.rglob("*"))
        result = run.invoke(app, [*filled, "--out", str(out)])
        assert result.exit_code == Status.CONFIG
        assert result.stderr == f"Another trainer is at work in {out}; give --out another folder.\n"
        assert set(tmp_path.rglob("*")) == before
    with hold(out):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ([] if beside else ["out"])


def test_the_results_of_an_evaluation_leave_the_outcome_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "config.yml").touch()
    (tmp_path / "outcome.json").write_text("{}")
    run.invoke(app, ["eval", str(tmp_path), "--tasks", "heldout", "--out", str(tmp_path)])
    assert (tmp_path / "outcome.json").read_text() == "{}"


def test_a_preparation_waits_for_no_other_and_leaves_no_lock(tmp_path: Path) -> None:
    config, out = write_config(tmp_path / "tiny.yml"), tmp_path / "data"
    with locked_beside(out):
        refused = run_trainer("data", "prepare", config, "--out", out, "--workers", "1")
    assert refused.returncode == 78
    done = run_trainer("data", "prepare", config, "--out", out, "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "tiny.yml"]
