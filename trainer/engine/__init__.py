"""The model with its optimizer: `local` on one rank, `distributed` on DeepSpeed for every other layout, and `tuning`
for fine-tuning on examples or with adapters."""

from trainer.config import TrainConfig
from trainer.distributed.parallel_dims import ParallelDims
from trainer.engine.base import Engine


def open_engine(config: TrainConfig, dims: ParallelDims) -> Engine:
    """The engine for this layout, its weights not loaded yet."""
    if config.tunes:
        from trainer.engine.tuning import TuningEngine

        return TuningEngine(config, dims)
    if dims.world_size == 1:
        from trainer.engine.local import LocalEngine

        return LocalEngine(config, dims)
    from trainer.engine.distributed import DistributedEngine

    return DistributedEngine(config, dims)
