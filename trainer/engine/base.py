"""The interface of an engine, whatever the layout of its ranks. B rows, L tokens of a sequence, V vocabulary."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

TensorKind = Literal["weight", "exp_avg", "exp_avg_sq", "adapter"]
"""A parameter's master weight, Adam's first or second moment of it, or the master weight of an adapter."""

ReadTensor = Callable[[TensorKind, str], Tensor]
"""Returns the whole tensor of a kind and a parameter's name, in fp32 on the CPU."""


class NonFiniteError(RuntimeError):
    """The loss or the gradient of a step is not finite. Raised on every rank alike, before a weight has changed.

    `loss` is the step's loss where that is finite and known, else NaN. After a gradient norm in fp16 is not finite,
    the engine can do the next step.
    """

    def __init__(self, what: Literal["loss", "gradient norm"], value: float, loss: float = math.nan) -> None:
        super().__init__(f"{what} is {value}")
        self.what, self.value, self.loss = what, value, loss


class StepResult(NamedTuple):
    """`loss` is the mean over the whole batch in nats a token, `gradient_norm` the whole model's before clipping."""

    loss: float
    gradient_norm: float


class Engine(Protocol):
    """A model with its optimizer. All ranks call every method together.

    Parameters go by their names in `trainer.model.transformer.Transformer`, whatever part of them a rank holds.
    """

    def step(self, micro_batches: Sequence[Tensor], rate: float, loss_scale: float = 1.0) -> StepResult:
        """One update at the learning rate `rate` on this data-parallel rank's micro-batches [B, L + 1] of token ids, of
        which the first L are inputs and the last L targets. Returns the same on every rank. Raises NonFiniteError.

        In fp16 the gradients are computed of `loss_scale` × the loss, and divided by it in fp32 before they are
        clipped. In other precisions it must be 1.
        """

    def nll(self, rows: Tensor) -> Tensor:
        """Cross-entropy [B, L] in nats and fp32 of the targets in this data-parallel rank's rows [B, L + 1].

        Ranks with the same data-parallel rank pass the same rows; others may pass other rows of the same shape.
        """

    def logits(self, ids_BL: Tensor) -> Tensor:
        """Logits [B, L, V] in fp32 on the main rank, for ids that are the same on every rank. What the other ranks
        return is not defined."""

    def gather(self, kind: TensorKind) -> Iterator[tuple[str, Tensor]]:
        """On the main rank the name and the whole tensor of each parameter, in fp32 on the CPU, in the model's order.

        The other ranks get nothing, and must exhaust the iterator along with the main rank.
        """

    def load(self, read: ReadTensor, step: int, skipped: int = 0) -> None:
        """Load the weights, and the moments unless `step` is 0, as they were after `step` steps, of which `skipped`
        overflowed and were no updates. A fork whose optimizer began afresh counts from there."""
