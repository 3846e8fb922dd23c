"""The prepared tokens as a run reads them, row by row, through memory maps."""

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
from trainer.data.prepare import manifest_of, require_same_data
from trainer.schema import ConfigError

Tokens = NDArray[Any]


class Span(NamedTuple):
    """The tokens [start, end) of a row, which are of this document."""

    document: str
    start: int
    end: int


class Corpus:
    """The rows of a prepared data folder. A row has sequence_length + 1 tokens, which give inputs and targets.

    Documents are packed one after the other, and attention is not masked between them. A batch is named by the number
    of steps before it: that of `step` is read by the step whose line in the metrics is step + 1.

    Raises ConfigError if the folder does not have the configuration's sources, has too few tokens, or has other data
    than the run began with that is resumed from `checkpoint`.
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
            require_same_data(self.manifest, metadata.read(checkpoint), folder)
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
        """Micro-batch `micro` [micro_batch, sequence_length + 1] of data-parallel rank `rank` of `ranks`, in the batch
        after `step` steps."""
        size = self.config.training.micro_batch
        first = step * self.config.training.batch + (micro * ranks + rank) * size
        return np.stack([self.tokens(row) for row in self.order.rows(first, size)])

    def rows(self, step: int) -> list[Row]:
        """The rows of the whole batch after `step` steps, in order."""
        return self.order.rows(step * self.config.training.batch, self.config.training.batch)

    def tokens(self, row: Row) -> Tokens:
        """The row's tokens [sequence_length + 1]."""
        return self._cut(self._train[row.source], row.number)

    def documents(self, row: Row) -> list[Span]:
        """The documents that the row has parts of, in order; a document includes its end-of-document token."""
        indexed = self._train[row.source]
        names = self._names[row.source]
        first = row.number * self.row_size
        reached, spans = 0, []
        number, start = indexed.sequence_at(first)
        while reached < self.row_size:
            end = start + int(indexed.sizes[number]) - first
            if end > reached:
                spans.append(Span(names.document(number).tobytes().decode(), reached, min(end, self.row_size)))
                reached = end
            start += int(indexed.sizes[number])
            number += 1
        return spans

    @cached_property
    def evaluation(self) -> Tokens:
        """The held-out rows [E, sequence_length + 1] that every evaluation reads, from each source by its weight."""
        wanted = zip(self._held_out, self._evaluation_rows, strict=True)
        return np.stack([self._cut(held_out, number) for held_out, count in wanted for number in range(count)])

    @cached_property
    def unigram_entropy(self) -> float:
        """The cross-entropy, in nats a token, of the evaluation's targets under the unigram distribution of the
        training data: what a model reaches that knows only how frequent tokens are.

        Each source's counts are smoothed by adding one to every token (Laplace), and the sources mixed by weight.
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
        """The number of evaluation rows of each source: its share of evaluation_tokens, at least one."""
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
    """The source's weight, or for a source with epochs the number of rows that its epochs have."""
    return source.weight if source.weight is not None else source.share * rows
