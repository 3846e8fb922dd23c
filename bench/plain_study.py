"""One checkpoint evaluated and analysed in the plain way: transformers loads it, the harness's own model scores it.

`python -m bench.plain_study CHECKPOINT FIRST TASKS` prints its results as JSON; `bench.study` times it.
"""

import json
import math
import sys

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from bench.study import NAMES, ROWS
from trainer.study.paired_prompts import PairedPrompts


def main(folder: str, first: str, tasks: str) -> None:
    """Evaluate the tasks, measure the weights, and see which of two continuations is preferred."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.requires_grad_(False)
    harness = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=ROWS)
    manager = TaskManager(include_path=tasks, include_defaults=False)
    evaluated = lm_eval.simple_evaluate(model=harness, tasks=list(NAMES), task_manager=manager, log_samples=False)
    before = dict(AutoModelForCausalLM.from_pretrained(first, dtype=torch.float32).named_parameters())
    norm = distance = 0.0
    for name, weight in model.named_parameters():
        norm += float(weight.detach().double().norm()) ** 2
        distance += float((weight - before[name]).detach().double().norm()) ** 2
        if weight.ndim == 2:
            torch.linalg.svdvals(weight.detach().double())
    pairs = PairedPrompts().pairs
    preferred = 0
    for pair in pairs:
        likely, other = (_log_likelihood(model, tokenizer, pair.prompt + end) for end in (pair.preferred, pair.other))
        preferred += likely > other
    results = {f"{task} {key}": value for task, found in evaluated["results"].items() for key, value in found.items()}
    numbers = {key: value for key, value in results.items() if isinstance(value, float)}
    numbers |= {"norm": math.sqrt(norm), "distance": math.sqrt(distance), "preferred": preferred / len(pairs)}
    print(json.dumps(numbers))


@torch.no_grad()
def _log_likelihood(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, text: str) -> float:
    """Of a text after the beginning of a document, in nats."""
    tokens = torch.tensor([tokenizer.bos_token_id, *tokenizer.encode(text)])
    logits = model(tokens[None, :-1]).logits[0]
    return -float(functional.cross_entropy(logits, tokens[1:], reduction="sum"))


if __name__ == "__main__":
    main(*sys.argv[1:])
