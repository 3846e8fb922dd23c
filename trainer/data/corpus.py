"""The prepared tokens as a run reads them, row by row; cheap to open, whatever their size."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.checkpoint import metadata
from trainer.config import TrainConfig
from trainer.data.config import SourceConfig
from trainer.data.indexed import Indexed
from trainer.data.order import Order, Row
from trainer.data.prepare import demand_same, manifest_of
from trainer.schema import ConfigError

Tokens = NDArray[Any]


class Span(NamedTuple):
    """Part of a row: from token `start` to before token `end` it is of this document."""

    document: str
    start: int
    end: int


class Corpus:
    """The prepared tokens. Rows hold sequence_length + 1 tokens, so that each gives inputs and targets.

    Documents are packed one after the other and attention is not masked between them. Steps are counted from 0 here:
    "the step after `step`" steps, whose line in the metrics is step + 1. Raises ConfigError if the folder does not
    hold the configuration's sources, or too few tokens for what it asks, or other data than a run that goes on from
    `checkpoint` began with.
    """

    def __init__(self, config: TrainConfig, folder: Path, checkpoint: Path | None = None) -> None:
        self.config = config
        self.folder = folder
        self.manifest = manifest_of(folder)
        self.row_size = config.data.sequence_length + 1
        self.sources = config.data.sources
        described = {source["name"]: source for source in self.manifest["sources"]}
        for source in self.sources:
            _check(source, described, folder)
        if self.manifest["tokenizer"]["vocabulary"] > config.data.tokenizer.vocabulary:
            raise ConfigError(
                f"data.tokenizer.vocabulary ({config.data.tokenizer.vocabulary}) must be at least the "
                f"{self.manifest['tokenizer']['vocabulary']} tokens of the tokenizer in {folder}."
            )
        if checkpoint:
            demand_same(self.manifest, metadata.read(checkpoint), folder)
        self._train = [self._open(source, "train", described) for source in self.sources]
        self._held_out = [self._open(source, "held_out", described) for source in self.sources]
        rows = [len(indexed.tokens) // self.row_size for indexed in self._train]
        self._weights = np.array([_weight(source, count) for source, count in zip(self.sources, rows, strict=True)])
        for source, count in zip(self.sources, rows, strict=True):
            if not count:
                raise ConfigError(
                    f"The source {source.name} has less than one row of {self.row_size} training tokens; give it more "
                    "text (a higher max_bytes), or take it out."
                )
        self._weights /= self._weights.sum()
        for source, held_out, wanted in zip(self.sources, self._held_out, self._evaluation_rows, strict=True):
            if len(held_out.tokens) < wanted * self.row_size:
                raise ConfigError(
                    f"training.evaluation_tokens asks for {wanted * self.row_size} held-out tokens of {source.name} "
                    f"and there are {len(held_out.tokens)}; lower it, or raise data.held_out."
                )
        self.order = Order(self._weights.tolist(), rows, config.training.seed)

    def batch(self, step: int, rank: int, ranks: int, micro: int) -> Tokens:
        """Rows [micro_batch, sequence_length + 1] of micro-batch `micro` on data-parallel rank `rank`, for the step
        after `step`."""
        size = self.config.training.micro_batch
        first = step * self.config.training.batch + (micro * ranks + rank) * size
        return np.stack([self.tokens(row) for row in self.order.rows(first, size)])

    def rows(self, step: int) -> list[Row]:
        """The rows of the step after `step`, in the order of its batch."""
        return self.order.rows(step * self.config.training.batch, self.config.training.batch)

    def tokens(self, row: Row) -> Tokens:
        """The row's tokens [sequence_length + 1]."""
        return self._cut(self._train[row.source], row.number)

    def documents(self, row: Row) -> list[Span]:
        """The documents that the row holds parts of, their ends of document included."""
        indexed = self._train[row.source]
        names = self._names[row.source]
        first = row.number * self.row_size
        at, spans = 0, []
        number, start = indexed.sequence_at(first)
        while at < self.row_size:
            end = start + int(indexed.sizes[number]) - first
            if end > at:
                spans.append(Span(names.document(number).tobytes().decode(), at, min(end, self.row_size)))
                at = end
            start += int(indexed.sizes[number])
            number += 1
        return spans

    @cached_property
    def evaluation(self) -> Tokens:
        """The held-out rows [E, sequence_length + 1] that every evaluation reads, sources mixed by weight."""
        wanted = zip(self._held_out, self._evaluation_rows, strict=True)
        return np.stack([self._cut(held_out, number) for held_out, count in wanted for number in range(count)])

    @cached_property
    def unigram_entropy(self) -> float:
        """Cross-entropy, in nats a token, of the evaluation's targets under the unigram frequencies of training.

        The counts of each source get one added to every token of the vocabulary, and are mixed by weight.
        """
        frequencies = np.zeros(self.config.vocabulary)
        for weight, source in zip(self._weights, self.sources, strict=True):
            found = np.load(self.folder / f"{source.name}.train.counts.npy")
            counts = np.ones(self.config.vocabulary)
            counts[: len(found)] += found[: len(counts)]
            frequencies += weight * counts / counts.sum()
        return float(-np.log(frequencies)[self.evaluation[:, 1:]].mean())

    @property
    def _evaluation_rows(self) -> list[int]:
        """Rows of each source in the evaluation: its share of evaluation_tokens, one at least."""
        total = self.config.training.evaluation_tokens // self.config.data.sequence_length
        return [max(1, round(total * weight)) for weight in self._weights]

    @cached_property
    def _names(self) -> list[Indexed]:
        return [Indexed(self.folder / f"{source.name}.train.names") for source in self.sources]

    def _cut(self, indexed: Indexed, number: int) -> Tokens:
        tokens = indexed.read(number * self.row_size, self.row_size).astype(np.int64)
        if tokens.max() >= self.config.vocabulary:
            raise ConfigError(
                f"{indexed.prefix}.bin holds the token {tokens.max()} and the vocabulary has {self.config.vocabulary}; "
                "prepare the data with the tokenizer of the configuration."
            )
        return tokens

    def _open(self, source: SourceConfig, split: str, described: Mapping[str, Any]) -> Indexed:
        indexed = Indexed(self.folder / f"{source.name}.{split}")
        if len(indexed.tokens) != described[source.name][split]["tokens"]:
            raise ConfigError(
                f"{indexed.prefix}.bin holds {len(indexed.tokens)} tokens and manifest.json says "
                f"{described[source.name][split]['tokens']}; prepare the data again."
            )
        return indexed


def _check(source: SourceConfig, described: Mapping[str, Any], folder: Path) -> None:
    if source.name not in described:
        raise ConfigError(
            f"The data in {folder} hold no source {source.name}, they hold {', '.join(described)}; prepare them again "
            "or take it out of data.sources."
        )
    if described[source.name]["licence"] != source.licence:
        raise ConfigError(
            f"The licence of {source.name} is {source.licence} and the data in {folder} say "
            f"{described[source.name]['licence']}; correct it, or prepare the data again."
        )


def _weight(source: SourceConfig, rows: int) -> float:
    """A source read for some epochs takes part by all the rows that makes."""
    return source.weight if source.weight is not None else source.share * rows
