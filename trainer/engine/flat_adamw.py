"""A model's parameters side by side in a few long tensors, and AdamW over them in one pass."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.config import OptimizerConfig
from trainer.engine.base import TensorKind
from trainer.engine.gradient_clipping import clipping_divisor

ROW = 4096
"""Numbers whose norm is taken in fp32 before the norms are added in fp64; segments are padded to whole rows."""
PIECE = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Numbers updated at once. On a CPU a piece stays in the cache from the cast of the gradient to that of the weight."""
ALIGNMENT = 32
"""Parameters begin at multiples of this many numbers, 64 bytes in 16 bits."""


@dataclass
class Segment:
    """Neighbouring parameters with one precision of their gradients and one weight decay; `span` is where they lie in
    the flat tensors."""

    span: slice
    gradient: Tensor
    decay: float


class FlatAdamW:
    """AdamW (Loshchilov & Hutter 2019) with fp32 masters and moments, for computing weights of any precision.

    `weights()` and `gradients` hold one view a parameter by its name. The gradients keep their memory from step to
    step. That of the token embedding is fp32, as a token may occur often; the others have `gradient_dtype`.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, Tensor]],
        config: OptimizerConfig,
        compute_dtype: torch.dtype,
        gradient_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.config = config
        groups: dict[tuple[torch.dtype, float], list[tuple[str, torch.Size]]] = {}
        for name, parameter in named:
            dtype = torch.float32 if name == "embed.tokens.weight" else gradient_dtype
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((dtype, decay), []).append((name, parameter.shape))
        sizes = [sum(_padded(shape.numel(), ALIGNMENT) for _, shape in members) for members in groups.values()]
        total = sum(_padded(size, ROW) for size in sizes)
        self.flat: dict[TensorKind, Tensor] = {
            kind: torch.zeros(total, device=device) for kind in ("weight", "exp_avg", "exp_avg_sq")
        }
        same = compute_dtype == torch.float32
        self.computing = self.flat["weight"] if same else torch.zeros(total, dtype=compute_dtype, device=device)
        self.segments: list[Segment] = []
        self.gradients: dict[str, Tensor] = {}
        self.locations: dict[str, tuple[int, torch.Size]] = {}
        start = 0
        for ((dtype, decay), members), size in zip(groups.items(), sizes, strict=True):
            segment = Segment(
                slice(start, start + _padded(size, ROW)),
                torch.zeros(_padded(size, ROW), dtype=dtype, device=device),
                decay,
            )
            offset = 0
            for name, shape in members:
                self.locations[name] = start + offset, shape
                self.gradients[name] = _view(segment.gradient, offset, shape)
                offset += _padded(shape.numel(), ALIGNMENT)
            self.segments.append(segment)
            start = segment.span.stop
        self.count = torch.zeros((), device=device)
        self._cast = torch.empty(min(PIECE[device.type], total), device=device)

    def view(self, kind: TensorKind, name: str) -> Tensor:
        """A parameter's master weight or moment, in fp32 and of the parameter's shape."""
        return _view(self.flat[kind], *self.locations[name])

    def weights(self) -> dict[str, nn.Parameter]:
        """The weights that the model computes with, in `compute_dtype`, by name."""
        return {name: nn.Parameter(_view(self.computing, *location)) for name, location in self.locations.items()}

    def masters(self) -> dict[str, nn.Parameter]:
        """The fp32 master weights, without gradients, by name."""
        return {name: nn.Parameter(self.view("weight", name), requires_grad=False) for name in self.locations}

    def publish(self) -> None:
        """Copy the masters to the weights that the model computes with."""
        if self.computing is not self.flat["weight"]:
            self.computing.copy_(self.flat["weight"])

    def norm(self) -> Tensor:
        """The norm of the whole gradient, a scalar in fp64."""
        norms = [
            torch.linalg.vector_norm(self._exact(piece).view(-1, ROW), dim=1)
            for segment in self.segments
            for piece in torch.split(segment.gradient, PIECE[self.count.device.type])
        ]
        norm: Tensor = torch.linalg.vector_norm(torch.cat(norms), dtype=torch.float64)
        return norm

    def _exact(self, gradient: Tensor) -> Tensor:
        """The gradient in fp32, in a buffer that the next call overwrites."""
        return gradient if gradient.dtype == torch.float32 else self._cast[: len(gradient)].copy_(gradient)

    @torch.no_grad()
    def step(self, rate: float, norm: float, loss_scale: float = 1.0) -> None:
        """Update all weights at the learning rate `rate`. The gradients are `loss_scale` times what they should be, and
        are clipped by their norm, which the caller gives as it should be."""
        self.count += 1
        divisor = torch.tensor(clipping_divisor(norm, self.config) * loss_scale, device=self.count.device)
        for segment in self.segments:
            starts = range(segment.span.start, segment.span.stop, PIECE[self.count.device.type])
            for start, gradient in zip(starts, torch.split(segment.gradient, starts.step), strict=True):
                self._update(slice(start, start + len(gradient)), gradient, segment.decay, rate, divisor)

    def _update(self, span: slice, gradient: Tensor, decay: float, rate: float, divisor: Tensor) -> None:
        # The kernel divides the gradient in place, so it gets a copy.
        exact = self._cast[: len(gradient)].copy_(gradient)
        torch._fused_adamw_(
            [self.flat["weight"][span]],
            [exact],
            [self.flat["exp_avg"][span]],
            [self.flat["exp_avg_sq"][span]],
            [],
            [self.count],
            lr=rate,
            beta1=self.config.betas[0],
            beta2=self.config.betas[1],
            weight_decay=decay,
            eps=self.config.eps,
            amsgrad=False,
            maximize=False,
            grad_scale=divisor,
        )
        if self.computing is not self.flat["weight"]:
            self.computing[span].copy_(self.flat["weight"][span])


def _padded(size: int, multiple: int) -> int:
    return math.ceil(size / multiple) * multiple


def _view(flat: Tensor, start: int, shape: torch.Size) -> Tensor:
    return flat[start : start + shape.numel()].view(shape)
