"""Resuming and forking: which checkpoint a run starts from, if its configuration allows that. Imports no torch."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from trainer import stages as stages_of
from trainer.checkpoint import folders, metadata
from trainer.config import ConfigError, OptimizerConfig, TrainConfig
from trainer.contract import checkpoint_folder, checkpoints
from trainer.data.config import PLACES
from trainer.lr_schedule import learning_rate
from trainer.stages import StageConfig

FIXED_ON_RESUME = ("model", "data", "lora", "dpo", "training.seed", "training.batch")
"""Keys of the configuration that a resumed run must not change."""
LOCATION_KEYS = ("data.prepared", "data.root", "data.corpus", "data.tokenizer.name")
"""Keys below FIXED_ON_RESUME that it may change all the same: the hashes show that the data are the same wherever they
lie."""
OF_A_CORPUS = ("corpus", *PLACES, "revision", "subset", "split", "text_key")
"""Such keys of a source that is a corpus by name."""
CHANGED_ON_WISH = ("training.steps", "stages", "optimizer", "training.precision", "training.evaluation_tokens")
"""Keys that a resumed run changes only where it is asked to by name, for they decide what the steps before mean: the
schedule of the learning rate, the update, the precision, and what a held-out loss is the mean of."""
FIXED_ON_FORK = ("model",)
CONTEXT_KEYS = ("model.context", "model.yarn")
"""Keys of the model that a fork may change: how far its positions reach."""

LEFT_OUT = ("stages", "lora", "dpo")
"""Sections that are not dumped where a run has none."""


class StartingPoint(NamedTuple):
    """Where a run starts: at a checkpoint, which is only read, or at step 0 with fresh weights where it is None.

    `parent` names the run and the step that this run was forked from, {"run", "step", "parent"}, the last being that
    run's own parent or None. `is_fork` is true at the first start of a fork, not when a fork is resumed, and
    `is_afresh` where the checkpoint of such a fork has no optimizer state to go on with. Each of
    `changes` is a sentence about a key that a resumed run changes on wish. `base` is the checkpoint whose weights a
    fine-tuned run starts from, or keeps beside its own.
    """

    checkpoint: Path | None = None
    step: int = 0
    parent: dict[str, Any] | None = None
    is_fork: bool = False
    changes: tuple[str, ...] = ()
    base: Path | None = None
    is_afresh: bool = False


def find_starting_point(
    config: TrainConfig,
    out: Path,
    resume: Path | None = None,
    fork: str | None = None,
    change: Collection[str] = (),
    base: str | None = None,
) -> StartingPoint:
    """The newest checkpoint in the run folder `out`, or `resume` where that is of a later step, or else `fork`, which
    is RUN@STEP, or else the configuration's base, which lies at `base`, RUN@STEP, where that is not its name. `change`
    names those of CHANGED_ON_WISH, or keys below them, that a resumed run may change.

    Raises ConfigError if the checkpoint is damaged, of another model, or, unless it is forked, of other data, another
    seed or another batch size, or of another value at a key that `change` does not name.
    """
    for key in change:
        if not _is_under(key, CHANGED_ON_WISH):
            known = ", ".join(CHANGED_ON_WISH)
            raise ConfigError(f"--change {key[:60]!r} is no key that a resumed run may change; those are {known}.")
    if resume is not None and fork is not None:
        raise ConfigError("--resume goes on with a run and --fork starts a new one; give one of the two.")
    base = base or config.base
    folder = folders.newest(out)
    if resume is not None and (
        folder is None or metadata.read_verified(resume)["step"] > metadata.read_verified(folder)["step"]
    ):
        folder = resume.absolute()
    if folder is None and fork is not None:
        return _fork(config, fork, base)
    if folder is None and base is not None:
        based, _ = _step_of("base", base)
        _require_same_model(config, metadata.read_verified(based))
        return StartingPoint(base=based)
    if folder is None:
        return StartingPoint()
    made = metadata.read_verified(folder)
    _require_same(config, made, FIXED_ON_RESUME, LOCATION_KEYS, "start afresh in another folder")
    _require_enough_steps(config, made)
    _require_same_reading(config, made)
    changes = _changes(config, made, change)
    return StartingPoint(folder, made["step"], made.get("parent"), changes=changes, base=_kept_base(config, base, made))


def _kept_base(config: TrainConfig, base: str | None, made: dict[str, Any]) -> Path | None:
    """The checkpoint of the base, where the run goes on reading it. Raises ConfigError unless its weights are those
    that the run of the checkpoint `made` began with."""
    if base is None or not config.keeps_base:
        return None
    folder, _ = _step_of("base", base)
    if weights_of(metadata.read_verified(folder)) != (made.get("base") or {}).get("weights"):
        raise ConfigError(f"The weights of the base {base} are not those that the run began with; name that base.")
    return folder


def weights_of(made: dict[str, Any]) -> dict[str, str]:
    """The checksums of a checkpoint's files of weights, by their names."""
    return {name: told for name, told in made["files"].items() if name.startswith("model") and "/" not in name}


