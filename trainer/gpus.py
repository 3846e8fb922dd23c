"""What is known of GPUs by their names: memory, and peak FLOP/s in each precision. Imports no torch."""

from typing import NamedTuple

from trainer.config import Precision


class Gpu(NamedTuple):
    """A type of GPU: the most `memory` that it is sold with, in GiB, and its dense peak TFLOP/s in `fp16`, `bf16` (None
    where it computes none) and `fp32`, which is TF32 on NVIDIA's GPUs that have it."""

    memory: int
    fp16: float
    bf16: float | None
    fp32: float


# From the vendors' datasheets. AMD's MI250 and MI250X are two devices each, of which one (a GCD) is here.
GPUS = {
    "B300": Gpu(288, 2250, 2250, 1100),
    "B200": Gpu(192, 2250, 2250, 1100),
    "H200": Gpu(141, 989, 989, 495),
    "H100": Gpu(94, 989, 989, 495),
    "A100": Gpu(80, 312, 312, 156),
    "L40S": Gpu(48, 362, 362, 183),
    "L40": Gpu(48, 181, 181, 90.5),
    "A6000": Gpu(48, 155, 155, 77),
    "5090": Gpu(32, 209.5, 209.5, 104.8),
    "4090": Gpu(24, 165, 165, 83),
    "3090": Gpu(24, 71, 71, 35.6),
    "MI355X": Gpu(288, 2516, 2516, 157.3),
    "MI325X": Gpu(256, 1307, 1307, 163.4),
    "MI300X": Gpu(192, 1307, 1307, 163.4),
    "MI300A": Gpu(128, 980.6, 980.6, 122.6),
    "MI250X": Gpu(64, 191.5, 191.5, 47.9),
    "MI250": Gpu(64, 181, 181, 45.3),
    "MI210": Gpu(64, 181, 181, 45.3),
    "MI100": Gpu(32, 184.6, 92.3, 46.1),
    "V100": Gpu(32, 125, None, 16),
    "P100": Gpu(16, 21.2, None, 10.6),
    "T4": Gpu(16, 65, None, 8.1),
}
"""Types of GPUs by a part of their names; the longer of two parts comes first."""
MOST_MEMORY = max(gpu.memory for gpu in GPUS.values())


def named(name: str) -> Gpu | None:
    """The type of a GPU by its name, such as “NVIDIA H200” or “AMD Instinct MI300X”; None where it is not known."""
    upper = name.upper()
    return next((gpu for part, gpu in GPUS.items() if part in upper), None)


def why_not(precision: Precision, gpu_type: str) -> str | None:
    """A sentence where a type of GPU does not compute in a precision."""
    gpu = named(gpu_type)
    if precision != "bf16" or gpu is None or gpu.bf16 is not None:
        return None
    return f"{gpu_type} GPUs compute no bf16: use fp16 (training.precision, or the override precision=fp16), or fp32."
