"""The dry run agrees with the real model, and refuses what would not run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.conftest import ROOT, run_trainer, write_config
from trainer import state
from trainer.check import check
from trainer.config import ModelConfig, TrainConfig, load_recipe


@pytest.mark.parametrize("recipe", [True, False])
def test_parameter_count_is_the_models(config: TrainConfig, recipe: bool) -> None:
    chosen = load_recipe("demo") if recipe else config
    assert check(chosen).parameters == sum(p.numel() for p in state.build(chosen).parameters())


@pytest.mark.parametrize(
    ("layers", "hidden", "heads", "vocabulary", "published"),
    [(6, 128, 4, 50304, 14_067_712), (12, 768, 12, 50304, 162_322_944), (36, 5120, 40, 50688, 11_846_072_320)],
)
def test_parameter_count_of_pythia(
    config: TrainConfig, layers: int, hidden: int, heads: int, vocabulary: int, published: int
) -> None:
    tokenizer = config.data.tokenizer.model_copy(update={"vocabulary": vocabulary})
    model = ModelConfig(layers=layers, hidden_size=hidden, heads=heads)
    data = config.data.model_copy(update={"tokenizer": tokenizer})
    assert check(config.model_copy(update={"model": model, "data": data})).parameters == published


def test_report_and_time(config: TrainConfig) -> None:
    report = check(config, gpus=2, tokens_per_second=100.0)
    assert report.tokens == 12 * 8 * 32
    assert report.seconds == pytest.approx(30.72)
    assert report.refusal is None
    assert report.memory_per_gpu < check(config, gpus=1).memory_per_gpu


def test_refusals(config: TrainConfig) -> None:
    assert "training.batch (8) must be a multiple of" in str(check(config, gpus=3).refusal)
    assert "lower training.micro_batch or use more GPUs" in str(check(config, gpu_memory=1000).refusal)


def test_command_line(tmp_path: Path) -> None:
    path = write_config(tmp_path / "tiny.yml")
    good = run_trainer("check", path, "--gpus", "2", "--json")
    assert good.returncode == 0
    assert json.loads(good.stdout)["steps"] == 12
    refused = run_trainer("check", path, "--gpus", "3")
    assert refused.returncode == 78
    assert refused.stderr == (
        "training.batch (8) must be a multiple of training.micro_batch × GPUs (4 × 3); change one of the three.\n"
    )


def test_the_light_modules_import_no_torch() -> None:
    code = "import trainer.__main__, trainer.check, trainer.config, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
