"""The parallel layouts in which a configuration fits a number of GPUs on nodes. Imports no torch."""

from pydantic import BaseModel, ValidationError

from trainer.config import ConfigError, TrainConfig
from trainer.memory import Device, memory_per_gpu


class Layout(BaseModel):
    """Ranks by parallel.pipeline × parallel.tensor × data, and an estimate of the bytes that each takes of its GPU."""

    pipeline: int
    tensor: int
    data: int
    memory_per_gpu: int


def fitting(
    config: TrainConfig, gpus: int, nodes: int = 1, gpu_memory: int | None = None, device: Device | None = None
) -> list[Layout]:
    """The layouts of `config` that fit so many GPUs on nodes, of `gpu_memory` bytes each; the least split first."""
    found = []
    for tensor in range(1, min(gpus // nodes, config.model.heads) + 1):
        for pipeline in range(1, min(gpus // tensor, config.model.layers) + 1):
            layout = _layout(config, gpus, nodes, pipeline, tensor, device)
            if layout is not None and (gpu_memory is None or layout.memory_per_gpu <= gpu_memory):
                found.append(layout)
    return sorted(found, key=lambda layout: (layout.pipeline * layout.tensor, layout.pipeline))


def _layout(
    config: TrainConfig, gpus: int, nodes: int, pipeline: int, tensor: int, device: Device | None
) -> Layout | None:
    if gpus % (pipeline * tensor):
        return None
    values = config.model_dump()
    values["parallel"] |= {"pipeline": pipeline, "tensor": tensor}
    try:
        split = TrainConfig.model_validate(values)
        data = split.data_ranks(gpus, nodes)
    except (ValidationError, ConfigError):
        return None
    return Layout(pipeline=pipeline, tensor=tensor, data=data, memory_per_gpu=sum(memory_per_gpu(split, data, device)))
