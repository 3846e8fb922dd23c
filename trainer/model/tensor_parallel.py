"""Tensor parallelism (Shoeybi et al. 2019, Megatron-LM): matrices split over ranks that see the same tokens.

A rank holds some of the outputs of a column-parallel matrix and some of the inputs of a row-parallel one; between the
two it computes its own heads or its own part of the MLP. `enter` and `leave` are Megatron's f and g.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

_COLUMN = ("embed.tokens.weight", "qkv.weight", "qkv.bias", "gate.weight", "gate.bias", "up.weight", "up.bias")
_HEAD = ("head.weight", "head.bias")
_ROW = ("attention.out.weight", "mlp.down.weight", "relative_bias.weight")


@dataclass(frozen=True)
class TensorParallel:
    """This rank's number `rank` among the `size` ranks of `group`, which share each matrix."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    def enter(self, x: Tensor) -> Tensor:
        """Enter a split part: the identity forwards, the sum of the ranks' gradients backwards."""
        return x if self.size == 1 else _Enter.apply(x, self.group)  # type: ignore[no-untyped-call]

    def leave(self, x: Tensor) -> Tensor:
        """Leave a split part: the sum of the ranks' results forwards, the identity backwards."""
        return x if self.size == 1 else _Leave.apply(x, self.group)  # type: ignore[no-untyped-call]

    def sum(self, x: Tensor) -> Tensor:
        """The sum over the ranks, in place and without a gradient."""
        return self._reduce(x, dist.ReduceOp.SUM)

    def max(self, x: Tensor) -> Tensor:
        """The maximum over the ranks, in place and without a gradient."""
        return self._reduce(x, dist.ReduceOp.MAX)

    def join(self, x: Tensor, dim: int) -> Tensor:
        """The ranks' parts concatenated along `dim`, without a gradient."""
        if self.size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        return torch.cat(parts, dim)

    def part(self, whole: Tensor, dim: int | None) -> Tensor:
        """This rank's part of a whole tensor; all of it where `dim` is None."""
        return whole if dim is None else whole.chunk(self.size, dim)[self.rank]

    def _reduce(self, x: Tensor, operation: Any) -> Tensor:
        if self.size > 1:
            dist.all_reduce(x, operation, group=self.group)
        return x


ALONE = TensorParallel()


def split_dim(name: str) -> int | None:
    """The dimension along which the parameter of that name is split, None where every rank holds the whole."""
    if name.endswith(_COLUMN) or name in _HEAD:
        return 0
    return 1 if name.endswith(_ROW) else None


class RowLinear(nn.Linear):
    """A row-parallel linear layer: it takes this rank's part of the inputs and returns the whole outputs. The bias,
    which every rank holds, is added after the sum."""

    def __init__(self, inputs: int, outputs: int, bias: bool, tp: TensorParallel) -> None:
        super().__init__(inputs // tp.size, outputs, bias)
        self.tp = tp

    def forward(self, x: Tensor) -> Tensor:
        """This rank's part [..., inputs / ranks] of the inputs to the whole outputs [..., outputs]."""
        if self.tp.size == 1:
            return super().forward(x)
        out = self.tp.leave(functional.linear(x, self.weight))
        return out if self.bias is None else out + self.bias


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].contiguous().clone()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        summed = x.contiguous().clone()
        dist.all_reduce(summed, group=group)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
