"""The device that a rank computes on: its peak FLOP/s, its memory, and the memory in use."""

import os
import resource
import time
from collections.abc import Mapping

import torch

from trainer import gpus
from trainer.config import ConfigError, Precision, TrainingConfig
from trainer.memory import host_bytes_here

DTYPES: Mapping[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What the model computes with, by the configured precision."""
_ARCHITECTURES = {"gfx908": "MI100", "gfx90a": "MI250X", "gfx942": "MI300X", "gfx950": "MI355X"}
"""AMD's GPUs by their architectures, as some versions of ROCm have no name for them."""
_LONG = 0.02
"""Seconds of a matrix product after which a larger one tells no more of a device."""


def device(local_rank: int) -> torch.device:
    """A rank's GPU, or the CPU where there is none. To PyTorch a GPU of AMD's is a CUDA device, too."""
    return torch.device("cuda", local_rank) if torch.cuda.device_count() else torch.device("cpu")


def peak_flops(training: TrainingConfig, device: torch.device) -> float:
    """The peak FLOP/s of one device at the run's precision: as configured, from the datasheet, or as measured now."""
    if training.peak_tflops:
        return training.peak_tflops * 1e12
    gpu = gpus.named(name(device))
    tflops = getattr(gpu, training.precision) if gpu else None
    return float(tflops) * 1e12 if tflops else _measured(DTYPES[training.precision], device)


def name(device: torch.device) -> str:
    """What the driver calls a device, with the model that its architecture tells where the driver names none."""
    if device.type != "cuda":
        return device.type
    about = torch.cuda.get_device_properties(device)
    architecture = str(getattr(about, "gcnArchName", "")).partition(":")[0]
    if gpus.named(about.name) is None and architecture in _ARCHITECTURES:
        return f"{about.name} {_ARCHITECTURES[architecture]}".strip()
    return str(about.name)


def check_precision(training: TrainingConfig, device: torch.device) -> None:
    """Raise ConfigError where a GPU does not compute in the run's precision."""
    if device.type == "cuda" and training.precision == "bf16":
        refusal = gpus.why_not("bf16", name(device))
        if refusal is None and not torch.cuda.is_bf16_supported(including_emulation=False):
            refusal = f"{name(device)} GPUs compute no bf16: use training.precision fp16, or fp32."
        if refusal:
            raise ConfigError(refusal)


def _measured(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s in the fastest of a few matrix products, on the device as shared as it is.

    They grow while they are fast: a CPU without instructions for 16 bits takes seconds for one of 1024 rows.
    """
    fastest = 0.0
    for size in (128, 256, 512, 1024):
        square = torch.ones(size, size, dtype=dtype, device=device)
        best = float("inf")
        for _ in range(4):
            began = time.perf_counter()
            (square @ square)[0, 0].item()
            best = min(best, time.perf_counter() - began)
        fastest = max(fastest, 2 * size**3 / best)
        if best > _LONG:
            break
    return fastest


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has had allocated on its GPU so far, on a CPU its peak resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory(device: torch.device, local_ranks: int) -> int:
    """Bytes that a rank may use: its GPU's memory, or its share of the host's memory within the process's limits."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    bounds = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    own = [bound for bound in bounds if bound != resource.RLIM_INFINITY]
    return min([*own, host_bytes_here() // local_ranks])


def gpu_number(local_rank: int) -> str:
    """The number of a rank's GPU on its host; that among the GPUs that the process sees, where they have names."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    named = visible[local_rank].strip() if local_rank < len(visible) else ""
    return named if named.isdecimal() else str(local_rank)


def held_by_others(device: torch.device) -> int:
    """Bytes of a GPU that this process has not allocated and that are not free: other programs', and its own context's;
    0 where the driver does not say."""
    try:
        free, total = torch.cuda.mem_get_info(device)
        return max(0, total - free - torch.cuda.memory_reserved(device))
    except RuntimeError:
        return 0
