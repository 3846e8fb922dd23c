"""The log-likelihood of given tokens under a model, in sliding windows where they are more than its window holds.

Each token is scored once. The first window scores as many tokens as it holds; each later window moves on by `stride`
tokens and scores those, after as many tokens of context as fit. A stride of the whole window gives the rolling windows
of lm-evaluation-harness.
"""

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from pydantic import BaseModel

from trainer.evaluation.open_checkpoint import OpenCheckpoint
from trainer.schema import ConfigError

TOKENS_AT_ONCE = 4096
"""Tokens of a forward pass, where no number of rows is given."""

LOGITS_AT_ONCE = 1024
"""Tokens whose logits are in memory together."""

Tokens = tuple[int, ...]
Targets = tuple[int, Tokens]
"""The number of a request, and the tokens of it that a window scores."""


class Score(BaseModel):
    """What the command `score` prints. `nll` is the negative log-likelihood of all tokens together, in nats."""

    tokens: int
    bytes: int
    nll: float
    bits_per_byte: float


def windows(
    context: Sequence[int], continuation: Sequence[int], size: int, stride: int | None = None
) -> Iterator[tuple[Tokens, Tokens]]:
    """Windows (inputs, targets) that together score each token of `continuation` once, after `context`, which must not
    be empty.

    The targets are the tokens that follow the last len(targets) inputs; a window has at most `size` inputs.
    """
    tokens = (*context, *continuation)
    start, end = len(context), min(len(context) + size, len(tokens))
    while start < len(tokens):
        yield tokens[max(0, end - size - 1) : end - 1], tokens[start:end]
        start, end = end, min(end + (stride or size), len(tokens))


def log_likelihoods(
    opened: OpenCheckpoint,
    requests: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    stride: int | None = None,
    rows: int | None = None,
    advance: Callable[[float], None] = lambda share: None,
) -> list[tuple[float, bool]]:
    """For each request (context, continuation) the log-likelihood of the continuation in nats, and whether each of its
    tokens is the likeliest one.

    Batches hold windows of similar length, `rows` of them; windows with the same inputs are computed once. `advance` is
    told the share of the work that was just done.
    """
    work: dict[Tokens, list[Targets]] = defaultdict(list)
    for number, (context, continuation) in enumerate(requests):
        for inputs, targets in windows(context, continuation, opened.window, stride):
            work[inputs].append((number, targets))
    totals, greedy = [0.0] * len(requests), [True] * len(requests)
    ordered = sorted(work, key=len, reverse=True)
    done = 0
    while done < len(ordered):
        batch = ordered[done : done + (rows or max(1, TOKENS_AT_ONCE // len(ordered[done])))]
        for number, value, likeliest in _score(opened, [(inputs, work[inputs]) for inputs in batch]):
            totals[number] += value
            greedy[number] &= likeliest
        done += len(batch)
        advance(len(batch) / len(ordered))
    return list(zip(totals, greedy, strict=True))


def score(opened: OpenCheckpoint, text: str, stride: int | None, advance: Callable[[float], None]) -> Score:
    """Score a text, which must not be empty. Its first token follows the one that begins a text; a stride of None is
    half a window."""
    tokens = opened.encode(text)
    stride = min(stride or max(1, opened.window // 2), opened.window)
    [(total, _)] = log_likelihoods(opened, [([opened.begin], tokens)], stride=stride, advance=advance)
    size = len(text.encode())
    return Score(tokens=len(tokens), bytes=size, nll=-total, bits_per_byte=-total / math.log(2) / size)


def read_text(path: Path) -> str:
    """The text of a file, or of standard input for `-`. Raises ConfigError if it is empty or not UTF-8."""
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        # A byte-order mark belongs to the file, as in the sources of training.
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"The text {path} cannot be read ({error.strerror}); give --text a file, or -.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"The text {path} is not UTF-8 at byte {error.start:,}; convert it first.") from error
    if not text:
        raise ConfigError(f"The text {path} is empty; give --text a file with at least one character.")
    return text


def _score(
    opened: OpenCheckpoint, batch: Sequence[tuple[Tokens, Sequence[Targets]]]
) -> Iterator[tuple[int, float, bool]]:
    """For each target of a batch of windows its request, its log-likelihood in nats, and whether it is the likeliest
    token.

    Logits are computed for the targets only, LOGITS_AT_ONCE at a time: with large vocabularies they are most of the
    memory.
    """
    requests: list[int] = []
    targets: list[int] = []
    positions: list[tuple[int, int]] = []
    for row, (inputs, wanted) in enumerate(batch):
        for number, theirs in wanted:
            requests += [number] * len(theirs)
            targets += theirs
            positions += [(row, column) for column in range(len(inputs) - len(theirs), len(inputs))]
    rows_N, columns_N = torch.tensor(positions, device=opened.device).T
    x_ND = opened.hidden([inputs for inputs, _ in batch])[rows_N, columns_N]
    targets_N = torch.tensor(targets, device=opened.device)
    for start in range(0, len(targets), LOGITS_AT_ONCE):
        part = slice(start, start + LOGITS_AT_ONCE)
        logits_nV = opened.logits(x_ND[part])
        values_n = logits_nV.gather(1, targets_N[part, None])[:, 0] - logits_nV.logsumexp(dim=1)
        likeliest_n = logits_nV.argmax(dim=1) == targets_N[part]
        yield from zip(requests[part], values_n.tolist(), likeliest_n.tolist(), strict=True)
