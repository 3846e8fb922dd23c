"""The base of a run where it lies elsewhere than its name says: `train --base FOLDER`. Imports no torch.

The folder is a checkpoint of a run, or a model folder of transformers, which is imported into the run's own folder.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from trainer.checkpoint import folders
from trainer.config import ConfigError, TrainConfig
from trainer.contract import CHECKPOINT_METADATA_FILE, checkpoint_step

FOLDER = "base"
"""In the folder of a run: its base, imported. It goes once the run is done."""


def found(config: TrainConfig, base: Path, out: Path, hosts: int, *, begins: bool) -> str | None:
    """The base in `base` as RUN@STEP, for a run in `out` on `hosts` hosts; None where the run does not read it, as it
    no longer `begins`. Raises ConfigError."""
    if config.base is None:
        raise ConfigError("--base says where the base lies, and the configuration has none; add base.")
    if not (config.keeps_base or (begins and folders.newest(out) is None)):
        return None
    step = checkpoint_step(base)
    if step is not None and (base / CHECKPOINT_METADATA_FILE).is_file():
        return f"{base.parents[1]}@{step}"
    imported = out / FOLDER
    if folders.newest(imported) is None:
        if hosts > 1:
            raise ConfigError(f"A run on several hosts needs a base that is imported; import {base} first.")
        shutil.rmtree(imported, ignore_errors=True)
        # In a process of its own: it loads the whole model, and this process starts the ranks.
        command = [sys.executable, "-m", "trainer", "import", str(base), "--out", str(imported)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"its import ended with status {done.returncode}"]
            raise ConfigError(f"The base {config.base} cannot be used: {said[-1]}")
    return f"{imported}@0"


def remove(out: Path) -> None:
    """Remove what was imported for a run that is done."""
    shutil.rmtree(out / FOLDER, ignore_errors=True)