def _changes(config: TrainConfig, made: dict[str, Any], change: Collection[str]) -> tuple[str, ...]:
    """A sentence about each key of CHANGED_ON_WISH at which the configuration differs from the checkpoint's. Raises
    ConfigError where `change` does not name it. At step 0 there is nothing yet that a change could alter."""
    if made["step"] == 0:
        return ()
    said = []
    now, then, step = config.model_dump(mode="json"), _config_of(made), made["step"]
    for top in CHANGED_ON_WISH:
        for key, ours, theirs in _differences(top, _value_at(now, top), _value_at(then, top)):
            if not _is_under(key, change):
                raise ConfigError(
                    f"{key} is {ours!r} here and {theirs!r} in the checkpoint{_jump(config, then, step)}; go on with "
                    f"the checkpoint's value, add --change {key} to change it after step {step}, or fork the run."
                )
            said.append(f"{key} is {ours!r} after step {step}, and {theirs!r} before{_jump(config, then, step)}.")
    return tuple(said)


def _jump(config: TrainConfig, then: dict[str, Any], step: int) -> str:
    """A clause with the learning rate of the step after `step`, here and by the checkpoint's schedule; empty where the
    two are the same."""
    before = OptimizerConfig.model_validate(then["optimizer"])
    ours = learning_rate(step, config.training.steps, config.optimizer, config.stages)
    # The schedule of a finished run has no step after its last.
    last = then["training"]["steps"]
    theirs = learning_rate(min(step, last), last, before, _stages_of(then))
    return "" if ours == theirs else f" (step {step + 1} has the learning rate {ours:.2g}, it would be {theirs:.2g})"


