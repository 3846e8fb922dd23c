"""`induction`: does the model learn from its context, and which heads look for what came before?

Olsson et al. 2022, "In-context learning and induction heads": the in-context score is the loss of token 500 less that
of token 50, and the prefix-matching score of a head how much of its attention, on random tokens that repeat, goes to
the tokens that followed the present token before.
"""

import math
import statistics
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from trainer.data import tokenizer
from trainer.evaluation.open_checkpoint import OpenCheckpoint
from trainer.evaluation.score import TOKENS_AT_ONCE
from trainer.schema import ConfigError
from trainer.study import texts
from trainer.study.analysis import Analysis, Study, Values
from trainer.study.attention import each_pattern

LATE, EARLY = 500, 50
BLOCK, REPEATS = 25, 4
"""Random tokens, and how often they come."""
SHORTEST = 3


class Induction(Analysis):
    """`rows` is the number of held-out rows that the in-context score reads, at most; `sequences` that of sequences of
    random tokens, which are drawn by `seed`."""

    version: ClassVar[int] = 1
    rows: int = Field(default=256, ge=1, le=65_536)
    sequences: int = Field(default=8, ge=1, le=256)
    seed: int = Field(default=0, ge=0, lt=2**63)

    def reads(self, data: Path) -> dict[str, str]:
        return texts.digest(data)

    def measure(self, opened: OpenCheckpoint, study: Study) -> Values:
        """`in_context_score` in nats, with its standard error over the rows, and `prefix_matching` by layer and head.

        A row shorter than 500 tokens gives its last token and the one at a tenth of that.
        """
        found = self._in_context(opened, study)
        scores = self._prefix_matching(opened)
        study.advance(0.5)
        return {
            **found,
            "prefix_matching_max": max(map(max, scores)),
            "prefix_matching": scores,
        }

    def _in_context(self, opened: OpenCheckpoint, study: Study) -> dict[str, float]:
        rows = torch.from_numpy(texts.held_out(opened, study, self.rows))
        late = min(LATE, rows.shape[1] - 1, opened.window)
        early = max(1, late * EARLY // LATE)
        differences: list[float] = []
        losses: list[float] = []
        for part in torch.split(rows, max(1, TOKENS_AT_ONCE // late)):
            x_BLD = opened.hidden(part[:, :late].tolist())
            nll = {at: _nll(opened, x_BLD[:, at - 1], part[:, at]) for at in (early, late)}
            differences += (nll[late] - nll[early]).tolist()
            losses += nll[late].tolist()
            study.advance(0.5 * len(part) / len(rows))
        error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
        return {
            "in_context_score": statistics.fmean(differences),
            "in_context_score_stderr": error,
            "late_loss": statistics.fmean(losses),
            "late_token": late,
            "early_token": early,
        }

    def _prefix_matching(self, opened: OpenCheckpoint) -> list[list[float]]:
        """The score of each head, [layers][heads], between 0 and 1."""
        length = min(BLOCK, (opened.window - 1) // REPEATS)
        if length < SHORTEST:
            raise ConfigError(
                f"The context of {opened.folder} is {opened.window} tokens, and prefix matching needs "
                f"{SHORTEST * REPEATS + 1}; leave induction out."
            )
        generator = torch.Generator().manual_seed(self.seed)
        special = {opened.begin, *opened.ends}
        plain = torch.tensor([token for token in range(tokenizer.size(opened.tokenizer)) if token not in special])
        rows = []
        for _ in range(self.sequences):
            block = plain[torch.randperm(len(plain), generator=generator)[:length]]
            rows.append([opened.begin, *block.repeat(REPEATS).tolist()])
        scores: list[list[float]] = []

        def take(layer: int, pattern_BHLL: Tensor) -> None:
            scores.append(_after_the_same(pattern_BHLL, length).mean(0).tolist())

        each_pattern(opened, rows, take)
        return scores


def _after_the_same(pattern_BHLL: Tensor, length: int) -> Tensor:
    """The mean attention [B, H], of the tokens of all copies but the first, to the tokens right after the same token in
    earlier copies; copies of `length` tokens follow one token that begins the text."""
    size = pattern_BHLL.shape[-1]
    total = torch.zeros(pattern_BHLL.shape[:2], device=pattern_BHLL.device)
    for query in range(1 + length, size):
        keys = torch.arange(query - length + 1, 1, -length, device=pattern_BHLL.device)
        total += pattern_BHLL[:, :, query, keys].sum(-1)
    return total / (size - 1 - length)


def _nll(opened: OpenCheckpoint, x_ND: Tensor, targets_N: Tensor) -> Tensor:
    """The losses [N] in nats of targets [N] after hidden states [N, D]."""
    logits_NV = opened.logits(x_ND)
    return torch.nn.functional.cross_entropy(logits_NV, targets_N.to(opened.device), reduction="none").cpu()
