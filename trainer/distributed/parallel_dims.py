"""The ranks as one of them sees them: its place in the layout, and joining them.

Ranks are counted with tensor parallelism innermost, then data, then pipeline: neighbours share matrices.
"""

import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from trainer import hardware
from trainer.checkpoint.folders import code_version
from trainer.config import ConfigError, ParallelConfig
from trainer.distributed.ranks import Assignment

TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Place:
    """Where a rank stands: its number, its device, and the layout's sizes."""

    rank: int
    ranks: int
    device: torch.device
    pipeline: int = 1
    tensor: int = 1
    tensor_group: dist.ProcessGroup | None = field(default=None, compare=False)
    data_group: dist.ProcessGroup | None = field(default=None, compare=False)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def data(self) -> int:
        """Data-parallel ranks."""
        return self.ranks // (self.pipeline * self.tensor)

    @property
    def tensor_rank(self) -> int:
        return self.rank % self.tensor

    @property
    def data_rank(self) -> int:
        return self.rank // self.tensor % self.data

    @property
    def pipeline_rank(self) -> int:
        return self.rank // (self.tensor * self.data)

    def sum(self, *values: float) -> list[float]:
        """The sums over all ranks."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.ranks > 1:
            dist.all_reduce(total)
        return total.tolist()

    def wait(self) -> None:
        """Until every rank is here."""
        if self.ranks > 1:
            dist.barrier()


def join(assignment: Assignment, parallel: ParallelConfig) -> Place:
    """Meet the other ranks, over NCCL where there are GPUs and gloo elsewhere. One rank alone meets nobody.

    Raises ConfigError if there are fewer GPUs than ranks here.
    """
    gpus = torch.cuda.device_count()
    if 0 < gpus < assignment.local_ranks:
        raise ConfigError(f"{assignment.local_ranks} GPUs were asked for and this machine has {gpus}; lower --gpus.")
    device = hardware.device(assignment.local_rank)
    if gpus:
        torch.cuda.set_device(device)
    place = Place(assignment.rank, assignment.ranks, device, parallel.pipeline, parallel.tensor)
    if place.ranks == 1:
        return place
    # The parent holds the port already, so nobody else can take it between its choice and its use.
    store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        assignment.ranks,
        is_master=assignment.rank == 0,
        timeout=TIMEOUT,
        master_listen_fd=assignment.listener,
    )
    backend = "nccl" if gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=assignment.rank, world_size=assignment.ranks, timeout=TIMEOUT)
    _demand_one_start(assignment)
    return with_groups(place)


def _demand_one_start(assignment: Assignment) -> None:
    """Raise ConfigError on every rank unless all were started alike: hosts may have been given other files."""
    mine = {
        "configuration": assignment.config.model_dump(mode="json"),
        "checkpoint to go on from": (assignment.start.step, assignment.start.parent),
        "version of the trainer": code_version(),
    }
    everyone: list[dict[str, Any]] = [{} for _ in range(assignment.ranks)]
    dist.all_gather_object(everyone, mine)
    for rank, theirs in enumerate(everyone):
        for what, ours in everyone[0].items():
            if theirs[what] != ours:
                raise ConfigError(f"The {what} of rank {rank} is not that of rank 0; start all hosts alike.")


def with_groups(place: Place) -> Place:
    """The place with the groups of the ranks that share its matrices and of those that hold the same part of them."""
    numbers = torch.arange(place.ranks).view(place.pipeline, place.data, place.tensor)
    tensor, _ = dist.new_subgroups_by_enumeration(numbers.flatten(0, 1).tolist())  # type: ignore[no-untyped-call]
    data, _ = dist.new_subgroups_by_enumeration(numbers.transpose(1, 2).flatten(0, 1).tolist())  # type: ignore[no-untyped-call]
    return Place(place.rank, place.ranks, place.device, place.pipeline, place.tensor, tensor, data)
