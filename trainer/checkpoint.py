"""The folders of checkpoints: when one is due, where it lies, and what makes it whole. Imports no torch."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.config import CheckpointsConfig, ConfigError, TrainConfig


def is_due(step: int, last: int, schedule: CheckpointsConfig) -> bool:
    """Whether a run of `last` steps saves at `step`."""
    if step <= schedule.log_until:
        return step & (step - 1) == 0 or step == last
    return step % schedule.every == 0 or step == last


def folder_of(out: Path, step: int) -> Path:
    return out / "checkpoints" / f"step{step}"


def newest(out: Path) -> Path | None:
    """The whole checkpoint of the highest step in a run's folder."""
    steps = [
        int(path.name.removeprefix("step"))
        for path in (out / "checkpoints").glob("step*")
        if path.name.removeprefix("step").isdecimal()
    ]
    return folder_of(out, max(steps)) if steps else None


def how(folder: Path) -> dict[str, Any]:
    """How the checkpoint was made. Raises ConfigError if the folder is not a checkpoint."""
    try:
        made: dict[str, Any] = json.loads((folder / "how.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder} is not a whole checkpoint of this trainer; give one of its step folders."
        ) from error
    return made


def start(config: TrainConfig, out: Path, resume: Path | None) -> Path | None:
    """The checkpoint to go on from: the newest in `out`, or `resume` where that is further.

    Raises ConfigError if it was made with another model, other data or another order of them.
    """
    folder = newest(out)
    if resume is not None and (folder is None or how(resume)["step"] > how(folder)["step"]):
        folder = resume.absolute()
    if folder is None:
        return None
    made = how(folder)
    now = config.model_dump(mode="json")
    for path in ("model", "data", "training.seed", "training.batch"):
        difference = _difference(path, _at(now, path), _at(made["config"], path))
        if difference:
            raise ConfigError(f"{difference}; go on with the checkpoint's value, or start afresh in another folder.")
    if made["step"] > config.training.steps:
        raise ConfigError(
            f"training.steps ({config.training.steps}) must be at least the checkpoint's step ({made['step']})."
        )
    return folder


@contextmanager
def staged(out: Path, step: int) -> Iterator[Path]:
    """A folder to fill. On success it gets its final name, all of it on disk; on failure nothing is left."""
    final = folder_of(out, step)
    staging = final.with_name(f".{final.name}.writing")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        for path in [*staging.rglob("*"), staging]:
            _sync(path)
        staging.rename(final)
        _sync(final.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _at(values: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        values = values[part]
    return values


def _difference(path: str, ours: Any, theirs: Any) -> str | None:
    """The first key under `path` at which the two differ, as a clause."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = (_difference(f"{path}.{key}", ours.get(key), theirs.get(key)) for key in {**ours, **theirs})
        return next(filter(None, found), None)
    return None if ours == theirs else f"{path} is {ours!r} here and {theirs!r} in the checkpoint"
