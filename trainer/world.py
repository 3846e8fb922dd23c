"""The ranks as one of them sees them: its place among them, and joining them."""

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from trainer.config import ConfigError
from trainer.ranks import Assignment

TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Place:
    """Where a rank stands among the ranks."""

    rank: int
    ranks: int
    device: torch.device

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """The sums over the ranks."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()


def join(assignment: Assignment) -> Place:
    """Meet the other ranks, over NCCL where there are GPUs and gloo elsewhere.

    Raises ConfigError if there are fewer GPUs than ranks.
    """
    gpus = torch.cuda.device_count()
    if 0 < gpus < assignment.ranks:
        raise ConfigError(f"{assignment.ranks} GPUs were asked for and this machine has {gpus}; lower --gpus.")
    # The parent holds the port already, so nobody else can take it between its choice and its use.
    store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1",
        assignment.port,
        assignment.ranks,
        is_master=assignment.rank == 0,
        timeout=TIMEOUT,
        master_listen_fd=assignment.listener,
    )
    device = torch.device("cuda", assignment.rank) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    backend = "nccl" if gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=assignment.rank, world_size=assignment.ranks, timeout=TIMEOUT)
    return Place(assignment.rank, assignment.ranks, device)
