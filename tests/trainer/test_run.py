"""What a finished run leaves: its files, its checkpoints as transformers opens them, and a resume that is exact."""

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.trainer.conftest import run_trainer, write_config
from trainer import files
from trainer.checkpoint.resume import StartingPoint
from trainer.code_version import code_commit
from trainer.config import TrainConfig, load
from trainer.contract import ORDER_FILE, Status
from trainer.distributed.parallel_dims import ParallelDims
from trainer.loss_spikes import LossSpikes
from trainer.train import train


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def outcome(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "outcome.json").read_text())
    return content


def losses(out: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in lines(out / "metrics.jsonl")}


def test_files(finished: Path) -> None:
    assert outcome(finished) == {"status": 0, "reason": None, "step": 12, "transient": False}
    metrics = lines(finished / "metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(1, 13))
    assert metrics[-1]["tokens"] == 12 * 8 * 32
    assert {"time", "loss", "lr", "grad_norm", "tokens_per_second", "data_wait"} <= metrics[0].keys()
    assert metrics[1]["lr"] == pytest.approx(0.01)
    events = lines(finished / "events.jsonl")
    assert events[0]["event"] == "started"
    assert events[-1]["event"] == "finished"
    saved = [(event["step"], event["path"]) for event in events if event["event"] == "checkpoint"]
    assert saved == [(step, f"checkpoints/step{step}") for step in (0, 1, 2, 4, 5, 10, 12)]
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {f"step{step}" for step, _ in saved}
    evaluations = [event for event in events if event["event"] == "evaluation"]
    assert [event["step"] for event in evaluations] == [0, 6, 12]
    assert evaluations[-1]["loss"] < evaluations[0]["loss"]
    assert any(event["event"] == "progress" for event in events)


def test_checkpoint_opens_in_transformers_with_the_trainers_logits(finished: Path) -> None:
    folder = finished / "checkpoints" / "step12"
    probe = load_file(folder / "probe.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(model(probe["ids"]).logits, probe["logits"], atol=1e-4, rtol=0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "for x in range(10):\n    print(x)\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token_id == model.config.eos_token_id


def test_checkpoint_says_how_it_was_made(finished: Path) -> None:
    how = json.loads((finished / "checkpoints" / "step4" / "how.json").read_text())
    assert (how["step"], how["tokens"], how["seed"]) == (4, 4 * 8 * 32, 1234)
    assert how["torch_version"] == torch.__version__
    assert how["code_commit"] == code_commit()
    assert how["config"]["training"]["steps"] == 12
    assert [(source["name"], source["licence"]) for source in how["data"]["sources"]] == [
        ("python-docs", "PSF-2.0"),
        ("python-stdlib", "PSF-2.0"),
    ]


def order(out: Path) -> list[list[tuple[str, int]]]:
    """The source and number of each row that the steps read, by the files of all checkpoints."""
    steps: list[tuple[int, list[tuple[str, int]]]] = []
    for path in sorted(out.glob(f"checkpoints/*/{ORDER_FILE}"), key=lambda path: int(path.parent.name[4:])):
        with safe_open(path, framework="np") as file:
            told = file.metadata()
            sources, rows = file.get_tensor("source"), file.get_tensor("row")
        names = json.loads(told["sources"])
        first = int(told["first_step"])
        assert not steps or first == steps[-1][0] + 1
        for offset, pair in enumerate(zip(sources, rows, strict=True)):
            steps.append((first + offset, [(names[source], int(row)) for source, row in zip(*pair, strict=True)]))
    return [rows for _, rows in steps]


def test_the_checkpoints_say_what_every_step_read(finished: Path) -> None:
    shown = [
        json.loads(run_trainer("data", "show", finished, "--step", str(step), "--json").stdout)["rows"]
        for step in (1, 7, 12)
    ]
    read = order(finished)
    assert [len(rows) for rows in read] == [8] * 12
    assert [read[0], read[6], read[11]] == [[(row["source"], row["number"]) for row in rows] for rows in shown]
    assert not (finished / "checkpoints" / "step0" / ORDER_FILE).exists()


@pytest.mark.parametrize("step", [0, 4])
def test_resume_is_identical_to_the_bit(finished: Path, tmp_path: Path, step: int) -> None:
    start = finished / "checkpoints" / f"step{step}"
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    config = write_config(tmp_path / "tiny.yml")
    result = run_trainer("train", config, "--out", tmp_path / "out", "--resume", start, "--gpus", "2")
    assert result.returncode == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    assert losses(tmp_path / "out") == {at: loss for at, loss in losses(finished).items() if at > step}
    for name in ("model.safetensors", "trainer/optimizer.safetensors", "probe.safetensors"):
        ours, theirs = (load_file(out / "checkpoints" / "step12" / name) for out in (tmp_path / "out", finished))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    assert not (tmp_path / "out" / "checkpoints" / f"step{step}").exists()
    assert order(tmp_path / "out") == order(finished)[step:]


def test_a_stop_before_the_first_step_ends_at_the_checkpoint_of_step_0(config: TrainConfig, tmp_path: Path) -> None:
    asked = iter([False, True])
    dims = ParallelDims(0, 1, torch.device("cpu"), 1, 1)
    assert train(config, tmp_path, StartingPoint(), dims, lambda: next(asked)) == (Status.STOPPED, 0)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step0"]
    assert not (tmp_path / "metrics.jsonl").exists()


def test_resume_on_another_number_of_ranks(finished: Path, tmp_path: Path) -> None:
    start = finished / "checkpoints" / "step4"
    config = write_config(tmp_path / "tiny.yml")
    assert run_trainer("train", config, "--out", tmp_path / "out", "--resume", start).returncode == 0
    for step, loss in losses(tmp_path / "out").items():
        assert loss == pytest.approx(losses(finished)[step], rel=1e-5)


def test_non_finite_loss_fails_and_names_the_step(finished: Path, tmp_path: Path) -> None:
    broken = tmp_path / "step4"
    shutil.copytree(finished / "checkpoints" / "step4", broken)
    weights = load_file(broken / "model.safetensors")
    weights["embed_out.weight"][0, 0] = torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    how = json.loads((broken / "how.json").read_text())
    how["files"]["model.safetensors"] = files.checksum(broken / "model.safetensors")
    (broken / "how.json").write_text(json.dumps(how))
    config = write_config(tmp_path / "tiny.yml")
    result = run_trainer("train", config, "--out", tmp_path / "out", "--resume", broken)
    assert result.returncode == 70
    assert outcome(tmp_path / "out")["reason"] == (
        "The loss of step 5 is nan; the weights were not touched. It read rows 0 to 7 of the batch: data show --step 5 "
        "prints them. A fork from an earlier checkpoint with a lower learning rate, or with another seed, may get past "
        "it."
    )
    assert outcome(tmp_path / "out")["transient"] is False
    assert lines(tmp_path / "out" / "events.jsonl")[-1]["event"] == "failed"
    assert not (tmp_path / "out" / "checkpoints").exists()


def damage(path: Path) -> None:
    """Four bytes in the middle."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4] = b"\xff\xff\xc0\x7f"
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda folder: damage(folder / "model.safetensors"), "model.safetensors is not what was written"),
        (lambda folder: damage(folder / "trainer" / "optimizer.safetensors"), "optimizer.safetensors is not what was"),
        (lambda folder: shutil.rmtree(folder / "trainer"), "trainer/optimizer.safetensors cannot be read"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json cannot be read"),
        (lambda folder: (folder / "how.json").write_text("[]"), "how.json lacks step"),
        (lambda folder: (folder / "how.json").write_text("{"), "is not a whole checkpoint of this trainer"),
    ],
)
def test_damaged_checkpoint_is_refused(
    finished: Path, tmp_path: Path, fault: Callable[[Path], object], said: str
) -> None:
    shutil.copytree(finished / "checkpoints" / "step4", tmp_path / "out" / "checkpoints" / "step4")
    fault(tmp_path / "out" / "checkpoints" / "step4")
    result = run_trainer("train", write_config(tmp_path / "tiny.yml"), "--out", tmp_path / "out")
    assert result.returncode == 78
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_generate(finished: Path, tmp_path: Path) -> None:
    def sample(out: Path, seed: str) -> dict[str, Any]:
        arguments = ("--prompt", "def main", "--max-tokens", "12", "--seed", seed)
        result = run_trainer("generate", finished / "checkpoints" / "step12", "--out", out, *arguments)
        assert result.returncode == 0, result.stderr
        content: dict[str, Any] = json.loads((out / "sample.json").read_text())
        assert result.stdout.rstrip("\n") == content["text"].rstrip("\n")
        return content

    first = sample(tmp_path / "a", "1")
    assert first["prompt"] == "def main"
    assert 0 < first["tokens"] <= 12
    assert first["checkpoint_step"] == 12
    assert first == sample(tmp_path / "b", "1")
    assert first != sample(tmp_path / "c", "2")
    assert outcome(tmp_path / "a") == {"status": 0, "reason": None, "step": 12, "transient": False}


def test_generate_without_a_checkpoint(tmp_path: Path) -> None:
    result = run_trainer("generate", tmp_path / "none", "--prompt", "x", "--out", tmp_path / "out")
    assert result.returncode == 78
    assert outcome(tmp_path / "out")["status"] == 78
    assert "is not a whole checkpoint" in result.stderr


def test_metrics_say_how_well_the_device_is_used(finished: Path) -> None:
    for line in lines(finished / "metrics.jsonl"):
        assert 0 < line["mfu"] < 1.2
        assert line["memory"] > 50e6
        assert 0 <= line["data_wait"] < 5


def test_fork_starts_a_new_run_from_a_kept_step(finished: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "tiny.yml", seed=7, steps=8)
    for _ in range(2):
        # The second start goes on in the fork's own folder.
        result = run_trainer("train", config, "--out", tmp_path / "out", "--fork", f"{finished}@4")
        assert result.returncode == 0, result.stderr
    assert list(losses(tmp_path / "out")) == [5, 6, 7, 8]
    assert losses(tmp_path / "out")[5] != losses(finished)[5]
    how = json.loads((tmp_path / "out" / "checkpoints" / "step8" / "how.json").read_text())
    assert how["parent"] == {"run": finished.name, "step": 4, "parent": None}
    assert (how["seed"], how["tokens"]) == (7, 8 * 8 * 32)
    kept, forked = (load_file(out / "checkpoints/step4/model.safetensors") for out in (finished, tmp_path / "out"))
    assert all(torch.equal(kept[name], forked[name]) for name in kept)

    again = write_config(tmp_path / "again.yml", steps=9)
    named = ("--fork-name", "run 12")
    result = run_trainer("train", again, "--out", tmp_path / "again", "--fork", f"{tmp_path / 'out'}@8", *named)
    assert result.returncode == 0, result.stderr
    how = json.loads((tmp_path / "again" / "checkpoints" / "step9" / "how.json").read_text())
    assert how["parent"]["run"] == "run 12"
    assert how["parent"]["parent"]["run"] == finished.name


def test_a_fork_of_published_weights_begins_its_optimizer_afresh(finished: Path, tmp_path: Path) -> None:
    published = tmp_path / "hub" / "checkpoints" / "step4"
    shutil.copytree(finished / "checkpoints" / "step4", published, ignore=lambda _, names: {"trainer"} & set(names))
    config = write_config(tmp_path / "tiny.yml", steps=8)
    fork = ("--fork", f"{tmp_path / 'hub'}@4")
    result = run_trainer("train", config, "--out", tmp_path / "out", *fork)
    assert result.returncode == 0, result.stderr
    warned = [event["message"] for event in lines(tmp_path / "out" / "events.jsonl") if event["event"] == "warning"]
    assert "the checkpoint of step 4 has no optimizer state, which begins afresh" in warned
    first = tmp_path / "out" / "checkpoints" / "step5"
    assert json.loads((first / "how.json").read_text())["state_since"] == 4
    # After one update, the bias-corrected moments of Adam are the gradient and its square: (1 - β1) g, (1 - β2) g².
    state = load_file(first / "trainer" / "optimizer.safetensors")
    name = "head.norm.weight" if "exp_avg.head.norm.weight" in state else next(iter(state)).partition(".")[2]
    beta1, beta2 = load(config).optimizer.betas
    gradient = state[f"exp_avg.{name}"] / (1 - beta1)
    torch.testing.assert_close(state[f"exp_avg_sq.{name}"], gradient.square() * (1 - beta2), rtol=1e-4, atol=1e-12)
    again = run_trainer("train", config, "--out", tmp_path / "again", "--resume", first)
    assert again.returncode == 0, again.stderr
    ours, theirs = (
        load_file(tmp_path / out / "checkpoints" / "step8" / "model.safetensors") for out in ("again", "out")
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_fork_reaches_further_by_yarn(finished: Path, tmp_path: Path) -> None:
    sections = {"model": {"yarn": {"factor": 2.0, "original_context": 32}}, "data": {"sequence_length": 64}}
    config = write_config(tmp_path / "tiny.yml", sections, steps=5)
    result = run_trainer("train", config, "--out", tmp_path / "out", "--fork", f"{finished}@4")
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "out" / "checkpoints" / "step5"
    model = AutoModelForCausalLM.from_pretrained(folder)
    probe = load_file(folder / "probe.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(model(probe["ids"]).logits, probe["logits"], atol=1e-4, rtol=0)
    assert model.config.rope_parameters["rope_type"] == "yarn"
    result = run_trainer("train", config, "--out", tmp_path / "other", "--resume", finished / "checkpoints" / "step4")
    assert result.returncode == 78
    assert "model.yarn is {" in result.stderr


@pytest.mark.parametrize(
    ("fork", "said"),
    [
        ("{finished}@3", "has no checkpoint of step 3; it has 0, 1, 2, 4, 5, 10, 12."),
        ("{finished}", "--fork must be RUN@STEP"),
        ("nowhere@0", "has no checkpoint of step 0; it has none."),
    ],
)
def test_fork_of_what_is_not_there(finished: Path, tmp_path: Path, fork: str, said: str) -> None:
    config = write_config(tmp_path / "tiny.yml")
    result = run_trainer("train", config, "--out", tmp_path / "out", "--fork", fork.format(finished=finished))
    assert result.returncode == 78
    assert said in result.stderr


def test_a_refused_start_changes_nothing(tmp_path: Path) -> None:
    """A source that changed is found out before the data that the run was trained on are replaced."""
    text = tmp_path / "text.jsonl"
    documents = [json.dumps({"text": f"document {number} of the source " * 20}) for number in range(200)]
    text.write_text("\n".join(documents) + "\n")
    source = {"name": "mine", "path": str(text), "weight": 1, "licence": "CC0-1.0"}
    config = write_config(tmp_path / "tiny.yml", {"data": {"sources": [source]}}, steps=3)
    assert run_trainer("train", config, "--out", tmp_path / "out").returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    seen = run_trainer("data", "show", tmp_path / "out", "--step", "2", "--json").stdout
    text.write_text("\n".join(documents[20:]) + "\n")
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "step3")
    result = run_trainer("train", config, "--out", tmp_path / "out")
    assert result.returncode == 78
    assert "The text of the source mine is not the checkpoint's; give the same files." in result.stderr
    kept = ("config.yml", "metrics.jsonl", "data/mine.train.bin", "data/manifest.json")
    assert all((tmp_path / "out" / name).read_bytes() == before[tmp_path / "out" / name] for name in kept)
    assert run_trainer("data", "show", tmp_path / "out", "--step", "2", "--json").stdout == seen


def test_show_answers_only_for_what_the_run_saw(finished: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "tiny.yml", seed=7, steps=8)
    run_trainer("train", config, "--out", tmp_path / "out", "--fork", f"{finished}@4")
    answers = ((4, 78, f"were done by {finished.name}"), (5, 0, ""), (9, 78, "must be between 1 and 8"))
    for step, status, said in answers:
        result = run_trainer("data", "show", tmp_path / "out", "--step", str(step), "--json")
        assert result.returncode == status
        assert said in result.stderr


def test_a_jump_of_the_loss_is_an_event() -> None:
    spikes = LossSpikes(deviations=6)
    generator = random.Random(0)
    usual = [spikes.above(3 + generator.gauss(0, 0.05)) for _ in range(200)]
    assert usual == [None] * 200
    assert spikes.above(4.0) == pytest.approx(3.0, abs=0.1)
    assert spikes.above(3.0) is None


def test_a_spike_is_written_down(tmp_path: Path) -> None:
    """A quiet beginning, then a learning rate far too high; the losses of the first start are remembered."""
    seldom = {"checkpoints": {"log_until": 0, "every": 1000}}
    rates = ({"learning_rate": 0.001, "min_ratio": 1.0}, {"learning_rate": 1.0, "min_ratio": 1.0})
    for rate, steps in zip(rates, (55, 60), strict=True):
        config = write_config(tmp_path / "tiny.yml", seldom | {"optimizer": rate}, steps=steps, evaluate_every=1000)
        wished = ("--change", "training.steps,optimizer.learning_rate")
        assert run_trainer("train", config, "--out", tmp_path / "out", *wished).returncode == 0
    changes = [event["message"] for event in lines(tmp_path / "out" / "events.jsonl") if event["event"] == "warning"]
    assert any(change.startswith("training.steps is 60 after step 55, and 55 before") for change in changes)
    assert any(change.startswith("optimizer.learning_rate is 1.0 after step 55") for change in changes)
    spikes = [event for event in lines(tmp_path / "out" / "events.jsonl") if event["event"] == "spike"]
    assert spikes[0]["step"] > 55
    assert spikes[0]["loss"] > spikes[0]["usual"] + 0.5


def test_a_run_that_reads_a_source_otherwise_than_its_epochs_warns(tmp_path: Path) -> None:
    source = {"name": "python-docs", "builtin": "python-docs", "epochs": 1, "licence": "PSF-2.0", "max_bytes": 100_000}
    config = write_config(tmp_path / "tiny.yml", {"data": {"sources": [source]}}, steps=1)
    result = run_trainer("train", config, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    [said] = [event["message"] for event in lines(tmp_path / "out" / "events.jsonl") if event["event"] == "warning"]
    assert re.fullmatch(r"the run reads each row of python-docs 0\.\d\d times on average, and its epochs are 1", said)
    assert said in result.stdout
