"""Which parts of the model PyTorch's compiler takes over, and whether it can compile on this machine."""

import logging
import math
from functools import partial

import torch
from torch import Tensor

from trainer.model.transformer import MLP, Attention, Transformer

GELU_TANH = 2 * math.sqrt(2 / math.pi)


def compile_blocks(model: Transformer, device: torch.device) -> None:
    """Compile the blocks, which share one program, in place.

    On a CPU only the element-wise parts between matrix products are compiled: the rest runs no faster there, and the
    compiler's own sums over biases fail to build (torch 2.13).
    """
    if device.type == "cuda":
        for block in model.blocks:
            block.compile(dynamic=False)
        return
    heads = torch.compile(Attention.split, dynamic=False)
    gelu = torch.compile(gelu_tanh, dynamic=False)
    for module in model.modules():
        if isinstance(module, Attention):
            module.heads = partial(heads, module)
        elif isinstance(module, MLP) and module.tanh:
            module.gelu = gelu


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU's tanh form (Hendrycks & Gimpel 2016), of any shape, computed in fp32.

    Through the sigmoid, which costs half as much as the tanh: tanh z = 2σ(2z) - 1.
    """
    z = x.float()
    return (z * torch.sigmoid(GELU_TANH * (z + 0.044715 * z * z * z))).to(x.dtype)


def can_compile(device: torch.device) -> bool:
    """Whether PyTorch can compile for the device; logs a warning where a CPU has no C++ compiler."""
    if device.type == "cuda":
        return True
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        logging.getLogger(__name__).warning(
            "training.compile needs a C++ compiler and there is none; training goes on without it, more slowly. "
            "Install g++ or set training.compile false."
        )
        return False
    return True
