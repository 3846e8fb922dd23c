"""AdamW (Loshchilov & Hutter 2019) for DeepSpeed to drive; a rank that is alone has `flat_adamw` instead."""

from collections.abc import Iterable

import torch
from torch import nn

from trainer.config import OptimizerConfig


def adamw(named: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig) -> torch.optim.AdamW:
    """PyTorch's fused AdamW over parameters by their names. Weight decay is on matrices and embeddings, not on biases
    and norms."""
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
    # By name: under ZeRO-3 a partitioned parameter no longer has its shape.
    return not name.endswith(("bias", "norm.weight"))
