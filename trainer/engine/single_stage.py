"""A rank that holds all layers, whole or its tensor-parallel part of each: every layout without a pipeline."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import TrainConfig
from trainer.distributed.parallel_dims import ParallelDims
from trainer.engine.base import NonFiniteError
from trainer.engine.deepspeed_setup import ModelParallelUnit, deepspeed_config
from trainer.hardware import DTYPES
from trainer.model.tensor_parallel import TensorParallel
from trainer.model.transformer import Block, Head, Transformer


class SingleStage:
    """Implements `trainer.engine.distributed.Stage`. Under ZeRO-3 each layer is partitioned as soon as it is made."""

    def __init__(self, config: TrainConfig, dims: ParallelDims, tp: TensorParallel) -> None:
        self._dims = dims
        self.mpu = ModelParallelUnit(dims)
        with torch.device("meta"):
            self.module = Transformer(config.model, config.vocabulary, config.context, tp)
        self.head: Head | None = self.module.head
        if self.module.rotary:
            self.module.rotary.to(dims.device)
        for part in (self.module.embed, self.module.relative_bias, *self.module.blocks, self.module.head):
            if part is None:
                continue
            part.to_empty(device=dims.device)
            if config.model.tied_head and part is self.module.head:
                self.module.head.weight = self.module.embed.tokens.get_parameter("weight")
            if config.parallel.zero_stage == 3:
                self._partition(part, config)
        for block in self.module.blocks:
            assert isinstance(block, Block)
            block.recompute = config.training.recompute

    def named(self) -> dict[str, nn.Parameter]:
        return dict(self.module.named_parameters())

    def owning_stage(self, name: str) -> int:
        return 0

    def step(self, engine: Any, micro_batches: Sequence[Tensor]) -> float:
        """The mean loss in nats of one update on micro-batches [B, L + 1] of token ids. Raises NonFiniteError."""
        losses = []
        for count, rows in enumerate(micro_batches, start=1):
            loss = engine(rows[:, :-1], rows[:, 1:])
            engine.backward(loss)
            losses.append(loss.detach())
            if count < len(micro_batches):
                engine.step()
        mean = self._dims.all_reduce_sum(float(torch.stack(losses).mean()))[0] / self._dims.world_size
        if not math.isfinite(mean):
            raise NonFiniteError("loss", mean)
        engine.step()
        return mean

    def nll(self, rows: Tensor) -> Tensor:
        """Cross-entropy [B, L] in nats of the targets in rows [B, L + 1] of token ids."""
        nll_BL: Tensor = self.module(rows[:, :-1], rows[:, 1:], mean=False)
        return nll_BL

    def logits(self, ids_BL: Tensor) -> Tensor:
        """Logits [B, L, V] of token ids [B, L], in the model's precision."""
        logits_BLV: Tensor = self.module(ids_BL)
        return logits_BLV

    def _partition(self, part: nn.Module, config: TrainConfig) -> None:
        from deepspeed.runtime.zero import Init

        dtype = DTYPES[config.training.precision]
        # `Init` does not convert parameters that exist already.
        Init(
            module=part.to(dtype),
            data_parallel_group=self._dims.data_group,
            config_dict_or_path=deepspeed_config(config, self._dims),
            mpu=self.mpu,
            dtype=dtype,
        )
