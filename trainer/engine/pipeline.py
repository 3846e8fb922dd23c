"""A rank's stage of a pipeline: consecutive blocks, on the first stage the embedding, on the last the head.

DeepSpeed trains them as a PipelineModule whose last layer is the head with its loss, so that the logits are never held
whole. A tied head has a copy of the embedding's weight, and each stage a copy of T5's relative positions; DeepSpeed
adds the gradients of the copies.
"""

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.config import TrainConfig
from trainer.distributed.parallel_dims import ParallelDims
from trainer.engine.base import NonFiniteError
from trainer.hardware import DTYPES
from trainer.model.positions import RelativeBias, Rotary
from trainer.model.tensor_parallel import TensorParallel
from trainer.model.transformer import Block, Embedding, Head

_TIED, _RELATIVE = "embed.tokens.weight", "relative_bias"


class PipelineStage:
    """Implements `trainer.engine.distributed.Stage`. Blocks are spread evenly; where they do not divide, the first
    stages take one more."""

    mpu = None
    """DeepSpeed makes its own from the topology."""

    def __init__(self, config: TrainConfig, dims: ParallelDims, tp: TensorParallel) -> None:
        from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
        from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

        self._config, self._dims, self._hidden = config, dims, config.model.hidden_size
        self._first, self._last = dims.pipeline_rank == 0, dims.pipeline_rank == dims.pipeline - 1
        rotary = Rotary(config.model, config.context) if config.model.positions == "rotary" else None
        if rotary:
            rotary.to(dims.device)
        relative_bias = RelativeBias(config.model, config.context, tp) if config.model.positions == "t5" else None
        embedding = (Embedding, config.model, config.vocabulary, config.context, tp)
        layers = [LayerSpec(*embedding)]
        shared = (rotary, relative_bias)
        layers += [LayerSpec(Block, config.model, layer, *shared, tp) for layer in range(config.model.layers)]
        if config.model.tied_head:
            tie = {"tied_weight_attr": "tokens.weight"}
            layers[0] = TiedLayerSpec("embed", *embedding, **tie)
            layers.append(TiedLayerSpec("embed", *embedding, forward_fn=_pass, **tie))
        # The loss is a layer: in bf16 DeepSpeed loses the gradients of parameters that only a loss function has.
        layers.append(self._loss)
        # DeepSpeed prints its layers, and would copy the tied weights within autograd.
        with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            self.module = PipelineModule(
                layers=layers,
                topology=PipeModelDataParallelTopology(dims.pipeline, dims.tensor, dims.data),
                partition_method="type:Block",
            )
        if relative_bias:
            self._tie(relative_bias)
        start = self.module.parts[dims.pipeline_rank]
        own = enumerate(self.module.forward_funcs, start=start)
        self._layers = {number: layer for number, layer in own if isinstance(layer, Embedding | Block)}
        self.head = self._make_head(tp) if self._last else None
        self._targets_BL: Tensor | None = None
        for layer in self._layers.values():
            if isinstance(layer, Block):
                layer.recompute = config.training.recompute

    def named(self) -> dict[str, nn.Parameter]:
        named: dict[str, nn.Parameter] = {}
        for number, layer in self._layers.items():
            prefix = "embed" if number == 0 else f"blocks.{number - 1}"
            named |= {f"{prefix}.{name}": parameter for name, parameter in layer.named_parameters()}
        if self._config.model.positions == "t5":
            named[f"{_RELATIVE}.weight"] = self.module.tied_modules[_RELATIVE].weight
        if self.head:
            named |= {f"head.{name}": parameter for name, parameter in self.head.named_parameters()}
            if self._config.model.tied_head:
                named[_TIED] = named.pop("head.weight")
        return named

    def owning_stage(self, name: str) -> int:
        match name.split("."):
            case ["embed" | "relative_bias", *_]:
                return 0
            case ["blocks", number, *_]:
                stage: int = self.module.stage_owner(int(number) + 1)
                return stage
        return self._dims.pipeline - 1

    def step(self, engine: Any, micro_batches: Sequence[Tensor]) -> float:
        """The mean loss in nats of one update on micro-batches [B, L + 1] of token ids. Raises NonFiniteError."""
        loss = float(engine.train_batch(self._batches(micro_batches)))
        if not math.isfinite(loss):
            raise NonFiniteError("loss", loss)
        return loss

    def nll(self, rows: Tensor) -> Tensor:
        """Cross-entropy [B, L] in nats of the targets in rows [B, L + 1] of token ids, on every stage."""
        x_BLD = self._run(rows[:, :-1])
        if self.head:
            nll_BL: Tensor = self.head(x_BLD, rows[:, 1:], mean=False)
        else:
            nll_BL = torch.empty(rows[:, 1:].shape, device=self._dims.device)
        last = self._dims.rank + (self._dims.pipeline - 1 - self._dims.pipeline_rank) * self._stride
        dist.broadcast(nll_BL, last, group=self.module.mpu().get_pipe_parallel_group())
        return nll_BL

    def logits(self, ids_BL: Tensor) -> Tensor:
        """Logits [B, L, V] in fp32 of token ids [B, L], on the main rank."""
        x_BLD = self._run(ids_BL)
        source = (self._dims.pipeline - 1) * self._stride
        logits_BLV = torch.empty(*ids_BL.shape, self._config.vocabulary, device=self._dims.device)
        if self.head:
            logits_BLV = self.head(x_BLD).float()
        if self._dims.rank == source:
            dist.send(logits_BLV.contiguous(), 0)
        elif self._dims.is_main:
            dist.recv(logits_BLV, source)
        return logits_BLV

    @property
    def _stride(self) -> int:
        """The difference between a rank's number and that of its counterpart in the next stage."""
        return self._dims.data * self._dims.tensor

    def _run(self, ids_BL: Tensor) -> Tensor:
        """Run ids [B, L] through all stages in turn, without a gradient. Returns the hidden states [B, L, D] after this
        stage's layers."""
        if self._first:
            x = ids_BL
        else:
            x = torch.empty(*ids_BL.shape, self._hidden, device=self._dims.device, dtype=self._dtype)
            dist.recv(x, self._dims.rank - self._stride)
        for layer in self._layers.values():
            x = layer(x)
        if not self._last:
            dist.send(x.contiguous(), self._dims.rank + self._stride)
        return x

    @property
    def _dtype(self) -> torch.dtype:
        return DTYPES[self._config.training.precision]

    def _tie(self, relative_bias: RelativeBias) -> None:
        """Have DeepSpeed add the gradients of all stages' copies, as it does for a layer that is tied to another, and
        count them once in the gradient norm."""
        first = self._dims.rank - self._dims.pipeline_rank * self._stride
        self.module.tied_modules[_RELATIVE] = relative_bias.to(self._dims.device)
        self.module.tied_comms[_RELATIVE] = {
            "ranks": [first + stage * self._stride for stage in range(self._dims.pipeline)],
            "group": self.module.mpu().get_pipe_parallel_group(),
            "weight_attr": ["weight"],
            "module": relative_bias,
        }
        relative_bias.weight.ds_pipe_replicated = not self._first  # type: ignore[attr-defined]

    def _make_head(self, tp: TensorParallel) -> Head:
        config = self._config
        tied = None
        if config.model.tied_head:
            copy = self.module.tied_modules["embed"]
            copy.positions = None
            tied = copy.tokens.weight
        head = Head(config.model, config.vocabulary, tp, tied).to(self._dims.device)
        self.module.head = head
        return head

    def _batches(self, micro_batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets for DeepSpeed. `_loss` reads the targets here: the last stage asks for a micro-batch right
        before it computes it."""
        for rows in micro_batches:
            self._targets_BL = rows[:, 1:]
            yield rows[:, :-1], rows[:, 1:]

    def _loss(self, x_BLD: Tensor) -> Tensor:
        assert self.head
        loss: Tensor = self.head(x_BLD, self._targets_BL)
        # A loss that is not finite makes the gradient NaN, so that DeepSpeed skips the update on every rank.
        return loss if loss.isfinite() else loss * torch.nan


def _pass(_: nn.Module, x_BLD: Tensor) -> Tensor:
    return x_BLD
