"""The model with its optimizer: `local` for one process, `distributed` for every other layout."""

from trainer.config import TrainConfig
from trainer.distributed.parallel_dims import Place
from trainer.engine.base import Engine


def open_engine(config: TrainConfig, place: Place) -> Engine:
    """The engine for this layout, its weights not loaded yet."""
    if place.ranks == 1:
        from trainer.engine.local import LocalEngine

        return LocalEngine(config, place)
    from trainer.engine.distributed import DistributedEngine

    return DistributedEngine(config, place)
