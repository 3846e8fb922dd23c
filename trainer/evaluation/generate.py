"""Generating text from a checkpoint: how the next token is sampled, and the loop over tokens."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer.contract import SAMPLE_FILE
from trainer.evaluation.open_checkpoint import OpenCheckpoint
from trainer.files import write_atomically


@dataclass(frozen=True)
class Sampling:
    """How the next token is sampled. Temperature 0 takes the likeliest token.

    Otherwise logits are divided by `temperature`, the `top_k` likeliest tokens are kept (Fan et al. 2018), and of these
    the fewest that hold `top_p` of the probability (nucleus sampling, Holtzman et al. 2020).
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float = 1.0

    def draw(self, logits_BV: Tensor, generator: torch.Generator) -> list[int]:
        """One token id for each row of logits [B, V]."""
        if self.temperature == 0:
            return _integers(logits_BV.argmax(dim=-1))
        logits_BV = logits_BV / self.temperature
        if self.top_k is not None and self.top_k < logits_BV.shape[-1]:
            least_B1 = logits_BV.topk(self.top_k).values[:, -1:]
            logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
        probabilities_BV = logits_BV.softmax(dim=-1)
        if self.top_p < 1:
            sorted_BV, order_BV = probabilities_BV.sort(dim=-1, descending=True)
            likelier_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
            sorted_BV = sorted_BV.masked_fill(likelier_BV >= self.top_p, 0)
            probabilities_BV = torch.zeros_like(sorted_BV).scatter(1, order_BV, sorted_BV)
        return _integers(torch.multinomial(probabilities_BV, 1, generator=generator)[:, 0])


def continuations(
    opened: OpenCheckpoint,
    contexts: list[list[int]],
    max_tokens: int,
    sampling: Sampling,
    generator: torch.Generator,
    stopped: Callable[[list[int]], bool] = lambda ids: False,
    advance: Callable[[int], None] = lambda tokens: None,
) -> list[list[int]]:
    """The token ids that the model writes after each context.

    A continuation ends before a token that ends a text, after `max_tokens`, or once `stopped` is true of its ids. The
    model sees the last tokens that fit its window. An empty context begins a document. `advance` is told 1 for each
    token that all rows have.
    """
    texts = [list(context) or [opened.begin] for context in contexts]
    written: list[list[int]] = [[] for _ in contexts]
    going = list(range(len(contexts)))
    for _ in range(max_tokens):
        if not going:
            break
        logits_BV = opened.next_logits([texts[row][-opened.window :] for row in going])
        drawn = dict(zip(going, sampling.draw(logits_BV, generator), strict=True))
        going = [row for row in going if drawn[row] not in opened.ends]
        for row in going:
            texts[row].append(drawn[row])
            written[row].append(drawn[row])
        going = [row for row in going if not stopped(written[row])]
        advance(1)
    return written


def generate(
    opened: OpenCheckpoint,
    prompt: str,
    out: Path,
    max_tokens: int,
    sampling: Sampling,
    seed: int,
    advance: Callable[[int], None] = lambda tokens: None,
) -> str:
    """Continue `prompt` and write `sample.json` into the folder `out`. Special tokens in the prompt count as such."""
    generator = torch.Generator().manual_seed(seed)
    context = opened.encode_prompt(prompt)
    [ids] = continuations(opened, [context], max_tokens, sampling, generator, advance=advance)
    text = opened.decode(ids)
    sample = {"prompt": prompt, "text": text, "tokens": len(ids), "checkpoint_step": opened.step}
    write_atomically(out / SAMPLE_FILE, json.dumps(sample, ensure_ascii=False, indent=2) + "\n")
    return text


def _integers(values_B: Tensor) -> list[int]:
    integers: list[int] = values_B.tolist()
    return integers
