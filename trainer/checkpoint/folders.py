"""The folders of checkpoints: where it lies, and what makes it whole. Imports no torch."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from trainer import files
from trainer.config import ConfigError, TrainConfig

RESUMED = ("model", "data", "training.seed", "training.batch")
"""What a run must keep when it goes on."""
PLACES = ("data.prepared", "data.root")
"""But for these: the hashes show that the data are the same wherever they lie."""
REACH = ("model.context", "model.yarn")
"""What a fork may change of the model: how far its positions reach."""


class Start(NamedTuple):
    """Where a run begins: at a checkpoint that is only read, or at step 0 where there is none.

    `parent` is the run and the step it was forked from, with that one's own parent, if it has any.
    """

    folder: Path | None = None
    step: int = 0
    parent: dict[str, Any] | None = None
    forks: bool = False


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


def whole(folder: Path) -> dict[str, Any]:
    """How the checkpoint was made, its files being those that were written. Raises ConfigError if they are not."""
    made = how(folder)
    kinds = {"step": int, "tokens": int, "config": dict}
    for key, kind in kinds.items():
        if not isinstance(made, dict) or not isinstance(made.get(key), kind):
            raise ConfigError(_damaged(folder, f"how.json lacks {key}"))
    if folder.name not in (f"step{made['step']}", folder.name.removeprefix("step")):
        raise ConfigError(_damaged(folder, f"how.json is of step {made['step']}"))
    verify(folder, made)
    return made


def verify(folder: Path, made: dict[str, Any]) -> None:
    """Raise ConfigError unless each file has the hash that `how.json` says."""
    if found := files.damage(folder, made.get("files", {})):
        raise ConfigError(_damaged(folder, found))


def _damaged(folder: Path, problem: str) -> str:
    return f"The checkpoint {folder} is damaged: {problem}; remove it and go on from the one before."


def start(config: TrainConfig, out: Path, resume: Path | None = None, fork: str | None = None) -> Start:
    """Where to go on: at the newest checkpoint in `out`, at `resume` where that is further, or else at `fork`, which
    is RUN@STEP.

    Raises ConfigError if the checkpoint is of another model, or, unless it is forked, of other data or another order.
    """
    if resume is not None and fork is not None:
        raise ConfigError("--resume goes on with a run and --fork starts a new one; give one of the two.")
    folder = newest(out)
    if resume is not None and (folder is None or whole(resume)["step"] > whole(folder)["step"]):
        folder = resume.absolute()
    if folder is None and fork is not None:
        return _fork(config, fork)
    if folder is None:
        return Start()
    made = whole(folder)
    _demand_same(config, made, RESUMED, PLACES, "start afresh in another folder")
    _demand_steps_left(config, made)
    return Start(folder, made["step"], made.get("parent"))


def _fork(config: TrainConfig, fork: str) -> Start:
    run, _, step = fork.rpartition("@")
    if not run or not step.isdecimal():
        raise ConfigError(f"--fork must be RUN@STEP, a run's folder and one of its steps, not {fork[:80]!r}.")
    folder = folder_of(Path(run).absolute(), int(step))
    try:
        if not folder.is_dir():
            raise ConfigError(f"{run} has no checkpoint of step {step}; it has {_kept(Path(run)) or 'none'}.")
    except OSError as error:
        raise ConfigError(f"--fork {run[:80]!r} cannot be read: {error.strerror}.") from error
    made = whole(folder)
    _demand_same(config, made, ("model",), REACH, "fork with the model it has")
    _demand_steps_left(config, made)
    parent = {"run": Path(run).absolute().name, "step": made["step"], "parent": made.get("parent")}
    return Start(folder, made["step"], parent, forks=True)


def _kept(run: Path) -> str:
    """The steps of the checkpoints in a run's folder, as text."""
    names = [path.name.removeprefix("step") for path in (run / "checkpoints").glob("step*")]
    return ", ".join(map(str, sorted(int(name) for name in names if name.isdecimal())))


def _demand_same(
    config: TrainConfig, made: dict[str, Any], paths: tuple[str, ...], free: tuple[str, ...], otherwise: str
) -> None:
    now = config.model_dump(mode="json")
    for path in paths:
        difference = _difference(path, _at(now, path), _at(made["config"], path), free)
        if difference:
            raise ConfigError(f"{difference}; go on with the checkpoint's value, or {otherwise}.")


def _demand_steps_left(config: TrainConfig, made: dict[str, Any]) -> None:
    if made["step"] > config.training.steps:
        raise ConfigError(
            f"training.steps ({config.training.steps}) must be at least the checkpoint's step ({made['step']})."
        )


def code_version() -> str:
    """A hash of the trainer's own source, which names the code whether or not it lies in a repository."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"sha256:{digest.hexdigest()}"


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
            files.sync(path)
        staging.rename(final)
        files.sync(final.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def sweep(out: Path) -> None:
    """Take away what a kill left half-written."""
    for path in (out / "checkpoints").glob(".step*.writing"):
        shutil.rmtree(path)


def _at(values: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        values = values[part]
    return values


def _difference(path: str, ours: Any, theirs: Any, free: tuple[str, ...]) -> str | None:
    """The first key under `path` that is not free and at which the two differ, as a clause."""
    if path in free:
        return None
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        ours, theirs = dict(enumerate(ours)), dict(enumerate(theirs))
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = (_difference(f"{path}.{key}", ours.get(key), theirs.get(key), free) for key in {**ours, **theirs})
        return next(filter(None, found), None)
    return None if ours == theirs else f"{path} is {ours!r} here and {theirs!r} in the checkpoint"
