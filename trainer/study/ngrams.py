"""`ngrams`: how far the model is from the unigrams and bigrams of its training data.

Models learn statistics of increasing order (Belrose et al. 2024, "Neural networks learn statistics of increasing
complexity"): the divergence from each first falls, and rises again once the model has learnt more. N tokens, V
vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from trainer.data.corpus import Corpus
from trainer.evaluation.open_checkpoint import OpenCheckpoint
from trainer.evaluation.score import LOGITS_AT_ONCE, TOKENS_AT_ONCE
from trainer.study import texts
from trainer.study.analysis import Analysis, Study, Values

COUNTED_AT_ONCE = 1 << 20
"""Tokens whose bigrams are sorted at once."""


NAMES = ("unigram", "bigram")


class NGrams(Analysis):
    """`tokens` is the number of training tokens that are counted, at most: the first that the run reads, so that the
    sources have their weights. `rows` is the number of held-out rows on which the model is compared."""

    version: ClassVar[int] = 1
    tokens: int = Field(default=20_000_000, ge=1, le=10**12)
    rows: int = Field(default=32, ge=1, le=65_536)

    def reads(self, data: Path) -> dict[str, str]:
        return texts.digest(data)

    def measure(self, opened: OpenCheckpoint, study: Study) -> Values:
        """`unigram_kl` and `bigram_kl`, the mean of KL(n-gram ‖ model) in nats over the positions of held-out rows; the
        bigram is that of the token before. Positions after a token that was not counted have no bigram."""
        rows = torch.from_numpy(texts.held_out(opened, study, self.rows))[:, : opened.window + 1]
        contexts_N = rows[:, :-1].flatten()
        counted = study.shelf.take("counts")
        if counted is None:
            counted = self._count(texts.corpus(opened, study), np.unique(contexts_N.numpy()))
            study.shelf.put("counts", counted)
        unigram_V = counted["unigram"].double()
        unigram_V /= unigram_V.sum()
        bigrams = _Bigrams(counted["keys"], counted["counts"], len(unigram_V))
        unigram, bigram, with_bigram = 0.0, 0.0, 0
        at_once = max(1, TOKENS_AT_ONCE // rows.shape[1])
        for part in torch.split(rows, at_once):
            x_ND = opened.hidden(part[:, :-1].tolist()).flatten(0, 1)
            for x, context in zip(
                *(torch.split(whole, LOGITS_AT_ONCE) for whole in (x_ND, part[:, :-1].flatten())), strict=True
            ):
                log_NV = opened.logits(x).log_softmax(-1).cpu()
                unigram += _kl(unigram_V, log_NV)
                total, positions = bigrams.kl(context, log_NV)
                bigram, with_bigram = bigram + total, with_bigram + positions
            study.advance(len(part) / len(rows))
        return {
            "unigram_kl": unigram / len(contexts_N),
            "bigram_kl": bigram / with_bigram if with_bigram else None,
            "positions": len(contexts_N),
            "positions_with_bigram": with_bigram,
        }

    def summary(self, steps: Sequence[int], values: Sequence[Values]) -> Values:
        """The steps at which the model is nearest to the unigrams and to the bigrams."""
        return {f"{name}_nearest_step": _nearest(steps, [each[f"{name}_kl"] for each in values]) for name in NAMES}

    def _count(self, corpus: Corpus, contexts: NDArray[Any]) -> dict[str, Tensor]:
        """How often each token [V] is a target, and how often it follows one of `contexts`: sorted keys, context · V +
        token, with their counts."""
        vocabulary = corpus.config.vocabulary
        length = corpus.row_size - 1
        settings = corpus.config.training
        rows = min(settings.steps * settings.batch, -(-self.tokens // length))
        is_context = np.zeros(vocabulary, dtype=bool)
        is_context[contexts] = True
        unigram = np.zeros(vocabulary, dtype=np.int64)
        keys, counts = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        at_once = max(1, COUNTED_AT_ONCE // length)
        for start in range(0, rows, at_once):
            drawn = corpus.order.rows(start, min(at_once, rows - start))
            tokens = np.stack([corpus.tokens(row) for row in drawn])
            before, after = tokens[:, :-1].ravel(), tokens[:, 1:].ravel()
            unigram += np.bincount(after, minlength=vocabulary)
            here = is_context[before]
            found, times = np.unique(before[here] * vocabulary + after[here], return_counts=True)
            keys, where = np.unique(np.concatenate([keys, found]), return_inverse=True)
            counts = np.bincount(where, np.concatenate([counts, times]), len(keys)).astype(np.int64)
        return {
            name: torch.from_numpy(part) for name, part in (("unigram", unigram), ("keys", keys), ("counts", counts))
        }


def _nearest(steps: Sequence[int], divergences: Sequence[Any]) -> int | None:
    known = [(value, step) for step, value in zip(steps, divergences, strict=True) if value is not None]
    return min(known)[1] if known else None


class _Bigrams:
    """The distributions of the tokens after a context, from sorted keys, context · V + token, and their counts."""

    def __init__(self, keys: Tensor, counts: Tensor, vocabulary: int) -> None:
        self.tokens = keys % vocabulary
        # The tokens after context c are those from starts[c] to starts[c + 1].
        self.starts = torch.searchsorted(keys, torch.arange(vocabulary + 1) * vocabulary)
        sums = torch.cat([torch.zeros(1, dtype=torch.float64), counts.double().cumsum(0)])
        totals = sums[self.starts[1:]] - sums[self.starts[:-1]]
        self.shares = counts.double() / totals[keys // vocabulary]

    def kl(self, contexts_N: Tensor, log_NV: Tensor) -> tuple[float, int]:
        """The sum of KL(bigram ‖ model) over the contexts that were counted, and their number; the model's
        log-probabilities are [N, V]."""
        sizes_N = self.starts[contexts_N + 1] - self.starts[contexts_N]
        rows = torch.arange(len(contexts_N)).repeat_interleave(sizes_N)
        inside = torch.arange(len(rows)) - (sizes_N.cumsum(0) - sizes_N)[rows]
        places = self.starts[contexts_N][rows] + inside
        shares = self.shares[places]
        total = (shares * (shares.log() - log_NV[rows, self.tokens[places]])).sum()
        return float(total), int((sizes_N > 0).sum())


def _kl(shares_V: Tensor, log_NV: Tensor) -> float:
    """The sum of KL(shares ‖ model) over the positions, with the model's log-probabilities [N, V]."""
    there = shares_V > 0
    negative_entropy = float((shares_V[there] * shares_V[there].log()).sum())
    return len(log_NV) * negative_entropy - float((log_NV[:, there].double() @ shares_V[there]).sum())
