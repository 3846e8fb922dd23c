"""The parallel layout as one rank sees it, and the process groups of the ranks.

Ranks are numbered with tensor parallelism innermost, then data, then pipeline: neighbours share matrices, which takes
the most communication.
"""

import os
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trainer import hardware
from trainer.code_version import code_version
from trainer.config import ConfigError, ParallelConfig
from trainer.data.prepare import content_of, manifest_of
from trainer.distributed.ranks import Assignment

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others in a collective; preparing the data on the main rank counts."""


@dataclass(frozen=True)
class ParallelDims:
    """This rank's number and device, the sizes of the layout, and this rank's coordinates in it.

    `pipeline` counts stages and `tensor` the ranks that share each matrix. `tensor_group` holds the ranks that share
    this rank's matrices, `data_group` those that hold the same part of the model; both are None on one rank.
    """

    rank: int
    world_size: int
    device: torch.device
    pipeline: int = 1
    tensor: int = 1
    tensor_group: dist.ProcessGroup | None = field(default=None, compare=False)
    data_group: dist.ProcessGroup | None = field(default=None, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone writes files and prints."""
        return self.rank == 0

    @property
    def data(self) -> int:
        """The number of data-parallel ranks."""
        return self.world_size // (self.pipeline * self.tensor)

    @property
    def tensor_rank(self) -> int:
        return self.rank % self.tensor

    @property
    def data_rank(self) -> int:
        return self.rank // self.tensor % self.data

    @property
    def pipeline_rank(self) -> int:
        return self.rank // (self.tensor * self.data)

    def all_reduce_sum(self, *values: float) -> list[float]:
        """The sum of each value over all ranks, in fp64. All ranks call it together."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.world_size > 1:
            dist.all_reduce(total)
        return total.tolist()

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        if self.world_size > 1:
            dist.barrier()


def init_distributed(assignment: Assignment, parallel: ParallelConfig) -> ParallelDims:
    """Initialise the process groups, over NCCL where there are GPUs and gloo elsewhere; one rank alone needs none.

    Raises ConfigError if this machine has fewer GPUs than ranks, or if the ranks were not started alike.
    """
    gpus = torch.cuda.device_count()
    if 0 < gpus < assignment.local_world_size:
        raise ConfigError(
            f"{assignment.local_world_size} GPUs were asked for and this machine has {gpus}; lower --gpus."
        )
    device = hardware.device(assignment.local_rank)
    if gpus:
        torch.cuda.set_device(device)
    dims = ParallelDims(assignment.rank, assignment.world_size, device, parallel.pipeline, parallel.tensor)
    if dims.world_size == 1:
        return dims
    # The parent has bound the port already, so no other process can take it before the store listens.
    store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        assignment.world_size,
        is_master=assignment.rank == 0,
        timeout=TIMEOUT,
        master_listen_fd=assignment.listener,
    )
    backend = "nccl" if gpus else "gloo"
    dist.init_process_group(
        backend, store=store, rank=assignment.rank, world_size=assignment.world_size, timeout=TIMEOUT
    )
    _require_same_start(assignment)
    return with_groups(dims)


def _require_same_start(assignment: Assignment) -> None:
    """Raise ConfigError on every rank unless all have the same configuration, data, checkpoint and code: each host was
    started by hand. Prepared data may lie at another place on each host, and are the same by their content."""
    mine = {
        "configuration": assignment.config.model_dump(mode="json", exclude={"data": {"prepared"}}),
        "prepared corpus": _prepared(assignment.config.data.prepared),
        "checkpoint to go on from": (assignment.start.step, assignment.start.parent),
        "version of the trainer": code_version(),
    }
    everyone: list[dict[str, Any]] = [{} for _ in range(assignment.world_size)]
    dist.all_gather_object(everyone, mine)
    for rank, theirs in enumerate(everyone):
        for what, ours in everyone[0].items():
            if theirs[what] != ours:
                raise ConfigError(f"The {what} of rank {rank} is not that of rank 0; start all hosts alike.")


def _prepared(folder: str | None) -> object:
    """What the folder of prepared data holds, by its hashes; None where there is none."""
    try:
        return None if folder is None else content_of(manifest_of(Path(folder)))
    except ConfigError:
        return None


def with_groups(dims: ParallelDims) -> ParallelDims:
    """The layout with its process groups created. All ranks call it together."""
    ranks = torch.arange(dims.world_size).view(dims.pipeline, dims.data, dims.tensor)
    tensor, _ = dist.new_subgroups_by_enumeration(ranks.flatten(0, 1).tolist())  # type: ignore[no-untyped-call]
    data, _ = dist.new_subgroups_by_enumeration(ranks.transpose(1, 2).flatten(0, 1).tolist())  # type: ignore[no-untyped-call]
    return ParallelDims(dims.rank, dims.world_size, dims.device, dims.pipeline, dims.tensor, tensor, data)
