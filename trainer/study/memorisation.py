"""`memorisation`: which of the sequences that the run has read, and when, can be got out of the model word for word.

A sequence is k-extractible where greedy decoding after its first k tokens gives the rest (Carlini et al. 2023,
"Quantifying memorization across neural language models"; Biderman et al. 2023, "Emergent and predictable memorization
in large language models", with 32 and 32 tokens). The sequences are drawn from the order of the run, so it is known
how often and at which steps each was read; those that come later tell what a model says that it has not read.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from trainer.checkpoint import metadata
from trainer.data.corpus import Corpus
from trainer.data.order import Row
from trainer.evaluation.open_checkpoint import OpenCheckpoint
from trainer.evaluation.score import log_likelihoods
from trainer.schema import ConfigError
from trainer.study import texts
from trainer.study.analysis import Analysis, Study, Values

ROWS_AT_ONCE = 1 << 16


class Memorisation(Analysis):
    """`sequences` rows of the run's order, at most, drawn by `seed`, of which the first `prefix` tokens are given and
    the next `continuation` tokens asked for."""

    version: ClassVar[int] = 1
    sequences: int = Field(default=1024, ge=1, le=10**6)
    prefix: int = Field(default=32, ge=1, le=65_536)
    continuation: int = Field(default=32, ge=1, le=65_536)
    seed: int = Field(default=0, ge=0, lt=2**63)

    def reads(self, data: Path) -> dict[str, str]:
        return texts.digest(data)

    def measure(self, opened: OpenCheckpoint, study: Study) -> Values:
        """`extractible` is the share of the `seen` sequences, those that were read up to this step, that are
        extractible, `extractible_unseen` that of the others; `extractible_by_times` that of the sequences read so many
        times. Of each sequence: the step that read it first, how many had by now, and whether it is extractible, 1 or
        0."""
        drawn = study.shelf.take("sequences")
        if drawn is None:
            parent = metadata.read(opened.folder).get("parent")
            drawn = self._draw(texts.corpus(opened, study), parent["step"] if parent else 0)
            study.shelf.put("sequences", drawn)
        rows = drawn["tokens"].tolist()
        requests = [(row[: self.prefix], row[self.prefix :]) for row in rows]
        # Greedy decoding gives a continuation where each token of it is the likeliest one after those before.
        right = [greedy for _, greedy in log_likelihoods(opened, requests, advance=study.advance)]
        first = [int(steps.min()) for steps in _by_sequence(drawn)]
        times = [int((steps <= opened.step).sum()) for steps in _by_sequence(drawn)]
        by_times: dict[int, list[bool]] = defaultdict(list)
        for count, greedy in zip(times, right, strict=True):
            by_times[count].append(greedy)
        seen = [greedy for count, greedy in zip(times, right, strict=True) if count]
        return {
            "extractible": _share(seen),
            "extractible_unseen": _share(by_times[0]),
            "seen": len(seen),
            "unseen": len(by_times[0]),
            "extractible_by_times": {str(count): _share(found) for count, found in sorted(by_times.items()) if found},
            "sequences_by_times": {str(count): len(found) for count, found in sorted(by_times.items()) if found},
            "first_steps": first,
            "times": times,
            "is_extractible": [int(greedy) for greedy in right],
        }

    def _draw(self, corpus: Corpus, begun: int) -> dict[str, Tensor]:
        """The sequences: their `tokens` [S, prefix + continuation], and all readings of the run as pairs of a
        `sequence` and the `step` that read it, counted from 1. A fork has read what comes after the step `begun`; what
        its parent had read is not known here. Raises ConfigError."""
        if corpus.row_size < self.prefix + self.continuation:
            raise ConfigError(
                f"The rows have {corpus.row_size} tokens, and memorisation.prefix and memorisation.continuation ask "
                f"for {self.prefix + self.continuation}; set lower ones."
            )
        batch = corpus.config.training.batch
        own = range(begun * batch, corpus.config.training.steps * batch)
        places = sorted(random.Random(self.seed).sample(own, min(self.sequences, len(own))))
        numbers: dict[Row, int] = {}
        for place in places:
            numbers.setdefault(corpus.order.rows(place, 1)[0], len(numbers))
        sequences, steps = [], []
        for start in range(own.start, own.stop, ROWS_AT_ONCE):
            for at, row in enumerate(corpus.order.rows(start, min(ROWS_AT_ONCE, own.stop - start)), start):
                if row in numbers:
                    sequences.append(numbers[row])
                    steps.append(at // batch + 1)
        tokens = [corpus.tokens(row)[: self.prefix + self.continuation].tolist() for row in numbers]
        return {
            "tokens": torch.tensor(tokens),
            "sequence": torch.tensor(sequences),
            "step": torch.tensor(steps),
        }


def _by_sequence(drawn: dict[str, Tensor]) -> Sequence[Tensor]:
    """The steps that read each sequence."""
    order = drawn["sequence"].argsort(stable=True)
    sizes: list[int] = drawn["sequence"].bincount(minlength=len(drawn["tokens"])).tolist()
    return torch.split(drawn["step"][order], sizes)


def _share(found: Sequence[bool]) -> float | None:
    return sum(found) / len(found) if found else None
