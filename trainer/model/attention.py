"""Causal attention for bf16 and fp16 on a CPU: a few matrix products over all heads at once for each block of queries.

PyTorch's own CPU kernel multiplies head by head and is two to three times slower. N batch × heads, L sequence, K head
size.
"""

from typing import Any

import torch
from torch import Tensor

BLOCK = 128
"""Queries computed at once; the keys after the last of them are left out."""


class BlockedAttention(torch.autograd.Function):
    """softmax(scale · q kᵀ) v [N, L, K] under a causal mask, for q, k, v [N, L, K] (Vaswani et al. 2017, equation 1).

    The probabilities are kept for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, q_NLK: Tensor, k_NLK: Tensor, v_NLK: Tensor, scale: float) -> Tensor:
        """Values [N, L, K] weighted by attention, from queries, keys and values [N, L, K]."""
        y_NLK = torch.empty_like(q_NLK)
        future = torch.full((BLOCK, BLOCK), -torch.inf, dtype=q_NLK.dtype).triu_(1)
        kept = []
        for start, q, y in zip(_starts(q_NLK), torch.split(q_NLK, BLOCK, 1), torch.split(y_NLK, BLOCK, 1), strict=True):
            queries, keys = q.shape[1], start + q.shape[1]
            logits = q.new_empty(len(q), queries, keys)
            torch.baddbmm(logits, q, k_NLK[:, :keys].mT, beta=0, alpha=scale, out=logits)
            logits[:, :, start:] += future[:queries, :queries]
            # PyTorch's softmax sums in fp32, whatever the precision of its input.
            probabilities = torch.softmax(logits, -1, out=logits)
            torch.bmm(probabilities, v_NLK[:, :keys], out=y)
            kept.append(probabilities)
        ctx.save_for_backward(q_NLK, k_NLK, v_NLK, *kept)
        ctx.scale = scale
        return y_NLK

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients [N, L, K] of queries, keys and values from that of the output."""
        q_NLK, k_NLK, v_NLK, *kept = ctx.saved_tensors
        dq_NLK = torch.empty_like(q_NLK)
        # The gradients of keys and values are sums over the blocks, kept in fp32.
        dk_NLK = torch.zeros_like(k_NLK, dtype=torch.float32)
        dv_NLK = torch.zeros_like(v_NLK, dtype=torch.float32)
        blocks = (torch.split(part, BLOCK, 1) for part in (q_NLK, dq_NLK, gradients[0]))
        for probabilities, q, dq, dy in zip(kept, *blocks, strict=True):
            keys = probabilities.shape[2]
            dv_NLK[:, :keys] += torch.bmm(probabilities.mT, dy)
            dprobabilities = torch.bmm(dy, v_NLK[:, :keys].mT)
            dlogits = torch._softmax_backward_data(dprobabilities, probabilities, -1, probabilities.dtype)
            torch.baddbmm(dq, dlogits, k_NLK[:, :keys], beta=0, alpha=ctx.scale, out=dq)
            dk_NLK[:, :keys] += torch.bmm(dlogits.mT, q)
        return dq_NLK, dk_NLK.mul_(ctx.scale).to(k_NLK.dtype), dv_NLK.to(v_NLK.dtype), None


def _starts(x_NLK: Tensor) -> range:
    return range(0, x_NLK.shape[1], BLOCK)
