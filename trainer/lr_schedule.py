"""The learning-rate schedule: a linear warm-up, then a cosine. Imports no torch."""

import math

from trainer.config import OptimizerConfig


def learning_rate(step: int, steps: int, optimizer: OptimizerConfig) -> float:
    """The learning rate of the update that takes the weights from `step` to `step + 1`, of `steps` updates in all.

    With peak P = `learning_rate`, m = `min_ratio` and W = `warmup_ratio` × steps, rounded:

        linear warm-up (Goyal et al. 2017)                  P · (step + 1) / W                    for step < W
        cosine (Loshchilov & Hutter 2017, SGDR, equation 5) P · (m + (1 − m) · (1 + cos πt) / 2)  afterwards

    where t = (step − W) / (steps − W) runs from 0 to 1. It is the schedule of GPT-3 (Brown et al. 2020, appendix B) and
    of Pythia (Biderman et al. 2023) with m = 0.1.
    """
    warmup = round(optimizer.warmup_ratio * steps)
    if step < warmup:
        return optimizer.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    low = optimizer.min_ratio
    return optimizer.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * done)) / 2)
