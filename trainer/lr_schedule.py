"""The learning-rate schedule: a linear warm-up, then a decay, in each stage of a run. Imports no torch."""

import math
from collections.abc import Sequence

from trainer import stages as stages_of
from trainer.config import OptimizerConfig
from trainer.stages import StageConfig


def learning_rate(step: int, steps: int, optimizer: OptimizerConfig, stages: Sequence[StageConfig] = ()) -> float:
    """The learning rate of the update that takes the weights from `step` to `step + 1`, of `steps` updates in all.

    With peak P = `learning_rate`, m = `min_ratio` and W = `warmup_ratio` × steps, rounded:

        linear warm-up (Goyal et al. 2017)                  P · (step + 1) / W                    for step < W
        cosine (Loshchilov & Hutter 2017, SGDR, equation 5) P · (m + (1 − m) · (1 + cos πt) / 2)  afterwards

    where t = (step − W) / (steps − W) runs from 0 to 1. It is the schedule of GPT-3 (Brown et al. 2020, appendix B) and
    of Pythia (Biderman et al. 2023) with m = 0.1. In a run of stages each has such a schedule, with `step` counted from
    the stage's beginning and `steps` its period; its decay may be linear, P · (m + (1 − m) · (1 − t)).
    """
    peak, low, linear = optimizer.learning_rate, optimizer.min_ratio, False
    warmup = round(optimizer.warmup_ratio * steps)
    if stages:
        number = stages_of.number_at(stages, step)
        stage = stages[number]
        step -= stages_of.ends(stages)[number] - stage.steps
        steps, warmup = stages_of.period(stage), stages_of.warmup(stage, optimizer.warmup_ratio)
        peak, linear = peak * stage.peak_ratio, stage.decay == "linear"
        low = low if stage.min_ratio is None else stage.min_ratio
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    left = 1 - done if linear else (1 + math.cos(math.pi * done)) / 2
    return peak * (low + (1 - low) * left)
