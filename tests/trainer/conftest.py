"""A tiny configuration and one run of it on two ranks, shared by the tests that look at what a run leaves."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import forked
from tests.environment import bare
from tests.forked import Forked
from trainer.config import TrainConfig, load

ROOT = Path(__file__).parents[2]
SCRUBBED = bare() | {"CUDA_VISIBLE_DEVICES": ""}
TINY: dict[str, Any] = {
    "model": {"layers": 2, "hidden_size": 32, "heads": 2},
    "data": {
        "sequence_length": 32,
        "held_out": 0.2,
        "tokenizer": {"vocabulary": 500, "train_bytes": 60_000},
        "sources": [
            {"name": name, "builtin": name, "weight": weight, "licence": "PSF-2.0", "max_bytes": 100_000}
            for name, weight in (("python-docs", 1), ("python-stdlib", 3))
        ],
    },
    "optimizer": {"learning_rate": 0.01, "warmup_ratio": 0.2},
    "training": {"steps": 12, "batch": 8, "micro_batch": 4, "evaluate_every": 6, "evaluation_tokens": 512},
    "checkpoints": {"log_until": 4, "every": 5},
}

Trainer = Callable[..., subprocess.CompletedProcess[str]]


def write_config(path: Path, sections: Mapping[str, Any] | None = None, **training: Any) -> Path:
    """The tiny configuration as a file, with some keys of its training section, or of other sections, set."""
    changed = {**(sections or {}), "training": training}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(TINY | {name: TINY.get(name, {}) | values for name, values in changed.items()}))
    return path


def trainer_command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "trainer", *map(str, arguments)]


def start_trainer(*arguments: str | Path, log: Path = Path(os.devnull)) -> Forked:
    """Start the command line in a process group of its own, with an environment scrubbed of all but the essentials."""
    return forked.start_trainer(SCRUBBED, *map(str, arguments), log=log)


def run_trainer(
    *arguments: str | Path, limits: Mapping[int, int] | None = None, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end, under `limits` of the kernel (resource.RLIMIT_…), with `variables` besides."""
    return forked.run_trainer(SCRUBBED | dict(variables or {}), *map(str, arguments), limits=limits)


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    return load(write_config(tmp_path_factory.mktemp("config") / "tiny.yml"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of 12 steps on two ranks."""
    folder = tmp_path_factory.mktemp("finished")
    result = run_trainer("train", write_config(folder / "tiny.yml"), "--out", folder / "out", "--gpus", "2")
    assert result.returncode == 0, result.stderr
    return folder / "out"
