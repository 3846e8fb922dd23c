"""What the training loop asks of an engine, whatever the layout of its ranks."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

TensorKind = Literal["weight", "exp_avg", "exp_avg_sq"]
"""A parameter's master weight, or one of Adam's moments of it."""

ReadTensor = Callable[[TensorKind, str], Tensor]
"""Gives the whole tensor, in fp32 on the CPU, for a kind and a parameter's name."""


class NonFiniteError(RuntimeError):
    """The step's loss or gradient is not finite; the weights were not touched. Raised on every rank alike."""

    def __init__(self, what: Literal["loss", "gradient norm"], value: float) -> None:
        super().__init__(f"{what} is {value}")
        self.what, self.value = what, value


class StepResult(NamedTuple):
    """`loss` is the mean over the whole batch, `gradient_norm` that of the whole model before clipping."""

    loss: float
    gradient_norm: float


class Engine(Protocol):
    """The model with its optimizer. Every method is called on all ranks together.

    Parameters go by the names of `trainer.model.transformer.Transformer`, whatever part of them a rank holds.
    """

    def step(self, micro_batches: Sequence[Tensor], rate: float) -> StepResult:
        """One step of the optimizer at the learning rate `rate`, on this data-parallel rank's micro-batches: rows
        [b, L + 1] of token ids, of which the first L are inputs and the last L targets.

        Returns the same on every rank. Raises NonFiniteError.
        """

    def nll(self, rows: Tensor) -> Tensor:
        """Cross-entropy in nats of the targets [b, L] of this data-parallel rank's rows [b, L + 1], in fp32. The
        ranks of one data-parallel rank give the same rows; different ones may give different rows of one shape."""

    def logits(self, ids_BL: Tensor) -> Tensor:
        """Logits [B, L, V] in fp32 on the leading rank; every rank gives the same ids, what the others get is not
        defined."""

    def gather(self, kind: TensorKind) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors in fp32 on the CPU by the parameter's name, in the model's order, on the leading rank.

        The other ranks get nothing, but must exhaust it as the leading one does.
        """

    def load(self, read: ReadTensor, step: int) -> None:
        """Take weights, and after step 0 the moments, as they were after `step` steps."""
