"""The settings of fine-tuning: adapters, and preferences as an objective. Imports no torch."""

from typing import Literal

from pydantic import Field

from trainer.schema import Section

AdaptedModule = Literal["attention.qkv", "attention.out", "mlp.gate", "mlp.up", "mlp.down"]


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021, LoRA): a matrix W of the `targets` computes with W + alpha / rank · B A, and A
    and B alone are trained."""

    rank: int = Field(default=8, ge=1, le=4096)
    alpha: float = Field(default=16.0, gt=0, le=1e6)
    targets: tuple[AdaptedModule, ...] = Field(default=("attention.qkv",), min_length=1)


class DpoConfig(Section):
    """Direct preference optimisation (Rafailov et al. 2023), of data of preferences; `beta` is that of its equation
    7."""

    beta: float = Field(default=0.1, gt=0, le=100)
