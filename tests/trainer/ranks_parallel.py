"""Ranks as processes of their own that do what a test asks, one call after another, each on all of them together."""

import gc
import multiprocessing as mp
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self
from unittest import mock

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed import distributed_c10d

from tests.forked import TRAINERS, Server
from tests.patience import PATIENCE
from trainer.config import TrainConfig
from trainer.distributed.parallel_dims import ParallelDims, with_groups
from trainer.engine.base import NonFiniteError, ReadTensor, TensorKind
from trainer.engine.deepspeed_setup import ModelParallelUnit, import_deepspeed
from trainer.engine.distributed import DistributedEngine
from trainer.model.initialise import draw
from trainer.model.transformer import shapes

CPU = torch.device("cpu")
TIMEOUT = 4 * PATIENCE  # a large shape of `make chaos` trains for long where a CPU has no instructions for bf16
KINDS: tuple[TensorKind, ...] = ("weight", "exp_avg", "exp_avg_sq")


class Ranks:
    """`count` ranks that have met over gloo on the loopback, one thread each."""

    def __init__(self, count: int, server: Server = TRAINERS) -> None:
        os.environ["DS_ACCELERATOR"] = "cpu"
        pairs = [mp.Pipe() for _ in range(count)]
        self._pipes = [ours for ours, _ in pairs]
        self._processes = [server.start(_serve, rank, count, theirs) for rank, (_, theirs) in enumerate(pairs)]
        port = self._answer(0)
        for pipe in self._pipes[1:]:
            pipe.send(port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def call(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `function(*arguments)` returned on each rank. No call can follow one in which a rank raised."""
        for pipe in self._pipes:
            pipe.send((function, arguments))
        return [self._answer(rank) for rank in range(len(self._pipes))]

    def _answer(self, rank: int) -> Any:
        if not self._pipes[rank].poll(TIMEOUT):
            raise TimeoutError(f"Rank {rank} did not answer.")
        value, failure = self._pipes[rank].recv()
        if failure:
            self.__exit__()
            raise RuntimeError(f"Rank {rank} failed:\n{failure}")
        return value


def _serve(rank: int, count: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    port = 0 if rank == 0 else pipe.recv()
    store = dist.TCPStore("127.0.0.1", port, count, is_master=rank == 0, wait_for_workers=False)  # type: ignore[attr-defined]
    if rank == 0:
        pipe.send((store.port, None))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=timedelta(seconds=TIMEOUT))
    import_deepspeed(CPU)
    _share_groups()
    while True:
        gc.freeze()  # as where DeepSpeed is imported anew; DeepSpeed keeps what is left of each engine
        function, arguments = pipe.recv()
        try:
            pipe.send((function(*arguments), None))
        except Exception:
            pipe.send((None, traceback.format_exc()))


def _share_groups() -> None:
    """Have all groups of the same ranks be one. DeepSpeed keeps an engine's groups when the engine is gone, and each
    group has a thread that looks a hundred times a second for what has come."""
    groups: dict[tuple[int, ...], Any] = {}
    new_group = distributed_c10d.new_group

    def shared(ranks: list[int], **options: Any) -> Any:
        members = tuple(ranks)
        if members not in groups:
            groups[members] = new_group(ranks, **options)
        return groups[members]

    for module in (dist, distributed_c10d):
        vars(module)["new_group"] = shared


def rows_of(config: TrainConfig, step: int) -> Tensor:
    """The whole batch of the step after `step`, [batch, L + 1]."""
    generator = torch.Generator().manual_seed(step)
    size = (config.training.batch, config.data.sequence_length + 1)
    return torch.randint(config.vocabulary, size, generator=generator)


def drawn(config: TrainConfig) -> ReadTensor:
    """The weights of step 0."""
    whole = shapes(config.model, config.vocabulary, config.context)
    return lambda _, name: draw(name, whole[name], config.model, config.training.seed)


def from_file(path: Path) -> ReadTensor:
    tensors = safe_open(path, "pt")
    return lambda kind, name: tensors.get_tensor(f"{kind}.{name}")  # type: ignore[no-untyped-call]


def engine_of(config: TrainConfig, read: ReadTensor, step: int = 0) -> tuple[DistributedEngine, ParallelDims]:
    parallel = config.parallel
    dims = with_groups(ParallelDims(dist.get_rank(), dist.get_world_size(), CPU, parallel.pipeline, parallel.tensor))
    engine = DistributedEngine(config, dims)
    engine.load(read, step)
    return engine, dims


def advance(
    engine: DistributedEngine, dims: ParallelDims, config: TrainConfig, step: int, scale: float | None = None
) -> tuple[float, float]:
    """Loss and gradient norm of the step after `step`; in fp16 at a loss scale of `scale`, or 2¹⁶."""
    mine = rows_of(config, step).chunk(dims.data)[dims.data_rank]
    scale = scale or (2.0**16 if config.training.precision == "fp16" else 1.0)
    return engine.step(torch.split(mine, config.training.micro_batch), config.optimizer.learning_rate, scale)


def save(engine: DistributedEngine, dims: ParallelDims, path: Path) -> None:
    """Weights and moments, whole."""
    tensors = {f"{kind}.{name}": tensor.contiguous() for kind in KINDS for name, tensor in engine.gather(kind)}
    assert bool(tensors) == dims.is_main
    if dims.is_main:
        save_file(tensors, path)
    dims.barrier()


def train(
    config: TrainConfig, steps: range, start: Path | None = None, saves: dict[int, Path] | None = None
) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step, from the weights drawn or from a file, saving after some steps."""
    engine, dims = engine_of(config, from_file(start) if start else drawn(config), steps.start)
    done = []
    for step in steps:
        done.append(advance(engine, dims, config, step))
        if saves and step + 1 in saves:
            save(engine, dims, saves[step + 1])
    return done


def train_without(guard: str, config: TrainConfig, steps: range) -> list[tuple[float, float]]:
    """As `train`, with one of the guards of trainer.engine.deepspeed_setup open."""
    opened: dict[str, tuple[str, Callable[..., Any]]] = {
        "safe_zero_stage": ("trainer.engine.deepspeed_setup.safe_zero_stage", lambda parallel, _: parallel.zero_stage),
        "mark_sharded": ("trainer.engine.distributed.mark_sharded", lambda _: None),
        "add_tied_gradients": ("trainer.engine.distributed.add_tied_gradients", lambda _: None),
    }
    with mock.patch(*opened[guard]):
        return train(config, steps)


def step_nowhere_in_bf16(stage: int) -> bool:
    """Whether the first step at a learning rate of 0 changes weights, at a ZeRO stage of DeepSpeed's."""
    import deepspeed

    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 8)
    before = layer.weight.detach().bfloat16()
    engine, optimizer, _, _ = deepspeed.initialize(
        model=layer,
        optimizer=torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1),
        mpu=ModelParallelUnit(with_groups(ParallelDims(dist.get_rank(), dist.get_world_size(), CPU))),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "bf16": {"enabled": True},
            "data_types": {"grad_accum_dtype": "fp32" if stage else "bf16"},
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
        },
    )
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    engine.backward(engine(torch.ones(1, 8, dtype=torch.bfloat16)).sum())
    engine.step()
    return not torch.equal(layer.weight, before)


