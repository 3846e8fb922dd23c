"""How likely a model finds given tokens, in sliding windows where they are more than it sees at once.

Each token is scored once. The first window holds as many tokens as the model sees; each later one moves on by
`stride` and scores those, after as many tokens of context as fit. A stride of the whole window gives the rolling
windows of lm-evaluation-harness.
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
"""Tokens of a forward pass, unless a number of rows is asked for."""

LOGITS_AT_ONCE = 1024
"""Places whose logits are in memory together."""

Tokens = tuple[int, ...]
Wanted = tuple[int, Tokens]
"""The number of a request, and targets that it wants scored."""


class Score(BaseModel):
    """What `score` prints. `nll` is the negative log-likelihood of all tokens together, in nats."""

    tokens: int
    bytes: int
    nll: float
    bits_per_byte: float


def windows(
    context: Sequence[int], continuation: Sequence[int], size: int, stride: int | None = None
) -> Iterator[tuple[Tokens, Tokens]]:
    """Pairs (inputs, targets) that score each token of `continuation` once, given `context`, which is not empty.

    The targets are what follows the last len(targets) of at most `size` inputs.
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
    """For each (context, continuation): the log-likelihood of the continuation in nats, and whether it is the
    likeliest at every token. `rows` is the size of a batch; `advance` hears which share of the work was done.

    Windows go in batches of similar length, and windows with the same inputs through the model once.
    """
    work: dict[Tokens, list[Wanted]] = defaultdict(list)
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
    """Score a text that is not empty, its first token after the end of a document; half a window a stride if None."""
    tokens = opened.encode(text)
    stride = min(stride or max(1, opened.window // 2), opened.window)
    [(total, _)] = log_likelihoods(opened, [([opened.end], tokens)], stride=stride, advance=advance)
    size = len(text.encode())
    return Score(tokens=len(tokens), bytes=size, nll=-total, bits_per_byte=-total / math.log(2) / size)


def read_text(path: Path) -> str:
    """A file's text, or that of the standard input for `-`. Raises ConfigError if there is none or it is not UTF-8."""
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        text = content.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"The text {path} cannot be read ({error.strerror}); give --text a file, or -.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"The text {path} is not UTF-8 at byte {error.start:,}; convert it first.") from error
    if not text:
        raise ConfigError(f"The text {path} is empty; give --text a file with at least one character.")
    return text


def _score(
    opened: OpenCheckpoint, batch: Sequence[tuple[Tokens, Sequence[Wanted]]]
) -> Iterator[tuple[int, float, bool]]:
    """For each target of a batch of windows: its request, its log-likelihood in nats, and whether it is the likeliest.

    Logits are made of the targets' places only, some at a time: with large vocabularies they are most of the memory.
    """
    requests: list[int] = []
    targets: list[int] = []
    places: list[tuple[int, int]] = []
    for row, (inputs, wanted) in enumerate(batch):
        for number, theirs in wanted:
            requests += [number] * len(theirs)
            targets += theirs
            places += [(row, place) for place in range(len(inputs) - len(theirs), len(inputs))]
    rows_N, columns_N = torch.tensor(places, device=opened.device).T
    x_ND = opened.hidden([inputs for inputs, _ in batch])[rows_N, columns_N]
    targets_N = torch.tensor(targets, device=opened.device)
    for start in range(0, len(targets), LOGITS_AT_ONCE):
        part = slice(start, start + LOGITS_AT_ONCE)
        logits_nV = opened.logits(x_ND[part])
        values_n = logits_nV.gather(1, targets_N[part, None])[:, 0] - logits_nV.logsumexp(dim=1)
        likeliest_n = logits_nV.argmax(dim=1) == targets_N[part]
        yield from zip(requests[part], values_n.tolist(), likeliest_n.tolist(), strict=True)
