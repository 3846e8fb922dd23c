"""A checkpoint as a model of lm-evaluation-harness: the three kinds of request that its tasks make."""

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
"""Tokens of an answer at most, for a task that sets no limit."""


class CheckpointLM(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """A checkpoint of this trainer, also one that no class of transformers can express.

    `rows` is the batch size; where it is None, a batch has about TOKENS_AT_ONCE tokens. `advance` is told a stage and
    the share of it that was just done.
    """

    def __init__(self, opened: OpenCheckpoint, rows: int | None, advance: Callable[[str, float], None]) -> None:
        super().__init__()
        self._opened, self._rows, self._advance = opened, rows, advance

    @property
    def eot_token_id(self) -> int:
        return self._opened.end

    @property
    def prefix_token_id(self) -> int:
        return self._opened.begin

    @property
    def max_length(self) -> int:
        return self._opened.window

    @property
    def tokenizer_name(self) -> str:
        return str(self._opened.folder)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> Tokens:
        """The tokens of a text, with the special tokens that the tokenizer itself puts around every text unless the
        harness wants none, as the harness's own class for transformers has them."""
        return self._opened.encode(string, added=add_special_tokens is not False)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """The log-likelihood of each whole text in nats, in the harness's rolling windows."""
        pairs = [([self.prefix_token_id], self.tok_encode(request.args[0])) for request in requests]
        return [total for total, _ in self._log_likelihoods("texts", pairs)]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], Tokens, Tokens]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        return self._log_likelihoods("continuations", [(context, target) for _, context, target in requests])

    def _log_likelihoods(self, name: str, pairs: list[tuple[Tokens, Tokens]]) -> list[tuple[float, bool]]:
        return log_likelihoods(self._opened, pairs, rows=self._rows, advance=lambda share: self._advance(name, share))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The answer to each request. Requests with the same settings share batches, the longest first."""
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
        """Sample an answer to each context. Contexts are cut on the left so that the answer fits the window; an answer
        that is longer than the window leaves half of it to the context, and the window then slides."""
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
            # The harness seeds torch's default generator.
            torch.default_generator,
            # A token holds at least a byte, so this tail holds the stop text; 3 more for a character that it may cut.
            stopped=lambda ids: any(stop in self._opened.decode(ids[-len(stop.encode()) - 3 :]) for stop in until),
        )
        return [postprocess_generated_text(self._opened.decode(ids), until, None) for ids in written]