def _config_of(made: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint's configuration; a key that is newer than the checkpoint has its default."""
    try:
        return TrainConfig.model_validate(made["config"]).model_dump(mode="json")
    except ValidationError:
        return dict(made["config"])


def _fork(config: TrainConfig, fork: str, base: str | None) -> StartingPoint:
    folder, parent = _step_of("--fork", fork)
    is_afresh = not metadata.has_state(folder)
    made = metadata.read_verified(folder, weights_only=is_afresh)
    if is_afresh and made["step"] and config.lora is not None:
        raise ConfigError(
            f"{folder} has no optimizer state, among which its adapters are; fork it from a step that has."
        )
    _require_same(config, made, FIXED_ON_FORK, CONTEXT_KEYS, "fork with the model it has")
    _require_enough_steps(config, made)
    kept_base = _kept_base(config, base, made)
    return StartingPoint(folder, made["step"], parent, is_fork=True, base=kept_base, is_afresh=is_afresh)


def _step_of(key: str, named: str) -> tuple[Path, dict[str, Any]]:
    """The checkpoint RUN@STEP that a key or option has, and what a run that starts there says of its parent. Raises
    ConfigError."""
    run, _, step = named.rpartition("@")
    if not run or not step.isdecimal():
        raise ConfigError(f"{key} must be RUN@STEP, a run's folder and one of its steps, not {named[:80]!r}.")
    folder = checkpoint_folder(Path(run).absolute(), int(step))
    try:
        if not folder.is_dir():
            kept = ", ".join(path.name.removeprefix("step") for path in checkpoints(Path(run)))
            raise ConfigError(f"{run} has no checkpoint of step {step}; it has {kept or 'none'}.")
    except OSError as error:
        raise ConfigError(f"{key} {run[:80]!r} cannot be read: {error.strerror}.") from error
    made = metadata.read_verified(folder, weights_only=not metadata.has_state(folder))
    return folder, {"run": Path(run).absolute().name, "step": made["step"], "parent": made.get("parent")}


def _require_same(
    config: TrainConfig, made: dict[str, Any], fixed: tuple[str, ...], free: tuple[str, ...], otherwise: str
) -> None:
    """Raise ConfigError unless the configuration has the checkpoint's values at the `fixed` keys, `free` ones aside."""
    now, then = config.model_dump(mode="json"), _config_of(made)
    for number, source in enumerate(config.data.sources):
        if source.corpus is not None:
            free = (*free, *(f"data.sources.{number}.{key}" for key in OF_A_CORPUS))
    if config.data.tokenizer.name is not None:
        free = (*free, "data.tokenizer.file")
    for top in fixed:
        for key, ours, theirs in _differences(top, _value_at(now, top), _value_at(then, top), free):
            raise ConfigError(
                f"{key} is {ours!r} here and {theirs!r} in the checkpoint; go on with the checkpoint's value, or "
                f"{otherwise}."
            )


def _require_same_model(config: TrainConfig, made: dict[str, Any]) -> None:
    """Raise ConfigError unless the model computes what that of the base does. The shapes of its weights are compared
    when they are read."""
    theirs = TrainConfig.model_validate(made["config"]).model.computed
    for key, ours, other in _differences("model", config.model.computed, theirs):
        raise ConfigError(f"{key} is {ours!r} here and {other!r} in the base; take the base's value, or another base.")


def _require_enough_steps(config: TrainConfig, made: dict[str, Any]) -> None:
    if made["step"] > config.training.steps:
        raise ConfigError(
            f"training.steps ({config.training.steps}) must be at least the checkpoint's step ({made['step']})."
        )


def _require_same_reading(config: TrainConfig, made: dict[str, Any]) -> None:
    """Raise ConfigError unless the stages read up to the checkpoint's step what the run has read: the rows of the steps
    to come follow from that, and `data show` tells of those before."""

    def begun(stages: list[StageConfig]) -> list[tuple[int, dict[str, float] | None]]:
        starts = [0, *stages_of.ends(stages)]
        each = [(start, stage.weights) for start, stage in zip(starts, stages, strict=False) if start < made["step"]]
        return each or [(0, None)]

    if begun(config.stages) != begun(_stages_of(_config_of(made))):
        raise ConfigError(
            f"stages would change what the steps up to {made['step']} have read; keep those that have begun, with "
            "their weights and the steps at which they begin, or fork the run."
        )


def _stages_of(values: dict[str, Any]) -> list[StageConfig]:
    """The stages of a checkpoint's configuration; none where it is older than stages."""
    return [StageConfig.model_validate(stage) for stage in values.get("stages", ())]


def _is_under(key: str, tops: Collection[str]) -> bool:
    """Whether a key is one of `tops` or lies below one of them."""
    return any(f"{key}.".startswith(f"{top}.") for top in tops)


def _value_at(values: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        # These are not dumped where a run has none.
        values = values.get(part, [] if part == "stages" else None) if part in LEFT_OUT else values[part]
    return values


def _differences(key: str, ours: Any, theirs: Any, free: tuple[str, ...] = ()) -> Iterator[tuple[str, Any, Any]]:
    """Each key at or below `key` that is not free and at which the two values differ, with both values."""
    if key in free:
        return
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        ours, theirs = dict(enumerate(ours)), dict(enumerate(theirs))
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in {**ours, **theirs}:
            yield from _differences(f"{key}.{name}", ours.get(name), theirs.get(name), free)
    elif ours != theirs:
        yield key, ours, theirs
