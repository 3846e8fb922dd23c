"""Texts that a checkpoint writes, how its next token is drawn, and checkpoints that are damaged."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from tests.patience import PATIENCE
from tests.trainer.conftest import ROOT, start_trainer
from tests.trainer.test_evaluation import TEXT, WINDOW, checkpoint, opened
from trainer.evaluation.commands import app
from trainer.evaluation.generate import Sampling, continuations
from trainer.evaluation.open_checkpoint import OpenCheckpoint
from trainer.exits import interruptible

__all__ = ["checkpoint", "opened"]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def sample(checkpoint: Path, out: Path, *arguments: str) -> dict[str, Any]:
    result = run("generate", checkpoint, "--prompt", "def main", "--max-tokens", "12", "--out", out, *arguments)
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads((out / "sample.json").read_text())
    assert result.stdout == content["text"] + "\n"
    return content


def test_sample_is_that_of_its_seed(checkpoint: Path, tmp_path: Path) -> None:
    first = sample(checkpoint, tmp_path / "a", "--seed", "1")
    assert list(first) == ["prompt", "text", "tokens", "checkpoint_step"]
    assert (first["prompt"], first["checkpoint_step"]) == ("def main", 3)
    assert 0 < first["tokens"] <= 12
    assert first == sample(checkpoint, tmp_path / "b", "--seed", "1")
    assert first != sample(checkpoint, tmp_path / "c", "--seed", "2")
    outcome = {"status": 0, "reason": None, "step": 3, "transient": False}
    assert json.loads((tmp_path / "a" / "outcome.json").read_text()) == outcome


def test_likeliest_tokens_are_those_of_transformers(checkpoint: Path, tmp_path: Path) -> None:
    bpe = AutoTokenizer.from_pretrained(checkpoint)
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint)  # its class is that of the checkpoint's config
    ids = bpe("def main", return_tensors="pt")["input_ids"]
    expected = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    found = sample(checkpoint, tmp_path / "out", "--temperature", "0")
    assert found["text"] == bpe.decode(expected, skip_special_tokens=True)
    for narrow in (("--top-k", "1"), ("--top-p", "0.0001")):
        assert sample(checkpoint, tmp_path / "out", *narrow)["text"] == found["text"]


def test_text_goes_on_past_the_window_and_ends_with_its_document(opened: OpenCheckpoint) -> None:
    generator = torch.Generator().manual_seed(0)
    [ids] = continuations(opened, [[]], WINDOW + 8, Sampling(temperature=0), generator)
    assert len(ids) == WINDOW + 8
    window = opened.next_logits([ids[-WINDOW - 1 : -1]])
    assert int(window.argmax()) == ids[-1]
    sampling = Sampling(temperature=3.0)
    ended = continuations(opened, [[]] * 30, 50, sampling, generator)
    assert min(map(len, ended)) < 50 == max(map(len, ended))
    assert all(opened.end not in ids for ids in ended)


def test_texts_written_together_are_those_written_alone(opened: OpenCheckpoint) -> None:
    contexts = [opened.encode(text) for text in (TEXT, "import", "class A:", "")]
    greedy, generator = Sampling(temperature=0), torch.Generator()
    together = continuations(opened, contexts, 20, greedy, generator)
    assert together == [continuations(opened, [context], 20, greedy, generator)[0] for context in contexts]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1), [0.5, 0.25, 0.15, 0.1]),
        (Sampling(temperature=0.5), [0.7246, 0.1812, 0.0652, 0.0290]),
        (Sampling(temperature=1, top_k=2), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(temperature=1, top_k=9), [0.5, 0.25, 0.15, 0.1]),
        (Sampling(temperature=1, top_p=0.6), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(temperature=1, top_p=0.9), [5 / 9, 2.5 / 9, 1.5 / 9, 0]),
        (Sampling(temperature=1, top_k=3, top_p=0.5), [1, 0, 0, 0]),
    ],
)
def test_draws(sampling: Sampling, expected: list[float]) -> None:
    logits_BV = torch.tensor([0.1, 0.5, 0.15, 0.25]).log().expand(20_000, 4)
    counts = Counter(sampling.draw(logits_BV, torch.Generator().manual_seed(0)))
    assert [counts[token] / 20_000 for token in (1, 3, 2, 0)] == pytest.approx(expected, abs=0.015)


def test_stop_leaves_its_outcome(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # The likeliest token goes on for ever, where a draw may end the text at any moment.
    forever = ("--temperature", "0", "--max-tokens", "100000")
    process = start_trainer("generate", checkpoint, "--prompt", "x", "--out", out, *forever)
    try:
        while not (out / ".lock").exists() and process.poll() is None:
            time.sleep(0.1)
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE) == 75
    finally:
        process.kill()
        process.wait()
    assert json.loads((out / "outcome.json").read_text())["status"] == 75
    assert not (out / "sample.json").exists()


def test_stop_that_breaks_an_import_is_a_stop() -> None:
    @interruptible()
    def half_an_import() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("half of a module") from None

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        half_an_import()
    assert signal.getsignal(signal.SIGTERM) is before


def test_stop_within_an_exec_keeps_the_status(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import signal, sys\n"
        "from trainer.exits import interruptible\n"
        "try:\n"
        "    with interruptible():\n"
        "        exec('signal.raise_signal(signal.SIGTERM)')\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(75)\n"
    )
    search = os.pathsep.join([str(tmp_path), *sys.path])
    ended = subprocess.run([sys.executable, "-m", "program"], env=os.environ | {"PYTHONPATH": search}, check=False)
    assert ended.returncode == 75


def test_another_trainer_in_the_folder(checkpoint: Path, tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = run("generate", checkpoint, "--prompt", "x", "--out", tmp_path)
    assert result.exit_code == 78
    assert "Another trainer is at work" in result.stderr


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _set(path: Path, section: str, key: str, value: Any) -> None:
    content = json.loads(path.read_text())
    content["config"][section][key] = value
    path.write_text(json.dumps(content))


def _version(path: Path) -> None:
    content = json.loads(path.read_text())
    content["config"]["version"] = 99
    path.write_text(json.dumps(content))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "weights cut short": lambda folder: _cut(folder / "model.safetensors"),
    "weights missing": lambda folder: (folder / "model.safetensors").unlink(),
    "weights of another model": lambda folder: _set(folder / "how.json", "model", "hidden_size", 64),
    "weights of fewer layers": lambda folder: _set(folder / "how.json", "model", "layers", 3),
    "tokenizer missing": lambda folder: (folder / "tokenizer.json").unlink(),
    "tokenizer cut short": lambda folder: _cut(folder / "tokenizer.json"),
    "tokenizer of another end": lambda folder: _set(
        folder / "how.json", "data", "tokenizer", {"vocabulary": 500, "end_of_document": "</s>"}
    ),
    "how cut short": lambda folder: _cut(folder / "how.json"),
    "how missing": lambda folder: (folder / "how.json").unlink(),
    "how without a config": lambda folder: (folder / "how.json").write_text('{"step": 3}'),
    "how of another kind": lambda folder: (folder / "how.json").write_text("[]"),
    "config of a newer version": lambda folder: _version(folder / "how.json"),
    "how without a step": lambda folder: _edit(folder / "how.json", step=None),
    "config that is wrong": lambda folder: _set(folder / "how.json", "model", "heads", 0),
    "config of a newer trainer": lambda folder: _set(folder / "how.json", "model", "experts", 8),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint(checkpoint: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "step3"
    shutil.copytree(checkpoint, folder)
    DAMAGES[damage](folder)
    (tmp_path / "text.txt").write_text("x")
    for arguments in (
        ("generate", folder, "--prompt", "x", "--out", tmp_path / "out"),
        ("score", folder, "--text", tmp_path / "text.txt"),
        ("eval", folder, "--tasks", "heldout"),
    ):
        result = run(*arguments)
        assert result.exit_code in (70, 78), result.output
        assert str(folder) in result.stderr
        assert result.stderr.count("\n") == 1, result.stderr
        assert result.stdout == ""
    outcome = json.loads((tmp_path / "out" / "outcome.json").read_text())
    assert outcome["status"] == 78
    print(outcome["reason"])


def test_commands_load_no_torch_before_one_runs() -> None:
    code = "import sys, trainer.evaluation.commands; assert not {'torch', 'lm_eval', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
