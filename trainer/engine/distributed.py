"""The engine of several ranks: DeepSpeed's ZeRO 0-3 over data-parallel ranks, tensor and pipeline parallelism."""

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.config import TrainConfig
from trainer.distributed.parallel_dims import ParallelDims
from trainer.engine.base import NonFiniteError, ReadTensor, StepResult, TensorKind
from trainer.engine.deepspeed_setup import add_tied_gradients, deepspeed_config, import_deepspeed, mark_sharded
from trainer.engine.gradient_clipping import clip_in_place
from trainer.engine.master_weights import MOMENTS, masters_of
from trainer.engine.optimizer import adamw
from trainer.engine.single_stage import SingleStage
from trainer.model.tensor_parallel import TensorParallel, split_dim
from trainer.model.transformer import Head, shapes


class Stage(Protocol):
    """The part of the model that a rank holds: `SingleStage` without a pipeline, else `PipelineStage`.

    `module` is what DeepSpeed trains, `mpu` the layout as DeepSpeed asks for it, None where it makes its own. `head`
    is the model's, on the ranks that compute the loss.
    """

    module: Any
    mpu: Any
    head: Head | None

    def named(self) -> dict[str, nn.Parameter]:
        """This rank's parameters by their names in the whole model."""

    def owning_stage(self, name: str) -> int:
        """The number of the pipeline stage whose copy of a parameter goes into checkpoints."""

    def step(self, engine: Any, micro_batches: Sequence[Tensor]) -> float:
        """One update through DeepSpeed's `engine`; returns the mean loss over all ranks. Raises NonFiniteError where
        the loss is not finite."""

    def nll(self, rows: Tensor) -> Tensor:
        """See `trainer.engine.base.Engine.nll`."""

    def logits(self, ids_BL: Tensor) -> Tensor:
        """See `trainer.engine.base.Engine.logits`; in the model's precision."""


class DistributedEngine:
    """Implements `trainer.engine.base.Engine` for any layout of more than one rank."""

    def __init__(self, config: TrainConfig, dims: ParallelDims) -> None:
        deepspeed = import_deepspeed(dims.device)
        self._dims = dims
        self._optimizer_config, self._norm = config.optimizer, math.nan
        self._tp = TensorParallel(dims.tensor_rank, dims.tensor, dims.tensor_group)
        self._shapes = shapes(config.model, config.vocabulary, config.context)
        self._stage = self._open_stage(config)
        self._named = self._stage.named()
        mark_sharded(self._named.items())
        # DeepSpeed prints the memory in use.
        with contextlib.redirect_stdout(io.StringIO()):
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=self._stage.module,
                optimizer=adamw(self._named.items(), config.optimizer),
                mpu=self._stage.mpu,
                config=deepspeed_config(config, dims),
            )
        stage = self._engine.zero_optimization_stage()
        self._masters = masters_of(stage, self._optimizer)
        self._clips = stage == 0
        self._scales = config.training.precision == "fp16"
        if self._scales and dims.pipeline > 1:
            add_tied_gradients(self._engine)
        if self._clips:
            self._engine.clip_fp32_gradients = self._clip_gradients

    def step(self, micro_batches: Sequence[Tensor], rate: float, loss_scale: float = 1.0) -> StepResult:
        """See `Engine.step`. Raises NonFiniteError on every rank."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        if self._scales:
            # To DeepSpeed the scale is static, and each step has another one. It averages over the data-parallel ranks
            # in fp32, after the backward pass: with a part of the scale each, gradients are as large as on one rank.
            self._optimizer.loss_scale = loss_scale / self._dims.data
            if self._stage.head:
                self._stage.head.loss_scale = loss_scale / self._dims.data / len(micro_batches)
        loss = self._stage.step(self._engine, micro_batches)
        if not self._clips:
            # DeepSpeed skips the update where the norm is not finite, and reports an infinite norm.
            self._norm = float(self._engine.get_global_grad_norm())
        if not math.isfinite(self._norm):
            raise NonFiniteError("gradient norm", self._norm, loss)
        return StepResult(loss, self._norm)

    @torch.no_grad()
    def nll(self, rows: Tensor) -> Tensor:
        """See `Engine.nll`: rows [B, L + 1] of token ids to cross-entropy [B, L] in nats."""
        return self._stage.nll(rows)

    @torch.no_grad()
    def logits(self, ids_BL: Tensor) -> Tensor:
        """See `Engine.logits`: token ids [B, L] to logits [B, L, V] in fp32."""
        return self._stage.logits(ids_BL).float()

    def gather(self, kind: TensorKind) -> Iterator[tuple[str, Tensor]]:
        """See `Engine.gather`."""
        for name in self._shapes:
            whole = self._whole(name, kind)
            if whole is not None:
                yield name, whole.cpu()

    def load(self, read: ReadTensor, step: int, skipped: int = 0) -> None:
        """See `Engine.load`."""
        self._masters.create_moments(step - skipped)
        kinds: tuple[TensorKind, ...] = ("weight", *MOMENTS) if step else ("weight",)
        for name, parameter in self._named.items():
            for kind in kinds:
                part = self._tp.part(read(kind, name), split_dim(name))
                self._masters.set(parameter, kind, part.to(self._dims.device))
        self._masters.publish()

    def _open_stage(self, config: TrainConfig) -> Stage:
        if self._dims.pipeline == 1:
            return SingleStage(config, self._dims, self._tp)
        from trainer.engine.pipeline import PipelineStage

        return PipelineStage(config, self._dims, self._tp)

    def _whole(self, name: str, kind: TensorKind) -> Tensor | None:
        """The whole parameter or moment on the main rank, None on the others."""
        dims, stage = self._dims, self._stage.owning_stage(name)
        whole = None
        if dims.pipeline_rank == stage:
            part = self._masters.get(self._named[name], kind)
            if dims.data_rank == 0:
                dim = split_dim(name)
                whole = part if dim is None else self._tp.join(part, dim)
        source = stage * dims.data * dims.tensor
        if source and dims.is_main:
            whole = torch.empty(self._shapes[name], device=dims.device)
            dist.recv(whole, source)
        elif source and dims.rank == source:
            assert whole is not None
            dist.send(whole.contiguous(), 0)
        return whole if dims.is_main else None

    def _clip_gradients(self) -> None:
        self._norm = clip_in_place(self._named.values(), self._optimizer_config, self._engine.mpu)
        if not math.isfinite(self._norm):
            raise NonFiniteError("gradient norm", self._norm)
