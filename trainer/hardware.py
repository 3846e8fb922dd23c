"""The device that a rank computes on: its peak FLOP/s, its memory, and the memory in use."""

import resource
import time
from pathlib import Path

import psutil
import torch

from trainer.config import TrainingConfig

# Dense bf16 TFLOP/s (fp16 on the V100) of the vendors' datasheets, by a part of the device's name.
_BF16 = {"B200": 2250, "H200": 989, "H100": 989, "A100": 312, "L40S": 362, "A6000": 155, "4090": 165, "V100": 125}
# Dense TF32 TFLOP/s, or fp32 where a device has no TF32.
_FP32 = {"B200": 1100, "H200": 495, "H100": 495, "A100": 156, "L40S": 183, "A6000": 77, "4090": 83, "V100": 16}


def device(local_rank: int) -> torch.device:
    """A rank's GPU, or the CPU where there is none."""
    return torch.device("cuda", local_rank) if torch.cuda.device_count() else torch.device("cpu")


def peak_flops(training: TrainingConfig, device: torch.device) -> float:
    """The peak FLOP/s of one device at the run's precision: as configured, from the datasheet, or as measured now."""
    if training.peak_tflops:
        return training.peak_tflops * 1e12
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, tflops in (_BF16 if training.precision == "bf16" else _FP32).items():
            if part in name:
                return tflops * 1e12
    return _measured(torch.bfloat16 if training.precision == "bf16" else torch.float32, device)


def _measured(dtype: torch.dtype, device: torch.device, size: int = 1024) -> float:
    """FLOP/s in the fastest of a few matrix products, on the device as shared as it is."""
    square = torch.ones(size, size, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        (square @ square)[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has had allocated on its GPU so far, on a CPU its peak resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory(device: torch.device, local_ranks: int) -> int:
    """Bytes that a rank may use: its GPU's memory, or its share of the host's memory within the process's limits."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limits = [psutil.virtual_memory().total]
    group = Path("/sys/fs/cgroup/memory.max")
    if group.exists() and (text := group.read_text().strip()).isdecimal():
        limits.append(int(text))
    bounds = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    own = [bound for bound in bounds if bound != resource.RLIM_INFINITY]
    return min([*own, min(limits) // local_ranks])
