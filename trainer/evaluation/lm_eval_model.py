"""Our model as lm-evaluation-harness sees one: the three questions that its tasks ask."""

from collections.abc import Callable
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from trainer.evaluation.generate import Sampling, continuations
from trainer.evaluation.open_checkpoint import OpenCheckpoint
from trainer.evaluation.score import TOKENS_AT_ONCE, log_likelihoods

Tokens = list[int]
MAX_TOKENS = 256
"""Tokens of an answer, for a task that does not say."""


class CheckpointLM(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """A checkpoint of ours, whether or not a class of transformers can express it.

    `rows` is the size of a batch, TOKENS_AT_ONCE otherwise; `advance` hears which share of the present requests is
    done.
    """

    def __init__(self, opened: OpenCheckpoint, rows: int | None, advance: Callable[[str, float], None]) -> None:
        super().__init__()
        self._opened, self._rows, self._advance = opened, rows, advance

    @property
    def eot_token_id(self) -> int:
        return self._opened.end

    @property
    def max_length(self) -> int:
        return self._opened.window

    @property
    def tokenizer_name(self) -> str:
        return str(self._opened.folder)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> Tokens:
        """The tokens of a text and none else: the end of a document comes before it only where nothing else does."""
        return self._opened.encode(string)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """The log-likelihood of each whole text, in the harness's rolling windows."""
        pairs = [([self.prefix_token_id], self.tok_encode(request.args[0])) for request in requests]
        return [total for total, _ in self._log_likelihoods("texts", pairs)]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], Tokens, Tokens]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        return self._log_likelihoods("continuations", [(context, target) for _, context, target in requests])

    def _log_likelihoods(self, name: str, pairs: list[tuple[Tokens, Tokens]]) -> list[tuple[float, bool]]:
        return log_likelihoods(self._opened, pairs, rows=self._rows, advance=lambda share: self._advance(name, share))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Answers, the longest questions first, together where they are to be sampled in the same way."""
        answers: dict[int, str] = {}
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        for numbers in groups.values():
            encoded = {number: self.tok_encode(requests[number].args[0]) for number in numbers}
            left = sorted(numbers, key=lambda number: len(encoded[number]), reverse=True)
            rows = self._rows or max(1, TOKENS_AT_ONCE // self.max_length)
            for batch in (left[start : start + rows] for start in range(0, len(left), rows)):
                texts = self._answers([encoded[number] for number in batch], requests[batch[0]].args[1])
                answers.update(zip(batch, texts, strict=True))
                self._advance("answers", len(batch) / len(requests))
        return [answers[number] for number in range(len(requests))]

    def _answers(self, contexts: list[Tokens], settings: dict[str, Any]) -> list[str]:
        """Contexts are cut on the left so that the answer fits the window; where the answer alone does not, to half
        a window, which then slides."""
        wanted: dict[str, Any] = dict(normalize_gen_kwargs(settings, MAX_TOKENS))
        until = [stop for stop in handle_stop_sequences(wanted.get("until"), eos=None) if stop]
        max_tokens = int(wanted["max_gen_toks"])
        room = self.max_length - max_tokens
        kept = room if room > 0 else max(1, self.max_length // 2)
        sampling = Sampling(
            temperature=wanted["temperature"] if wanted["do_sample"] else 0.0,
            top_k=wanted.get("top_k") or None,
            top_p=wanted.get("top_p") or 1.0,
        )
        written = continuations(
            self._opened,
            [context[-kept:] for context in contexts],
            max_tokens,
            sampling,
            # The harness seeds torch's own generator.
            torch.default_generator,
            # A token holds a byte at least, and the tail may begin within a character.
            stopped=lambda ids: any(stop in self._opened.decode(ids[-len(stop.encode()) - 3 :]) for stop in until),
        )
        return [postprocess_generated_text(self._opened.decode(ids), until, None) for ids in written]
