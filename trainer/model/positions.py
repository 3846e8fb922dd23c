"""Encodings of positions: rotary with YaRN, sinusoidal, ALiBi, T5's. K head size, R rotated dimensions of it.

The tables are built on the CPU even where the model is built on the meta device, without weights.
"""

import math

import torch
from torch import Tensor, nn

from trainer.model.config import ModelConfig, YarnConfig
from trainer.model.tensor_parallel import TensorParallel


class Rotary:
    """Rotates the first R dimensions of each head by angles that grow with the token's position (Su et al. 2021,
    RoFormer).

    With YaRN the result is also multiplied by 0.1 · ln(factor) + 1 (Peng et al. 2023, section 3.4). It is not a module,
    so that the tables stay fp32 when the model's precision changes.
    """

    def __init__(self, config: ModelConfig, context: int) -> None:
        self.size = config.rotary_size
        self.interleaved = config.rotary_layout == "interleaved"
        frequencies = frequencies_of(config)
        temperature = 0.1 * math.log(config.yarn.factor) + 1 if config.yarn else 1.0
        angles_LR = torch.outer(_count(context), frequencies)
        angles_LR = angles_LR.repeat_interleave(2, dim=-1) if self.interleaved else torch.cat([angles_LR] * 2, dim=-1)
        self.cos_LR = angles_LR.cos() * temperature
        self.sin_LR = angles_LR.sin() * temperature

    def __call__(self, x_BHLK: Tensor) -> Tensor:
        """Queries or keys [B, H, L, K], rotated; computed in fp32, returned in the precision of the input."""
        length = x_BHLK.shape[-2]
        x_BHLR = x_BHLK[..., : self.size].float()
        if self.interleaved:
            turned_BHLR = torch.stack([-x_BHLR[..., 1::2], x_BHLR[..., ::2]], dim=-1).flatten(-2)
        else:
            first, second = x_BHLR.chunk(2, dim=-1)
            turned_BHLR = torch.cat([-second, first], dim=-1)
        x_BHLR = (x_BHLR * self.cos_LR[:length] + turned_BHLR * self.sin_LR[:length]).to(x_BHLK.dtype)
        return torch.cat([x_BHLR, x_BHLK[..., self.size :]], dim=-1) if self.size < x_BHLK.shape[-1] else x_BHLR

    def to(self, device: torch.device) -> None:
        """Move the tables to a device."""
        self.cos_LR, self.sin_LR = self.cos_LR.to(device), self.sin_LR.to(device)


def frequencies_of(config: ModelConfig) -> Tensor:
    """The angle in radians by which each rotated pair turns from one position to the next, [R / 2]."""
    exponents = _count(0, config.rotary_size, 2) / config.rotary_size
    plain = 1.0 / config.rotary_base**exponents
    return _stretch(plain, config, config.yarn) if config.yarn else plain


def _stretch(plain: Tensor, config: ModelConfig, yarn: YarnConfig) -> Tensor:
    """YaRN (Peng et al. 2023, section 3.2): frequencies [R / 2] kept, divided by the factor, or between the two along a
    linear ramp over the dimensions."""
    size = config.rotary_size

    def dimension(turns: float) -> float:
        """The dimension that turns `turns` times in the original context."""
        return size * math.log(yarn.original_context / (turns * 2 * math.pi)) / (2 * math.log(config.rotary_base))

    low = max(math.floor(dimension(yarn.beta_fast)), 0)
    high = min(math.ceil(dimension(yarn.beta_slow)), size - 1)
    # A ramp of width 0 would divide by zero.
    width = high - low or 0.001
    ramp = ((_count(size // 2) - low) / width).clamp(0, 1)
    return plain * (1 - ramp) + plain / yarn.factor * ramp


def sinusoids(context: int, hidden_size: int) -> Tensor:
    """The table [context, hidden_size] that is added to the embeddings (Vaswani et al. 2017, section 3.5), sines first,
    then cosines."""
    frequencies = 1.0 / 10_000 ** (_count(0, hidden_size, 2) / hidden_size)
    angles = torch.outer(_count(context), frequencies)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def alibi_slopes(heads: int) -> Tensor:
    """The slopes [heads] of ALiBi (Press et al. 2022): what a head's logits lose for each token of distance."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
    return torch.tensor(slopes, device="cpu")


class RelativeBias(nn.Module):
    """T5's relative positions (Raffel et al. 2020, section 2.1): what this rank's heads H add to the logits of a query
    for a key at each distance, from a learned table [buckets, H] that all layers share."""

    def __init__(self, config: ModelConfig, context: int, tp: TensorParallel) -> None:
        super().__init__()
        self.buckets_L = distance_buckets(context, config.t5_buckets, config.t5_max_distance)
        self.weight = nn.Parameter(torch.empty(config.t5_buckets, config.heads // tp.size))

    def forward(self, length: int) -> Tensor:
        """The biases [H, L] in fp32 of the distances 0 to L - 1."""
        # No buffer: the weight may be made on the meta device, and its memory later.
        self.buckets_L = self.buckets_L.to(self.weight.device)
        return nn.functional.embedding(self.buckets_L[:length], self.weight.float()).T


def distance_buckets(length: int, buckets: int, max_distance: int) -> Tensor:
    """The bucket [length] of each distance from 0 on, where all keys lie before the query.

    A distance below n = buckets / 2 has one of its own, others have n + n · log(distance / n) / log(max_distance / n).
    """
    distance = _count(length)
    exact = buckets // 2
    # In transformers' own order of operations, so that rounding at a bucket's edge is the same.
    log = torch.log(distance / exact) / math.log(max_distance / exact) * (buckets - exact)
    far = (exact + log.clamp(min=0).long()).clamp(max=buckets - 1)
    return torch.where(distance < exact, distance.long(), far)


def _count(*limits: int) -> Tensor:
    return torch.arange(*limits, dtype=torch.float32, device="cpu")
