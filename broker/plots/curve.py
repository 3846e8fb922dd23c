"""What a picture of loss curves shows: plain values, which the bot sends to the process that draws."""

import hashlib
import pickle
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Evaluated:
    """What evaluations have measured: points of (tokens or step, value, standard error or
    None), and what they measure."""

    label: str
    points: Sequence[tuple[int, float, float | None]]


@dataclass(frozen=True)
class Panels:
    """What a run has measured on the checkpoints of another, a panel each; its points are of (step, value, error)."""

    title: str
    panels: Sequence[Evaluated]


@dataclass(frozen=True)
class Curve:
    """One run's picture.

    `loss` and `held_out` are points of (tokens, nats per token); `checkpoints` are the tokens after which each
    checkpoint was written; `unigram_entropy` is in nats per token. `below` are the points of the second panel, and
    `below_label` names what they measure. `before` is the loss of the runs that this one was forked from, up to the
    fork. With `log`, tokens have a logarithmic axis. Each of `evaluations` has a small panel.

    A model of the Hub, `is_model`, has no losses: in a comparison the last value of each of its `evaluations` is a
    level, and where there are several they are marked as well.
    """

    title: str
    loss: Sequence[tuple[int, float]]
    held_out: Sequence[tuple[int, float]]
    checkpoints: Sequence[int]
    unigram_entropy: float | None
    below: Sequence[tuple[int, float]] = ()
    below_label: str = ""
    before: Sequence[tuple[int, float]] = ()
    log: bool = False
    evaluations: Sequence[Evaluated] = ()
    is_model: bool = False

    @property
    def name(self) -> str:
        """The shortest name of the run: “7” where the title is “Run 7 · demo”."""
        return self.title.partition(" · ")[0].removeprefix("Run ")

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that change with whatever the picture shows."""
        return _digest(self)


@dataclass(frozen=True)
class Comparison:
    """Up to six runs in one picture, which shows the title and the loss of each.

    `others` are drawn behind them, in grey and without names.
    """

    curves: Sequence[Curve]
    others: Sequence[Curve] = ()

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that change with whatever the picture shows."""
        return _digest(self)


@dataclass(frozen=True)
class Standings:
    """The losses of the compared runs, in their order, all after the same number of `tokens`, in nats per token.

    `losses` are smoothed, `held_out` are measured at `held_out_tokens`, or between two measurements; None where a run
    has no such value.
    """

    tokens: int
    losses: Sequence[float | None]
    held_out_tokens: int
    held_out: Sequence[float | None]


def _digest(shown: Curve | Comparison) -> str:
    return hashlib.sha256(pickle.dumps(shown)).hexdigest()[:8]
