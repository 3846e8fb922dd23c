"""The engine of fine-tuning: the whole model on each data-parallel rank, trained on the completions of examples or on
preferences, with all of its weights or with adapters.

B rows, L tokens of a sequence, N tokens that count, S sequences, the chosen and the rejected one of each pair in turn.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from trainer.config import TrainConfig
from trainer.distributed.parallel_dims import ParallelDims
from trainer.engine.base import NonFiniteError, ReadTensor, StepResult, TensorKind
from trainer.engine.dpo import dpo_loss
from trainer.engine.flat_adamw import FlatAdamW
from trainer.engine.local import empty, fill
from trainer.hardware import DTYPES
from trainer.model import lora, loss
from trainer.model.packing import Packing, packing_of
from trainer.model.tensor_parallel import ALONE
from trainer.model.transformer import Block, Transformer
from trainer.tuning_config import DpoConfig

MOMENTS: tuple[TensorKind, TensorKind] = ("exp_avg", "exp_avg_sq")


class TuningEngine:
    """Implements `trainer.engine.base.Engine`. Rows are [B, L + 1] token ids, or [B, 2, L + 1] token ids and marks, or
    [B, 2, 2 (L + 1)] of preferences, as `trainer.data.examples` reads them.

    In bf16 the model computes on copies of fp32 weights. With adapters the other weights are frozen. The gradients of
    all micro-batches and ranks are summed in fp32.
    """

    def __init__(self, config: TrainConfig, dims: ParallelDims) -> None:
        self._config, self._dims = config, dims
        dtype = DTYPES[config.training.precision]
        self._exact, adapters = self._empty()
        shapes = dict(self._exact.named_parameters())
        trained = {name: p for name, p in shapes.items() if adapters is None or lora.is_adapter(name)}
        self._optimizer = FlatAdamW(trained.items(), config.optimizer, dtype, torch.float32, dims.device)
        self._frozen = {name: _frozen(p, torch.float32, dims) for name, p in shapes.items() if name not in trained}
        same = dtype == torch.float32
        self._computing = {name: p if same else _frozen(p, dtype, dims) for name, p in self._frozen.items()}
        fill(self._exact, self._optimizer.masters() | self._frozen)
        self.model, self._adapters = self._empty()
        fill(self.model, self._optimizer.weights() | self._computing)
        self._reference: Transformer | None = None
        for block in self.model.modules():
            if isinstance(block, Block):
                block.recompute = config.training.recompute
        for name in trained:
            hook = partial(_keep, kept=self._optimizer.gradients[name])
            self.model.get_parameter(name).register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def keep(self, read: ReadTensor) -> None:
        """Take the weights of the base: they are frozen under adapters, and else what preferences are compared with."""
        if self._adapters is not None:
            for name, parameter in self._frozen.items():
                parameter.copy_(read("weight", name))
                self._computing[name].copy_(parameter)
            return
        self._reference, _ = self._empty()
        dtype = DTYPES[self._config.training.precision]
        names = [name for name, _ in self._reference.named_parameters()]
        weights = {name: nn.Parameter(read("weight", name).to(self._dims.device, dtype)) for name in names}
        fill(self._reference.requires_grad_(False), weights)

    def step(self, micro_batches: Sequence[Tensor], rate: float, loss_scale: float = 1.0) -> StepResult:
        """See `Engine.step`. The loss is the mean over what counts in the whole batch: tokens of completions in nats,
        or pairs."""
        for segment in self._optimizer.segments:
            segment.gradient.zero_()
        counted = self._dims.all_reduce_sum(sum(self._counted(rows) for rows in micro_batches))[0]
        losses = []
        for rows in micro_batches:
            part = self._summed(rows) / counted
            part.backward()  # type: ignore[no-untyped-call]
            losses.append(part.detach())
        mean = self._dims.all_reduce_sum(float(torch.stack(losses).sum(dtype=torch.float64)))[0]
        if not math.isfinite(mean):
            raise NonFiniteError("loss", mean)
        if self._dims.world_size > 1:
            for segment in self._optimizer.segments:
                dist.all_reduce(segment.gradient)
        norm = float(self._optimizer.norm())
        if not math.isfinite(norm):
            raise NonFiniteError("gradient norm", norm, mean)
        self._optimizer.step(rate, norm)
        return StepResult(mean, norm)

    @torch.no_grad()
    def nll(self, rows: Tensor) -> Tensor:
        """See `Engine.nll`; tokens that do not count have 0. Of preferences it is the loss [B, 1] of each pair,
        computed in the precision of training."""
        if self._config.data.kind == "preferences":
            return self._dpo(rows)[:, None]
        ids_BL, targets_BL, counted_BL, packing = self._inputs(rows)
        x_ND = self._exact.hidden(ids_BL, packing)[counted_BL]
        head = self._exact.head
        nll_BL = torch.zeros(targets_BL.shape, device=x_ND.device)
        nll_BL[counted_BL] = loss.nll(x_ND, head.weight, head.bias, targets_BL[counted_BL], ALONE)
        return nll_BL

    @torch.no_grad()
    def logits(self, ids_BL: Tensor) -> Tensor:
        """See `Engine.logits`; computed on the fp32 weights."""
        logits_BLV: Tensor = self._exact(ids_BL)
        return logits_BLV

    def gather(self, kind: TensorKind) -> Iterator[tuple[str, Tensor]]:
        """See `Engine.gather`. The weights have their adapters merged into them; the moments are of what is trained."""
        if not self._dims.is_main:
            return
        view = self._optimizer.view
        if kind != "weight" or self._adapters is None:
            for name in self._optimizer.locations:
                yield name, view("weight" if kind == "adapter" else kind, name).cpu()
            return
        for name, parameter in self._frozen.items():
            layer = name.removesuffix(".weight")
            if layer in self._adapters.targets and name.endswith(".weight"):
                a_RI, b_OR = (view("weight", f"{layer}.{part}") for part in (lora.A, lora.B))
                yield name, lora.merged(parameter, a_RI, b_OR, self._adapters.scale).cpu()
            else:
                yield name, parameter.cpu()

    def load(self, read: ReadTensor, step: int, skipped: int = 0) -> None:
        """See `Engine.load`. Adapters are drawn from the seed at step 0."""
        view = self._optimizer.view
        for name, (_, shape) in self._optimizer.locations.items():
            if self._adapters is None:
                weight = read("weight", name)
            else:
                weight = read("adapter", name) if step else lora.draw(name, shape, self._config.training.seed)
            view("weight", name).copy_(weight)
            for kind in MOMENTS:
                view(kind, name).copy_(read(kind, name)) if step else view(kind, name).zero_()
        self._optimizer.count.fill_(step - skipped)
        self._optimizer.publish()

    def _empty(self) -> tuple[Transformer, lora.Adapters | None]:
        model = empty(self._config, self._dims.device)
        return model, lora.Adapters(model, self._config.lora) if self._config.lora else None

    def _inputs(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Packing | None]:
        """Inputs [B, L], targets [B, L], which of the targets count [B, L], and the packing of rows of examples."""
        if rows.ndim == 2:
            return rows[:, :-1], rows[:, 1:], torch.ones_like(rows[:, 1:], dtype=torch.bool), None
        length = self._config.data.sequence_length + 1
        tokens, marks = (part.reshape(-1, length) for part in (rows[:, 0], rows[:, 1]))
        return tokens[:, :-1], tokens[:, 1:], marks[:, 1:] % 2 == 1, packing_of(marks[:, :-1] // 2)

    def _counted(self, rows: Tensor) -> int:
        if self._config.data.kind == "preferences":
            return len(rows)
        return int(self._inputs(rows)[2].sum())

    def _summed(self, rows: Tensor) -> Tensor:
        """The sum of the losses of a micro-batch."""
        if self._config.data.kind == "preferences":
            return self._dpo(rows).sum()
        ids_BL, targets_BL, counted_BL, packing = self._inputs(rows)
        x_ND = self.model.hidden(ids_BL, packing)[counted_BL]
        head = self.model.head
        total: Tensor = loss.FusedLoss.apply(x_ND, head.weight, head.bias, targets_BL[counted_BL], ALONE, 1.0)  # type: ignore[no-untyped-call]
        return total

    def _dpo(self, rows: Tensor) -> Tensor:
        """The loss [B] of each pair."""
        with torch.no_grad(), nullcontext() if self._adapters is None else self._adapters.off():
            reference_S = self._log_probabilities(self._reference or self.model, rows)
        beta = (self._config.dpo or DpoConfig()).beta
        return dpo_loss(self._log_probabilities(self.model, rows), reference_S, beta)

    def _log_probabilities(self, model: Transformer, rows: Tensor) -> Tensor:
        """The log-probability [S] of each answer, in nats and fp32."""
        ids_BL, targets_BL, counted_BL, packing = self._inputs(rows)
        x_ND = model.hidden(ids_BL, packing)[counted_BL]
        logits_NV = functional.linear(x_ND, model.head.weight, model.head.bias).float()
        nll_N = functional.cross_entropy(logits_NV, targets_BL[counted_BL], reduction="none")
        sequences_N = counted_BL.nonzero()[:, 0]
        return nll_N.new_zeros(len(ids_BL)).index_add(0, sequences_N, -nll_N)


def _frozen(like: Tensor, dtype: torch.dtype, dims: ParallelDims) -> nn.Parameter:
    return nn.Parameter(torch.empty(like.shape, dtype=dtype, device=dims.device), requires_grad=False)


def _keep(parameter: Tensor, kept: Tensor) -> None:
    """Have autograd add a gradient to its kept buffer as soon as it is computed."""
    assert parameter.grad is not None
    kept.add_(parameter.grad)
    parameter.grad = None
