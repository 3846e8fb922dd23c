"""Whether PyTorch's compiler has what it needs here."""

import logging

import torch


def can_compile(device: torch.device) -> bool:
    """On a GPU, Triton; on a CPU, a C++ compiler. Says so once where it is missing."""
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
