"""Initial weights. Each parameter has a random stream of its own, seeded by its name, so that they are the same on
every layout of ranks."""

import hashlib
import math

import torch
from torch import Tensor

from trainer.model.config import ModelConfig


def draw(name: str, shape: torch.Size, config: ModelConfig, seed: int) -> Tensor:
    """The initial value of the whole parameter `name`, of `shape` and fp32: matrices normal with the deviation that
    `config.init` says, biases 0, weights of norms 1."""
    if name.endswith("bias"):
        return torch.zeros(shape)
    if len(shape) < 2:
        return torch.ones(shape)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    return torch.randn(shape, generator=generator) * _deviation(name, config)


def _deviation(name: str, config: ModelConfig) -> float:
    """The standard deviation of a matrix; `InitConfig` has the formulas and their sources."""
    init, hidden, layers = config.init, config.hidden_size, config.layers
    deviation = math.sqrt(2 / (5 * hidden)) if init.matrices == "small" else init.std
    if name.endswith(("attention.out.weight", "mlp.down.weight")):
        match init.residual:
            case "wang":
                return 2 / (layers * math.sqrt(hidden))
            case "scaled":
                return init.std / math.sqrt(2 * layers)
    return deviation
