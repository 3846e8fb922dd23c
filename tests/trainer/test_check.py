"""The dry run agrees with the real model, and refuses what would not run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.conftest import ROOT, run_trainer, write_config
from trainer.check import check, what_fits
from trainer.checkpoint import save_load
from trainer.config import TrainConfig, load, load_recipe


@pytest.mark.parametrize("recipe", [True, False])
def test_parameter_count_is_the_models(config: TrainConfig, recipe: bool) -> None:
    chosen = load_recipe("demo") if recipe else config
    assert check(chosen).parameters == sum(p.numel() for p in save_load.build(chosen).parameters())


def test_report_and_time(config: TrainConfig) -> None:
    report = check(config, gpus=2, tokens_per_second=100.0)
    assert report.tokens == 12 * 8 * 32
    assert report.seconds == pytest.approx(30.72)
    assert report.refusal is None
    large = load_recipe("pythia-1b")
    assert check(large, gpus=8).memory_per_gpu < check(large, gpus=1).memory_per_gpu
    assert sum(report.memory.values()) == report.memory_per_gpu


def test_refusals(config: TrainConfig) -> None:
    assert "training.batch (8) must be a multiple of" in str(check(config, gpus=3).refusal)
    assert "use more GPUs, or split the model further" in str(check(config, gpu_memory=1000).refusal)
    fits = {known: what_fits(config, 1, 2**40, "cpu", others_known=known) for known in (True, False)}
    assert fits[False].endswith("; other programs may hold the rest.")
    assert fits[True].endswith("parallel.tensor and parallel.pipeline.")
    need = check(config).memory_per_gpu
    assert "with training.micro_batch 2 it would need about" in str(check(config, gpu_memory=need - 1).refusal)


def test_command_line(tmp_path: Path) -> None:
    path = write_config(tmp_path / "tiny.yml")
    good = run_trainer("check", path, "--gpus", "2", "--json")
    assert good.returncode == 0
    assert json.loads(good.stdout)["steps"] == 12
    refused = run_trainer("check", path, "--gpus", "3")
    assert refused.returncode == 78
    assert refused.stderr == (
        "training.batch (8) must be a multiple of training.micro_batch × data-parallel ranks (4 × 3); change one of "
        "the three.\n"
    )


def test_the_light_modules_import_no_torch() -> None:
    code = "import trainer.__main__, trainer.check, trainer.config, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_check_says_how_many_epochs_are_read(finished: Path, tmp_path: Path) -> None:
    prepared = {"data": {"prepared": str(finished / "data")}}
    path = write_config(tmp_path / "a.yml", prepared, steps=400)
    report = check(load(path), corpus_tokens={"python-docs": 10_000, "python-stdlib": 20_000})
    trained = 400 * 8 * 32
    assert [reading.corpus for reading in report.reads] == ["python-stdlib", "python-docs"]
    epochs = [reading.epochs for reading in report.reads]
    assert epochs == pytest.approx([trained * 0.75 / 20_000, trained * 0.25 / 10_000])
    few = run_trainer("check", path)
    assert few.returncode == 0, few.stderr
    assert "epochs of python-docs" in few.stdout
    assert "repeated data lose their value" not in few.stdout
    many = run_trainer("check", write_config(tmp_path / "b.yml", prepared, steps=9999))
    assert "beyond 4 epochs, repeated data lose their value." in " ".join(many.stdout.split())


def test_check_knows_the_type_of_the_gpus(tmp_path: Path) -> None:
    config = write_config(tmp_path / "a.yml", precision="bf16")
    assert run_trainer("check", config, "--gpu-type", "AMD Instinct MI250X").returncode == 0
    refused = run_trainer("check", config, "--gpu-type", "V100")
    assert refused.returncode == 78
    assert refused.stderr.strip().startswith("V100 GPUs compute no bf16: use fp16")
