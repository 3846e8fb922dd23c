"""The dry run agrees with the real model, and refuses what would not run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.conftest import ROOT, run_trainer, write_config
from trainer.check import check
from trainer.checkpoint import save_load
from trainer.config import TrainConfig, load_recipe


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
        "training.batch (8) must be a multiple of training.micro_batch × data-parallel GPUs (4 × 3); change one of the "
        "three.\n"
    )


def test_the_light_modules_import_no_torch() -> None:
    code = "import trainer.__main__, trainer.check, trainer.config, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