def look(
    config: TrainConfig, start: Path, rows: Tensor, steps: range, end: Path
) -> tuple[Tensor, Tensor, list[tuple[float, float]]]:
    """Cross-entropy of rows and their logits, and what `train` returns of steps with another look after each; saves
    what is there in the end."""
    engine, dims = engine_of(config, from_file(start), steps.start)
    nll, logits = engine.nll(rows), engine.logits(rows[:, :-1])
    done = []
    for step in steps:
        done.append(advance(engine, dims, config, step))
        engine.nll(rows)
        engine.logits(rows[:1, :-1])
    save(engine, dims, end)
    return nll, logits, done


def evaluate(config: TrainConfig, start: Path, rows: Tensor) -> Tensor:
    """Cross-entropy of those of the rows [data-parallel ranks, b, L + 1] that are this rank's."""
    engine, dims = engine_of(config, from_file(start), 10)
    return engine.nll(rows[dims.data_rank])


def stumble(config: TrainConfig, factors: dict[str, float], path: Path) -> tuple[str, float] | None:
    """A step from drawn weights of which some are multiplied, and what it raised; saves what was there before and
    after."""
    read = drawn(config)
    engine, dims = engine_of(config, lambda kind, name: read(kind, name) * factors.get(name, 1.0))
    save(engine, dims, path / "before")
    raised = None
    try:
        advance(engine, dims, config, 0)
    except NonFiniteError as error:
        raised = error.what, error.value
    save(engine, dims, path / "after")
    return raised


def train_scaled(config: TrainConfig, scales: list[float], end: Path) -> list[tuple[float, float] | None]:
    """Loss and gradient norm at each loss scale of the first step that is not made yet, None where it overflowed; saves
    what is there in the end."""
    engine, dims = engine_of(config, drawn(config))
    done: list[tuple[float, float] | None] = []
    for scale in scales:
        try:
            done.append(advance(engine, dims, config, len(done) - done.count(None), scale))
        except NonFiniteError:
            done.append(None)
    save(engine, dims, end)
    return done
