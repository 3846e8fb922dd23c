"""Clipping a step's gradient by its norm: what the clipped gradient is divided by, in each of the engines."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from trainer.config import OptimizerConfig

EPSILON = 1e-6
"""Added to the norm, as torch.nn.utils.clip_grad_norm_ does."""


def clipping_divisor(norm: float, config: OptimizerConfig) -> float:
    """What the whole gradient is divided by so that its norm, now `norm`, is at most `config.clip`: at least 1."""
    return max(1.0, (norm + EPSILON) / config.clip)


def deepspeed_clipping(config: OptimizerConfig) -> dict[str, float]:
    """The option of DeepSpeed's configuration by which it clips, above ZeRO-0 by itself."""
    return {"gradient_clipping": config.clip}


def clip_in_place(parameters: Iterable[nn.Parameter], config: OptimizerConfig, mpu: Any) -> float:
    """Clip the gradients of all ranks in DeepSpeed's place at ZeRO-0, where it neither reports the norm nor skips the
    update for a norm that is not finite. Returns the whole model's norm before clipping; `mpu` is the engine's."""
    from deepspeed.runtime.utils import clip_grad_norm_

    return float(clip_grad_norm_(list(parameters), config.clip, mpu=mpu))
