"""Where a token stands: rotary angles with YaRN, sinusoids, ALiBi's slopes.

The tables are made on the CPU even where the model is made on the meta device, without weights.
"""

import math

import torch
from torch import Tensor

from trainer.model.config import ModelConfig, YarnConfig


class Rotary:
    """Turns the first R dimensions of each head by the token's position (Su et al. 2021).

    Not a module, so that no change of the model's precision reaches the angles.
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
        """In fp32 within, in the precision of `x_BHLK` without."""
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
        self.cos_LR, self.sin_LR = self.cos_LR.to(device), self.sin_LR.to(device)


def frequencies_of(config: ModelConfig) -> Tensor:
    """Radians a position for each rotated pair, [R / 2]."""
    exponents = _count(0, config.rotary_size, 2) / config.rotary_size
    plain = 1.0 / config.rotary_base**exponents
    return _stretch(plain, config, config.yarn) if config.yarn else plain


def _stretch(plain: Tensor, config: ModelConfig, yarn: YarnConfig) -> Tensor:
    """YaRN (Peng et al. 2023, section 3.2): stretched, kept, or between the two by a ramp over the dimensions."""
    size = config.rotary_size

    def dimension(turns: float) -> float:
        """Whose wavelength turns that often in the original context."""
        return size * math.log(yarn.original_context / (turns * 2 * math.pi)) / (2 * math.log(config.rotary_base))

    low = max(math.floor(dimension(yarn.beta_fast)), 0)
    high = min(math.ceil(dimension(yarn.beta_slow)), size - 1)
    # A ramp of no width would divide by zero.
    width = high - low or 0.001
    ramp = ((_count(size // 2) - low) / width).clamp(0, 1)
    return plain * (1 - ramp) + plain / yarn.factor * ramp


def sinusoids(context: int, hidden_size: int) -> Tensor:
    """Added to the embeddings [context, hidden_size] (Vaswani et al. 2017): sines first, then cosines."""
    frequencies = 1.0 / 10_000 ** (_count(0, hidden_size, 2) / hidden_size)
    angles = torch.outer(_count(context), frequencies)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def alibi_slopes(heads: int) -> Tensor:
    """What each head's logits lose a token of distance (Press et al. 2022), [heads]."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
    return torch.tensor(slopes, device="cpu")


def _count(*limits: int) -> Tensor:
    return torch.arange(*limits, dtype=torch.float32, device="cpu")
