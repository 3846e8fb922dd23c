"""AdamW (Loshchilov & Hutter 2019) as every engine uses it."""

from collections.abc import Iterable

import torch
from torch import nn

from trainer.config import OptimizerConfig


def adamw(named: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig) -> torch.optim.AdamW:
    """Over parameters by their names in the model; matrices and embeddings decay, biases and norms do not."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in named:
        (decayed if _decays(name) else others).append(parameter)
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def _decays(name: str) -> bool:
    # By the name, for a partitioned parameter has lost its shape.
    return not name.endswith(("bias", "norm.weight"))
