"""The stages of a run: parts of its steps, each with a mixture and a schedule of its own. Imports no torch."""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, Literal

from pydantic import Field

from trainer.data.config import Name
from trainer.schema import Section

MOST_STEPS = 10_000_000
"""The most optimizer steps of a run."""

Weight = Annotated[float, Field(gt=0, le=1e9)]


class StageConfig(Section):
    """A stage of `steps` steps, in proportion to those of the other stages: all of them together are training.steps.

    `weights` has the weights of the sources that it reads, by their names; without it they are those of data.sources. A
    mixture of this package may name such weights. A source goes on where the stages before left it.

    The learning rate has the formula of `trainer.lr_schedule`, over the stage's own steps: up to `peak_ratio` of
    optimizer.learning_rate, then along a `cosine` or a `linear` decay. Without `min_ratio`, which is relative to the
    stage's peak, or `warmup_ratio`, those of the optimizer hold. The schedule is laid out over `period` times the
    stage's steps, so that a stage with a period above 1 ends before its decay does.
    """

    steps: int = Field(ge=1, le=MOST_STEPS)
    weights: dict[Name, Weight] | None = Field(default=None, min_length=1)
    peak_ratio: float = Field(default=1.0, gt=0, le=1e3)
    min_ratio: float | None = Field(default=None, ge=0, le=1)
    warmup_ratio: float | None = Field(default=None, ge=0, lt=1)
    decay: Literal["cosine", "linear"] = "cosine"
    period: float = Field(default=1.0, ge=1, le=1e3)


def ends(stages: Sequence[StageConfig]) -> list[int]:
    """The step at which each stage ends: the steps of the run up to there."""
    return list(accumulate(stage.steps for stage in stages))


def number_at(stages: Sequence[StageConfig], step: int) -> int:
    """The number, from 0, of the stage that the update after `step` is of; that of the last stage from its end on."""
    return min(sum(end <= step for end in ends(stages)), len(stages) - 1)


def left(stages: Sequence[StageConfig], first: int) -> list[StageConfig]:
    """The stages that are not over after `first` steps, with the steps that are left of each."""
    parts = [(stage, min(stage.steps, end - first)) for stage, end in zip(stages, ends(stages), strict=True)]
    return [stage.model_copy(update={"steps": steps}) for stage, steps in parts if steps > 0]


def scaled(stages: Sequence[StageConfig], steps: int) -> list[StageConfig]:
    """The stages with `steps` steps in all, in the proportions that they have; each keeps at least one. Stages that
    have as many are unchanged. `steps` is at least the number of stages."""
    whole, before = sum(stage.steps for stage in stages), 0
    found = []
    for number, (stage, end) in enumerate(zip(stages, ends(stages), strict=True), 1):
        reached = min(max(round(end * steps / whole), before + 1), steps - (len(stages) - number))
        found.append(stage.model_copy(update={"steps": reached - before}))
        before = reached
    return found


def warmup(stage: StageConfig, usual: float) -> int:
    """The steps over which a stage's learning rate rises; `usual` is the optimizer's warmup_ratio."""
    return round((usual if stage.warmup_ratio is None else stage.warmup_ratio) * period(stage))


def period(stage: StageConfig) -> int:
    """The steps over which a stage's schedule is laid out."""
    return round(stage.period * stage.steps)


def weights_in(stage: StageConfig, names: Sequence[str], usual: Sequence[float]) -> list[float]:
    """The weights that the sources of these names have in a stage, 0 for one that it does not read; `usual` are those
    of data.sources."""
    return list(usual) if stage.weights is None else [stage.weights.get(name, 0.0) for name in names]


def shares(stages: Sequence[StageConfig], names: Sequence[str], usual: Sequence[float]) -> list[float]:
    """The share that each source of these names has in what all the stages read; the shares sum to 1."""
    whole, found = sum(stage.steps for stage in stages), [0.0] * len(names)
    for stage in stages:
        weights = weights_in(stage, names, usual)
        part = stage.steps / whole / math.fsum(weights)
        found = [share + part * weight for share, weight in zip(found, weights, strict=True)]
    return found
