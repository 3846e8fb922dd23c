"""The engine of one rank: the whole model on one device, and an optimizer over flat tensors."""

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from trainer.config import TrainConfig
from trainer.distributed.parallel_dims import ParallelDims
from trainer.engine.base import NonFiniteError, ReadTensor, StepResult, TensorKind
from trainer.engine.compiling import can_compile, compile_blocks
from trainer.engine.flat_adamw import FlatAdamW
from trainer.hardware import DTYPES
from trainer.model.loss import HeadLoss, to_probability_
from trainer.model.transformer import Block, Transformer

EMBEDDING, HEAD, BIAS = "embed.tokens.weight", "head.weight", "head.bias"


class LocalEngine:
    """Implements `trainer.engine.base.Engine` on one rank.

    In bf16 and fp16 the model computes on copies of fp32 master weights. Gradients have buffers that are kept from step
    to step; those of several micro-batches are summed in fp32. Head, loss and their gradients are computed a chunk of
    tokens at a time. The host waits for the device once a step, for loss and norm, before a weight changes.
    """

    def __init__(self, config: TrainConfig, dims: ParallelDims) -> None:
        self.device = dims.device
        dtype = DTYPES[config.training.precision]
        summed = config.training.batch > config.training.micro_batch
        self.exact = empty(config, self.device)
        self.optimizer = FlatAdamW(
            self.exact.named_parameters(),
            config.optimizer,
            dtype,
            torch.float32 if summed else dtype,
            self.device,
        )
        fill(self.exact, self.optimizer.masters())
        self.model = empty(config, self.device)
        fill(self.model, self.optimizer.weights())
        for block in self.model.modules():
            if isinstance(block, Block):
                block.recompute = config.training.recompute
        self.tied = config.model.tied_head
        kernel = None
        if config.training.compile and can_compile(self.device):
            compile_blocks(self.model, self.device)
            kernel = torch.compile(to_probability_, dynamic=False)
        self.head_loss = HeadLoss(self.model.head.weight, self.model.head.bias, kernel=kernel)
        self._first = True
        self._touched: list[Tensor] = []
        self._keep_gradients()

    def step(self, micro_batches: Sequence[Tensor], rate: float, loss_scale: float = 1.0) -> StepResult:
        """See `Engine.step`. Raises NonFiniteError before a weight has changed."""
        tokens = sum(rows.shape[0] * (rows.shape[1] - 1) for rows in micro_batches)
        self._clear_rows()
        losses = []
        for number, rows in enumerate(micro_batches):
            self._first = number == 0
            losses.append(self._accumulate(rows, loss_scale / tokens))
        total = torch.stack(losses).sum(dtype=torch.float64) / tokens
        loss, norm = torch.stack([total, self.optimizer.norm() / loss_scale]).tolist()
        if not math.isfinite(loss):
            raise NonFiniteError("loss", loss)
        if not math.isfinite(norm):
            raise NonFiniteError("gradient norm", norm, loss)
        self.optimizer.step(rate, norm, loss_scale)
        return StepResult(loss, norm)

    @torch.no_grad()
    def nll(self, rows: Tensor) -> Tensor:
        """See `Engine.nll`; computed on the fp32 master weights."""
        nll_BL: Tensor = self.exact(rows[:, :-1], rows[:, 1:], mean=False)
        return nll_BL

    @torch.no_grad()
    def logits(self, ids_BL: Tensor) -> Tensor:
        """See `Engine.logits`; computed on the fp32 master weights, which are what a checkpoint holds."""
        logits_BLV: Tensor = self.exact(ids_BL)
        return logits_BLV

    def gather(self, kind: TensorKind) -> Iterator[tuple[str, Tensor]]:
        """See `Engine.gather`. On a CPU the tensors are the engine's own, which the next step changes."""
        for name, _ in self.exact.named_parameters():
            yield name, self.optimizer.view(kind, name).cpu()

    def load(self, read: ReadTensor, step: int, skipped: int = 0) -> None:
        """See `Engine.load`."""
        for name, _ in self.exact.named_parameters():
            self.optimizer.view("weight", name).copy_(read("weight", name))
            for kind in ("exp_avg", "exp_avg_sq"):
                moment = self.optimizer.view(kind, name)
                moment.copy_(read(kind, name)) if step else moment.zero_()
        self.optimizer.count.fill_(step - skipped)
        self.optimizer.publish()

    def _accumulate(self, rows: Tensor, scale: float) -> Tensor:
        """Add `scale` × the gradients of a micro-batch [B, L + 1] to the kept ones. Returns its summed loss in nats."""
        ids_BL, targets_BL = rows[:, :-1], rows[:, 1:]
        embed = self.model.embed
        with torch.no_grad():
            tokens_BLD = embed.look_up(ids_BL)
        tokens_BLD.requires_grad_()
        x_BLD = embed.add_positions(tokens_BLD)
        for block in self.model.blocks:
            x_BLD = block(x_BLD)
        x_ND = self.model.head.norm(x_BLD).flatten(0, 1)
        gradients = self.optimizer.gradients
        total, dx_ND = self.head_loss(
            x_ND.detach(),
            targets_BL.flatten(),
            scale,
            gradients[EMBEDDING if self.tied else HEAD],
            gradients.get(BIAS),
            add=not self._first,
        )
        x_ND.backward(dx_ND)
        self._add_rows(ids_BL.flatten(), tokens_BLD)
        return total

    def _keep_gradients(self) -> None:
        """Have autograd add each gradient to its kept buffer as soon as it is computed."""

        def keep(parameter: Tensor, kept: Tensor) -> None:
            assert parameter.grad is not None
            kept.copy_(parameter.grad) if self._first else kept.add_(parameter.grad)
            parameter.grad = None

        for name, parameter in self.model.named_parameters():
            hook = partial(keep, kept=self.optimizer.gradients[name])
            parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def _add_rows(self, ids_N: Tensor, tokens_BLD: Tensor) -> None:
        """Add the gradients of a micro-batch's token embeddings; rows of other tokens stay zero."""
        assert tokens_BLD.grad is not None
        dtokens_ND = tokens_BLD.grad.flatten(0, 1).float()
        gradient_VD = self.optimizer.gradients[EMBEDDING]
        if self.device.type == "cuda":
            # index_add_ would add in an order that differs from run to run.
            gradient_VD.index_put_((ids_N,), dtokens_ND, accumulate=True)
        else:
            gradient_VD.index_add_(0, ids_N, dtokens_ND)
        self._touched.append(ids_N)

    def _clear_rows(self) -> None:
        """Zero the embedding's rows that the last step added to. Under a tied head the head's gradient overwrites
        them."""
        for ids_N in self._touched if not self.tied else ():
            self.optimizer.gradients[EMBEDDING].index_fill_(0, ids_N, 0.0)
        self._touched.clear()


def empty(config: TrainConfig, device: torch.device) -> Transformer:
    """The model on the meta device, without weights; its tables of positions are on `device`."""
    with torch.device("meta"):
        model = Transformer(config.model, config.vocabulary, config.context)
    if model.rotary:
        model.rotary.to(device)
    return model


def fill(model: Transformer, weights: dict[str, nn.Parameter]) -> None:
    """Assign each parameter its weights. Shared parameters stay shared."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    shared = model.named_parameters(remove_duplicate=False)
    model.load_state_dict({name: weights[names[id(parameter)]] for name, parameter in shared}, assign=True)
