"""Setting DeepSpeed up: its configuration, its import, and guards against its silent errors.

DeepSpeed 0.19.8 trains four layouts wrongly without an error; `safe_zero_stage`, `mark_sharded` and
`add_tied_gradients` prevent that.
"""

import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from trainer.config import ParallelConfig, Precision, TrainConfig
from trainer.distributed.parallel_dims import ParallelDims
from trainer.engine.gradient_clipping import deepspeed_clipping
from trainer.model.tensor_parallel import split_dim

BUCKET = 50_000_000
"""Numbers that are reduced or gathered at once."""


def safe_zero_stage(parallel: ParallelConfig, precision: Precision) -> int:
    """The ZeRO stage to ask DeepSpeed for: the configured one, or 1 where stage 0 would be silently wrong.

    Stage 1 gives the weights that stage 0 should give. At stage 0 a pipeline clips by the gradient norm of its first
    stage alone, and in bf16 the optimizer makes an update on zero gradients, weight decay included, when it is created.
    In fp16 stage 0 has an optimizer of another kind, which is not used here.
    """
    if parallel.zero_stage == 0 and (parallel.pipeline > 1 or precision != "fp32"):
        return 1
    return parallel.zero_stage


def mark_sharded(named: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Mark the parameters that are split over tensor-parallel ranks, before DeepSpeed is initialised.

    DeepSpeed counts every parameter without the mark in the gradient norm on the first tensor-parallel rank only, so
    that the norm would miss the other parts of an unmarked one.
    """
    for name, parameter in named:
        if split_dim(name) is not None:
            parameter.model_parallel = True  # type: ignore[attr-defined]


def add_tied_gradients(engine: Any) -> None:
    """Have a pipeline in fp16 add the gradients of a parameter's copies on several stages.

    Its optimizer at ZeRO-1 moves each gradient to `grad_accum`, where it sums it in fp32. DeepSpeed looks in `grad`,
    finds nothing, and would train each copy by the gradient of its own stage.
    """
    from deepspeed.runtime.pipe.schedule import ReduceTiedGrads

    def reduce(engine: Any) -> None:
        for weight, group in engine.module.get_tied_weights_and_groups():
            dist.all_reduce(weight.grad_accum, group=group)

    engine._INSTRUCTION_MAP = engine._INSTRUCTION_MAP | {ReduceTiedGrads: reduce}


class ModelParallelUnit:
    """The layout in the form of Megatron's `mpu`, through which DeepSpeed asks for it where there is no pipeline."""

    def __init__(self, dims: ParallelDims) -> None:
        self._dims = dims

    def get_model_parallel_rank(self) -> int:
        return self._dims.tensor_rank

    def get_model_parallel_world_size(self) -> int:
        return self._dims.tensor

    def get_model_parallel_group(self) -> dist.ProcessGroup | None:
        return self._dims.tensor_group

    def get_data_parallel_rank(self) -> int:
        return self._dims.data_rank

    def get_data_parallel_world_size(self) -> int:
        return self._dims.data

    def get_data_parallel_group(self) -> dist.ProcessGroup | None:
        return self._dims.data_group


def deepspeed_config(config: TrainConfig, dims: ParallelDims) -> dict[str, Any]:
    """DeepSpeed's own configuration. Gradients are accumulated and reduced in fp32, also where they are computed in
    bf16 or fp16. The loss scale of fp16 is ours, and DeepSpeed takes it for a static one."""
    return {
        "train_batch_size": config.training.batch,
        "train_micro_batch_size_per_gpu": config.training.micro_batch,
        "gradient_accumulation_steps": config.accumulation(dims.data),
        **deepspeed_clipping(config.optimizer),
        "bf16": {"enabled": config.training.precision == "bf16"},
        "fp16": {"enabled": config.training.precision == "fp16", "loss_scale": 1.0},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": {
            "stage": safe_zero_stage(config.parallel, config.training.precision),
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
            # The option would replace torch.nn.functional.linear for the whole process.
            "memory_efficient_linear": False,
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**62,
    }


def import_deepspeed(device: torch.device) -> ModuleType:
    """Import DeepSpeed for a device and have it use the process group that torch.distributed has."""
    os.environ["DS_ACCELERATOR"] = device.type
    os.environ["LOCAL_RANK"] = str(device.index or 0)
    # Without LOCAL_SIZE, DeepSpeed runs numactl for every micro-batch on a CPU.
    os.environ.setdefault("LOCAL_SIZE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    known = "deepspeed" in sys.modules
    import deepspeed
    from deepspeed.runtime import compiler

    if not known:
        # DeepSpeed collects garbage time and again as it starts; nothing that is imported by now would be found.
        gc.freeze()

    # DeepSpeed compiles its Muon optimizer, which no run uses, as it imports it: a third of a rank's start.
    compiler.compile = lambda: compiler.dummy_decorator
    # On a CPU without instructions for fp16, DeepSpeed would refuse what PyTorch computes there all the same.
    if device.type == "cpu":
        deepspeed.accelerator.get_accelerator().is_fp16_supported = lambda: True
    # DeepSpeed would compile its shared-memory collectives at the first start, which takes most of a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for logger in map(logging.getLogger, ("DeepSpeed", "deepspeed")):
        logger.setLevel(logging.ERROR)
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setStream(sys.stderr)
    deepspeed.init_distributed(verbose=False, auto_mpi_discovery=False)
    module: ModuleType = deepspeed
    return module
