"""Resuming and forking: which checkpoint a run starts from, if its configuration allows that. Imports no torch."""

from pathlib import Path
from typing import Any, NamedTuple

from trainer.checkpoint import folders, metadata
from trainer.config import ConfigError, TrainConfig
from trainer.contract import checkpoint_folder, checkpoints

FIXED_ON_RESUME = ("model", "data", "training.seed", "training.batch")
"""Keys of the configuration that a resumed run must not change."""
LOCATION_KEYS = ("data.prepared", "data.root")
"""Keys below those that it may change all the same: the hashes show that the data are the same wherever they lie."""
FIXED_ON_FORK = ("model",)
CONTEXT_KEYS = ("model.context", "model.yarn")
"""Keys of the model that a fork may change: how far its positions reach."""


class StartingPoint(NamedTuple):
    """Where a run starts: at a checkpoint, which is only read, or at step 0 with fresh weights where it is None.

    `parent` names the run and the step that this run was forked from, {"run", "step", "parent"}, the last being that
    run's own parent or None. `is_fork` is true at the first start of a fork, not when a fork is resumed.
    """

    checkpoint: Path | None = None
    step: int = 0
    parent: dict[str, Any] | None = None
    is_fork: bool = False


def find_starting_point(
    config: TrainConfig, out: Path, resume: Path | None = None, fork: str | None = None
) -> StartingPoint:
    """The newest checkpoint in the run folder `out`, or `resume` where that is of a later step, or else `fork`, which
    is RUN@STEP.

    Raises ConfigError if the checkpoint is damaged, of another model, or, unless it is forked, of other data, another
    seed or another batch size.
    """
    if resume is not None and fork is not None:
        raise ConfigError("--resume goes on with a run and --fork starts a new one; give one of the two.")
    folder = folders.newest(out)
    if resume is not None and (
        folder is None or metadata.read_verified(resume)["step"] > metadata.read_verified(folder)["step"]
    ):
        folder = resume.absolute()
    if folder is None and fork is not None:
        return _fork(config, fork)
    if folder is None:
        return StartingPoint()
    made = metadata.read_verified(folder)
    _require_same(config, made, FIXED_ON_RESUME, LOCATION_KEYS, "start afresh in another folder")
    _require_enough_steps(config, made)
    return StartingPoint(folder, made["step"], made.get("parent"))


def _fork(config: TrainConfig, fork: str) -> StartingPoint:
    run, _, step = fork.rpartition("@")
    if not run or not step.isdecimal():
        raise ConfigError(f"--fork must be RUN@STEP, a run's folder and one of its steps, not {fork[:80]!r}.")
    folder = checkpoint_folder(Path(run).absolute(), int(step))
    try:
        if not folder.is_dir():
            kept = ", ".join(path.name.removeprefix("step") for path in checkpoints(Path(run)))
            raise ConfigError(f"{run} has no checkpoint of step {step}; it has {kept or 'none'}.")
    except OSError as error:
        raise ConfigError(f"--fork {run[:80]!r} cannot be read: {error.strerror}.") from error
    made = metadata.read_verified(folder)
    _require_same(config, made, FIXED_ON_FORK, CONTEXT_KEYS, "fork with the model it has")
    _require_enough_steps(config, made)
    parent = {"run": Path(run).absolute().name, "step": made["step"], "parent": made.get("parent")}
    return StartingPoint(folder, made["step"], parent, is_fork=True)


def _require_same(
    config: TrainConfig, made: dict[str, Any], fixed: tuple[str, ...], free: tuple[str, ...], otherwise: str
) -> None:
    """Raise ConfigError unless the configuration has the checkpoint's values at the `fixed` keys, `free` ones aside."""
    now = config.model_dump(mode="json")
    for key in fixed:
        difference = _difference(key, _value_at(now, key), _value_at(made["config"], key), free)
        if difference:
            raise ConfigError(f"{difference}; go on with the checkpoint's value, or {otherwise}.")


def _require_enough_steps(config: TrainConfig, made: dict[str, Any]) -> None:
    if made["step"] > config.training.steps:
        raise ConfigError(
            f"training.steps ({config.training.steps}) must be at least the checkpoint's step ({made['step']})."
        )


def _value_at(values: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        values = values[part]
    return values


def _difference(key: str, ours: Any, theirs: Any, free: tuple[str, ...]) -> str | None:
    """The first key at or below `key` that is not free and at which the two values differ, as a clause."""
    if key in free:
        return None
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        ours, theirs = dict(enumerate(ours)), dict(enumerate(theirs))
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = (_difference(f"{key}.{name}", ours.get(name), theirs.get(name), free) for name in {**ours, **theirs})
        return next(filter(None, found), None)
    return None if ours == theirs else f"{key} is {ours!r} here and {theirs!r} in the checkpoint"
