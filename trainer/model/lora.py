"""Low-rank adapters (Hu et al. 2021, LoRA): a linear layer of weight W [O, I] computes with W + alpha / rank · B A, of
which A [R, I] and B [O, R] alone are trained.

The layer keeps its name; A and B are `NAME.lora_a` and `NAME.lora_b` among its parameters.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainer.model.transformer import Transformer
from trainer.tuning_config import LoraConfig

A, B = "lora_a", "lora_b"


class Adapters:
    """The adapters of a model, which it gets here, and whose other parameters are frozen. `targets` are the names of
    the layers that have one."""

    def __init__(self, model: Transformer, config: LoraConfig) -> None:
        self.scale = config.alpha / config.rank
        self.targets: list[str] = []
        self._enabled = True
        model.requires_grad_(False)
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear) and name.endswith(config.targets):
                outputs, inputs = layer.weight.shape
                layer.register_parameter(A, nn.Parameter(layer.weight.new_empty(config.rank, inputs)))
                layer.register_parameter(B, nn.Parameter(layer.weight.new_empty(outputs, config.rank)))
                layer.register_forward_hook(self._add)
                self.targets.append(name)

    @property
    def names(self) -> list[str]:
        """The names of the parameters of all adapters."""
        return [f"{target}.{part}" for target in self.targets for part in (A, B)]

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within it the model computes as it did before it had adapters."""
        self._enabled = False
        try:
            yield
        finally:
            self._enabled = True

    def _add(self, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if not self._enabled:
            return output
        a_RI, b_OR = layer.get_parameter(A), layer.get_parameter(B)
        return output + self.scale * (inputs[0] @ a_RI.T @ b_OR.T)


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return name.endswith((f".{A}", f".{B}"))


def draw(name: str, shape: torch.Size, seed: int) -> Tensor:
    """The initial value of an adapter's parameter: of B zeros, of A uniform within 1 / √I of zero, as PEFT draws it. It
    is the same on every rank."""
    if name.endswith(B):
        return torch.zeros(shape)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    return (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(shape[1])


def merged(weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
    """The weight of a layer and its adapter in one."""
    return weight_OI + scale * (b_OR @ a_RI)


def peft_config(config: LoraConfig, base: str, modules: list[str]) -> dict[str, Any]:
    """The content of PEFT's adapter_config.json; `modules` are the names of the layers in transformers."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted({module.rpartition(".")[2] for module in modules}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
