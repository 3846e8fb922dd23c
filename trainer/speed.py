"""The measured speed of this host's GPUs: `python -m trainer.speed` prints it as JSON, by the GPU's name.

It is that of a large matrix product, in bf16 where the GPU computes in it, else in fp16, else in fp32: a guide to what
training may reach. With `cpu` it is the processor's, in fp32.
"""

import json
import sys
import time

import torch

SIZES = {"cuda": 8192, "cpu": 1024}
"""Rows and columns of the matrices: large enough to keep the device busy."""
AT_ONCE = 8
"""Products between two looks at the clock."""
SECONDS = 1.0
FIRST_TENSOR_CORES = 7
"""The major compute capability from which an NVIDIA GPU has fp16 tensor cores."""


def precision(device: torch.device) -> str:
    """The precision in which a device trains best."""
    if device.type == "cpu":
        return "fp32"
    with torch.cuda.device(device):
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16"
    return "fp16" if torch.cuda.get_device_capability(device)[0] >= FIRST_TENSOR_CORES else "fp32"


def speed(device: torch.device, seconds: float = SECONDS) -> dict[str, str | float]:
    """The `precision` and the `tflops`, 10¹² floating-point operations a second, of products of square matrices.

    A product of n × n matrices takes 2 n³ operations.
    """
    chosen = precision(device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[chosen]
    size = SIZES[device.type]
    left = torch.randn(size, size, device=device, dtype=dtype)
    result = torch.empty_like(left)
    _multiply(left, result)
    count, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds or not count:
        _multiply(left, result)
        count += AT_ONCE
    return {"precision": chosen, "tflops": 2 * size**3 * count / passed / 1e12}


def _multiply(left: torch.Tensor, result: torch.Tensor) -> None:
    """Some products, to their end."""
    for _ in range(AT_ONCE):
        torch.mm(left, left, out=result)
    if left.is_cuda:
        torch.cuda.synchronize(left.device)


def main() -> None:
    """Print the speed of one GPU of each name, or of the processor."""
    found: dict[str, dict[str, str | float]] = {}
    if "cpu" in sys.argv[1:]:
        found["cpu"] = speed(torch.device("cpu"))
    for number in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(number)
        if name not in found:
            found[name] = speed(torch.device("cuda", number))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
