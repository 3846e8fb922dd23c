"""What a picture of loss curves shows: plain values, which the bot sends to the process that draws."""

import hashlib
import pickle
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """One run's picture.

    `loss` and `held_out` are points of (tokens, nats per token); `checkpoints` are the tokens after which each
    checkpoint was written; `unigram_entropy` is in nats per token. `below` are the points of the second panel, and
    `below_label` names what they measure.
    """

    title: str
    loss: Sequence[tuple[int, float]]
    held_out: Sequence[tuple[int, float]]
    checkpoints: Sequence[int]
    unigram_entropy: float | None
    below: Sequence[tuple[int, float]] = ()
    below_label: str = ""

    @property
    def name(self) -> str:
        """The shortest name of the run: “7” where the title is “Run 7 · demo”."""
        return self.title.partition(" · ")[0].removeprefix("Run ")

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that change with whatever the picture shows."""
        return _digest(self)


MOST_CURVES = 6
"""The most curves that a reader, colour-blind or not, tells apart in one picture."""


@dataclass(frozen=True)
class Comparison:
    """Up to six runs in one picture, which shows the title and the loss of each.

    `others` are drawn behind them, in grey and without names. A `late` picture leaves out the heights from which the
    losses fall at the beginning, so that their ends can be told apart.
    """

    curves: Sequence[Curve]
    others: Sequence[Curve] = ()
    late: bool = False

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that change with whatever the picture shows."""
        return _digest(self)


def _digest(shown: Curve | Comparison) -> str:
    return hashlib.sha256(pickle.dumps(shown)).hexdigest()[:8]
