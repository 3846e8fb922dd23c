"""Cross-entropy from hidden states, a chunk of tokens at a time, so that all logits are never in memory at once.

N tokens, D hidden size, V this rank's part of the vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trainer.model.tensor_parallel import ALONE, TensorParallel

CHUNK = 512
"""Tokens whose logits are in memory at once in training."""
EVALUATION_CHUNK = 128
"""Tokens whose logits are in memory at once in evaluation, where they are fp32."""
ROWS = 8
"""Tokens whose logits stay in a CPU's cache while they become probabilities."""

Kernel = Callable[[Tensor, Tensor, float], Tensor]


class FusedLoss(torch.autograd.Function):
    """The summed cross-entropy in nats. The forward pass computes the gradients too, while it has the logits: `scale`
    times what they are, so that in fp16 the small ones are not lost. The backward pass divides them by it."""

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        tp: TensorParallel,
        scale: float,
    ) -> Tensor:
        """The summed cross-entropy in nats, a scalar, of targets [N] from x [N, D] and the head's weight [V, D]."""
        dweight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        dbias_V = None if bias_V is None else torch.zeros_like(bias_V, dtype=torch.float32)
        total, dx_ND = HeadLoss(weight_VD, bias_V, tp)(x_ND, targets_N, scale, dweight_VD, dbias_V)
        dbias_V = None if dbias_V is None else dbias_V.to(weight_VD.dtype)
        ctx.save_for_backward(dx_ND, dweight_VD.to(weight_VD.dtype), dbias_V)
        ctx.scale = scale
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x [N, D], weight [V, D] and bias [V], from that of the sum."""
        scale = gradients[0] / ctx.scale
        dx_ND, dweight_VD, dbias_V = ctx.saved_tensors
        return dx_ND * scale, dweight_VD * scale, None if dbias_V is None else dbias_V * scale, None, None, None


class HeadLoss:
    """The loss of the head and its gradients, in buffers that are kept from call to call.

    `kernel` is a compiled `to_probability_`, None where nothing is compiled.
    """

    def __init__(
        self, weight_VD: Tensor, bias_V: Tensor | None, tp: TensorParallel = ALONE, kernel: Kernel | None = None
    ) -> None:
        self.weight_VD, self.bias_V, self.tp = weight_VD, bias_V, tp
        self.kernel = kernel or (by_rows if weight_VD.device.type == "cpu" else to_probability_)
        self._kept: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(
        self,
        x_ND: Tensor,
        targets_N: Tensor,
        scale: float,
        dweight_VD: Tensor,
        dbias_V: Tensor | None,
        add: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """The summed cross-entropy of x [N, D] in nats and fp32, and `scale` × its gradient by x [N, D].

        `scale` × the gradients by weight and bias overwrite `dweight_VD` and `dbias_V`, or with `add` are added to
        them. Both may be fp32 where the weight is not.
        """
        total = torch.zeros((), dtype=torch.float32, device=x_ND.device)
        dx_ND = torch.empty_like(x_ND)
        for x, targets, dx in zip(*(torch.split(part, CHUNK) for part in (x_ND, targets_N, dx_ND)), strict=True):
            logits_NV = self._buffer("logits", len(x), len(self.weight_VD))
            if self.bias_V is None:
                torch.mm(x, self.weight_VD.T, out=logits_NV)
            else:
                torch.addmm(self.bias_V, x, self.weight_VD.T, out=logits_NV)
            total += self._to_gradient_(logits_NV, targets, scale)
            torch.mm(logits_NV, self.weight_VD, out=dx)
            self._add_product(dweight_VD, logits_NV.T, x, add)
            if dbias_V is not None:
                summed_V = logits_NV.sum(0, dtype=dbias_V.dtype)
                dbias_V.copy_(dbias_V + summed_V if add else summed_V)
            add = True
        return total, dx_ND

    def _add_product(self, dweight_VD: Tensor, dlogits_VN: Tensor, x_ND: Tensor, add: bool) -> None:
        if dweight_VD.dtype == x_ND.dtype:
            torch.addmm(dweight_VD, dlogits_VN, x_ND, beta=int(add), out=dweight_VD)
        else:
            product_VD = torch.mm(dlogits_VN, x_ND, out=self._buffer("product", *dweight_VD.shape))
            dweight_VD.add_(product_VD) if add else dweight_VD.copy_(product_VD)

    def _buffer(self, name: str, rows: int, columns: int) -> Tensor:
        kept = self._kept.get(name)
        if kept is None or len(kept) < rows:
            kept = self._kept[name] = self.weight_VD.new_empty(rows, columns)
        return kept[:rows]

    def _to_gradient_(self, logits_NV: Tensor, targets_N: Tensor, scale: float) -> Tensor:
        """Overwrite logits [N, V] with `scale` × the gradient of the summed cross-entropy, softmax − one-hot. Returns
        the sum in nats and fp32."""
        here_N, index_N = _local_index(targets_N, logits_NV.shape[1], self.tp)
        if self.tp.size == 1:
            total = self.kernel(logits_NV, targets_N, scale)
        else:
            nll_N, probability_NV = _nll(logits_NV, targets_N, self.tp)
            logits_NV.copy_(probability_NV.mul_(scale))
            total = nll_N.sum()
        # On a CPU, scatter_add_ would take longer than the rest of the loss.
        logits_NV[torch.arange(len(index_N), device=index_N.device), index_N] -= (scale * here_N).to(logits_NV.dtype)
        return total


def to_probability_(logits_NV: Tensor, targets_N: Tensor, scale: float) -> Tensor:
    """Overwrite logits [N, V] with `scale` × their softmax. Returns the summed cross-entropy in nats and fp32."""
    exact_NV = logits_NV.float()
    log_sum_N1 = exact_NV.logsumexp(-1, keepdim=True)
    nll_N1 = log_sum_N1 - exact_NV.gather(-1, targets_N[:, None])
    logits_NV.copy_((exact_NV - log_sum_N1).exp() * scale)
    return nll_N1.sum()


def by_rows(logits_NV: Tensor, targets_N: Tensor, scale: float) -> Tensor:
    """`to_probability_` for a CPU without a compiler: PyTorch's softmax on a few rows at a time, which stay in the
    cache."""
    total = torch.zeros((), dtype=torch.float32)
    for logits, targets in zip(torch.split(logits_NV, ROWS), torch.split(targets_N, ROWS), strict=True):
        exact = logits.float()
        target = exact.gather(-1, targets[:, None])
        largest = exact.amax(-1, keepdim=True)
        probability = torch.softmax(exact, -1)
        # The logarithm of the largest probability is exact, for that is at least 1 / V.
        log_sum = largest - probability.amax(-1, keepdim=True).log()
        total += (log_sum - target).sum()
        logits.copy_(probability.mul_(scale))
    return total


@torch.no_grad()
def nll(x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, tp: TensorParallel) -> Tensor:
    """The cross-entropy [N] of each token in nats and fp32, without a gradient."""
    nll_N = torch.empty(len(targets_N), dtype=torch.float32, device=x_ND.device)
    # One buffer for all chunks: buffers of their own would fragment the allocator's memory.
    kept_NV = x_ND.new_empty(min(EVALUATION_CHUNK, len(x_ND)), len(weight_VD))
    parts = (torch.split(part, EVALUATION_CHUNK) for part in (x_ND, targets_N, nll_N))
    for x, targets, found in zip(*parts, strict=True):
        logits_NV = kept_NV[: len(x)]
        torch.mm(x, weight_VD.T, out=logits_NV)
        if bias_V is not None:
            logits_NV += bias_V
        found.copy_(_nll(logits_NV, targets, tp)[0])
    return nll_N


def _nll(logits_NV: Tensor, targets_N: Tensor, tp: TensorParallel) -> tuple[Tensor, Tensor]:
    """The cross-entropy [N] in nats, and the probabilities [N, V] of this rank's part of the vocabulary, both fp32."""
    logits_NV = logits_NV.float()
    logits_NV -= tp.max(logits_NV.amax(-1))[:, None]
    here_N, index_N = _local_index(targets_N, logits_NV.shape[1], tp)
    target_N = tp.sum(torch.where(here_N, logits_NV.gather(-1, index_N[:, None])[:, 0], 0.0))
    probability_NV = logits_NV.exp_()
    sum_N = tp.sum(probability_NV.sum(-1))
    return sum_N.log() - target_N, probability_NV.div_(sum_N[:, None])


def _local_index(targets_N: Tensor, rows: int, tp: TensorParallel) -> tuple[Tensor, Tensor]:
    """Whether each target [N] is in this rank's part of the vocabulary, and its index there [N], 0 if it is not."""
    index_N = targets_N - tp.rank * rows
    here_N = (index_N >= 0) & (index_N < rows)
    return here_N, torch.where(here_N, index_N, 0)
