"""A model's parameters side by side in a few long tensors, and AdamW over them in one pass."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.config import OptimizerConfig
from trainer.engine.base import TensorKind

ROW = 4096
"""Elements that a norm sums in fp32 before the sums are added in fp64; segments are padded to whole rows."""
PIECE = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Elements updated at once: on a CPU what stays in its cache from the cast of the gradient to that of the weight."""
ALIGNED = 32
"""Elements; 64 bytes in bf16."""


@dataclass
class Segment:
    """Parameters next to each other that share the precision of their gradients and the weight decay."""

    place: slice
    gradient: Tensor
    decay: float


class FlatAdamW:
    """AdamW (Loshchilov & Hutter 2019) with fp32 masters and moments, for computing weights of fp32 or bf16.

    `weights` and `gradients` hold a view a parameter, by its name. The gradients stay where they are from step to
    step: those of the token embedding in fp32, for a token may occur often, the others in `gradient_dtype`.
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
        sizes = [sum(_padded(shape.numel(), ALIGNED) for _, shape in members) for members in groups.values()]
        total = sum(_padded(size, ROW) for size in sizes)
        self.flat: dict[TensorKind, Tensor] = {
            kind: torch.zeros(total, device=device) for kind in ("weight", "exp_avg", "exp_avg_sq")
        }
        same = compute_dtype == torch.float32
        self.computing = self.flat["weight"] if same else torch.zeros(total, dtype=compute_dtype, device=device)
        self.segments: list[Segment] = []
        self.gradients: dict[str, Tensor] = {}
        self.places: dict[str, tuple[int, torch.Size]] = {}
        start = 0
        for ((dtype, decay), members), size in zip(groups.items(), sizes, strict=True):
            segment = Segment(
                slice(start, start + _padded(size, ROW)),
                torch.zeros(_padded(size, ROW), dtype=dtype, device=device),
                decay,
            )
            offset = 0
            for name, shape in members:
                self.places[name] = start + offset, shape
                self.gradients[name] = _view(segment.gradient, offset, shape)
                offset += _padded(shape.numel(), ALIGNED)
            self.segments.append(segment)
            start = segment.place.stop
        self.count = torch.zeros((), device=device)
        self._cast = torch.empty(min(PIECE[device.type], total), device=device)

    def view(self, kind: TensorKind, name: str) -> Tensor:
        """A parameter's master weight or moment, in fp32."""
        return _view(self.flat[kind], *self.places[name])

    def weights(self) -> dict[str, nn.Parameter]:
        """What the model computes with."""
        return {name: nn.Parameter(_view(self.computing, *place)) for name, place in self.places.items()}

    def masters(self) -> dict[str, nn.Parameter]:
        return {name: nn.Parameter(self.view("weight", name), requires_grad=False) for name in self.places}

    def publish(self) -> None:
        """Copy the masters to the weights that the model computes with."""
        if self.computing is not self.flat["weight"]:
            self.computing.copy_(self.flat["weight"])

    def norm(self) -> Tensor:
        """Of the whole gradient, a scalar in fp64."""
        norms = [
            torch.linalg.vector_norm(self._exact(piece).view(-1, ROW), dim=1)
            for segment in self.segments
            for piece in torch.split(segment.gradient, PIECE[self.count.device.type])
        ]
        norm: Tensor = torch.linalg.vector_norm(torch.cat(norms), dtype=torch.float64)
        return norm

    def _exact(self, gradient: Tensor) -> Tensor:
        """In fp32; valid until the next."""
        return gradient if gradient.dtype == torch.float32 else self._cast[: len(gradient)].copy_(gradient)

    @torch.no_grad()
    def step(self, rate: float, norm: float) -> None:
        """Update by the gradients, whose norm is `norm`, clipped; they are not changed unless in fp32."""
        self.count += 1
        # torch.nn.utils.clip_grad_norm_ has the same 1e-6.
        divisor = torch.tensor(max(1.0, (norm + 1e-6) / self.config.clip), device=self.count.device)
        for segment in self.segments:
            places = range(segment.place.start, segment.place.stop, PIECE[self.count.device.type])
            for start, gradient in zip(places, torch.split(segment.gradient, places.step), strict=True):
                self._update(slice(start, start + len(gradient)), gradient, segment.decay, rate, divisor)

    def _update(self, place: slice, gradient: Tensor, decay: float, rate: float, divisor: Tensor) -> None:
        # torch's kernel divides the gradient in place.
        exact = self._cast[: len(gradient)].copy_(gradient)
        torch._fused_adamw_(
            [self.flat["weight"][place]],
            [exact],
            [self.flat["exp_avg"][place]],
            [self.flat["exp_avg_sq"][place]],
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
            self.computing[place].copy_(self.flat["weight"][place])


def _padded(size: int, multiple: int) -> int:
    return math.ceil(size / multiple) * multiple


def _view(flat: Tensor, start: int, shape: torch.Size) -> Tensor:
    return flat[start : start + shape.numel()].view(shape)
