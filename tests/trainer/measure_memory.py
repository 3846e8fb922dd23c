"""The peak memory of ranks on a CPU, predicted and measured: `python -m tests.trainer.measure_memory CONFIG --gpus 2`.

Each rank is a process of its own that trains a few steps of random tokens through the real engine and evaluates some.
Its peak is that of its resident memory above what it was once everything was imported.
"""

import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed as dist
import typer

from tests.trainer.ranks_parallel import CPU, Ranks, drawn, rows_of
from trainer.check import check
from trainer.config import TrainConfig, load
from trainer.distributed.parallel_dims import ParallelDims, with_groups
from trainer.engine import open_engine

STEPS = 2


def measure(config: TrainConfig, gpus: int = 1, times: int = 3, variables: Mapping[str, str] | None = None) -> int:
    """Bytes at the peak of the rank that needs most; the median of several starts, with `variables` of oneDNN set."""
    peaks = []
    for _ in range(times):
        with Ranks(gpus) as ranks:
            peaks.append(max(ranks.call(_peak, config, dict(variables or {}))))
    return int(statistics.median(peaks))


def _peak(config: TrainConfig, variables: dict[str, str]) -> int:
    os.environ.update(variables)  # oneDNN reads them at its first product
    before = _resident("VmRSS")
    dims = ParallelDims(dist.get_rank(), dist.get_world_size(), CPU, config.parallel.pipeline, config.parallel.tensor)
    if dims.world_size > 1:
        dims = with_groups(dims)

    engine = open_engine(config, dims)
    engine.load(drawn(config), 0)
    for step in range(STEPS):
        mine = rows_of(config, step).chunk(dims.data)[dims.data_rank]
        engine.step(torch.split(mine, config.training.micro_batch), config.optimizer.learning_rate)
    engine.nll(mine[: config.training.micro_batch])
    dims.barrier()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    """Bytes that the kernel counts for this process: VmRSS now, VmHWM at their most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def main(config: Annotated[Path, typer.Argument(metavar="CONFIG.yml")], gpus: int = 1, times: int = 3) -> None:
    settings = load(config)
    predicted, measured = check(settings, gpus).memory_per_gpu, measure(settings, gpus, times)
    print(f"predicted {predicted / 2**20:,.0f} MiB, measured {measured / 2**20:,.0f} MiB")


if __name__ == "__main__":
    typer.run(main)
