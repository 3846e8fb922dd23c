"""The attention patterns of a checkpoint, computed from what its own attention modules are given."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trainer.evaluation.open_checkpoint import OpenCheckpoint
from trainer.model.transformer import Attention


def each_pattern(opened: OpenCheckpoint, ids: Sequence[Sequence[int]], take: Callable[[int, Tensor], None]) -> None:
    """Give `take` each layer, from 0, and the pattern [B, H, L, L] of its heads on rows of token ids; one at a time is
    in memory."""

    def look(layer: int, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(module, Attention)
        take(layer, pattern(module, inputs[0]))

    hooks = [
        block.get_submodule("attention").register_forward_pre_hook(partial(look, layer))
        for layer, block in enumerate(opened.model.blocks)
    ]
    try:
        opened.hidden(ids)
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def pattern(attention: Attention, x_BLD: Tensor) -> Tensor:
    """The shares [B, H, L, L] of each key in what a query reads."""
    q_BHLK, k_BGLK, _ = attention.heads(attention.qkv(x_BLD))
    k_BHLK = k_BGLK.repeat_interleave(attention.queries, dim=1)
    logits_BHLL = attention.scale * (q_BHLK @ k_BHLK.mT)
    bias_HLL = attention.bias(x_BLD.shape[1], x_BLD)
    if bias_HLL is None:
        bias_HLL = torch.full(logits_BHLL.shape[-2:], -torch.inf, device=x_BLD.device).triu_(1)
    return (logits_BHLL + bias_HLL).softmax(dim=-1)
