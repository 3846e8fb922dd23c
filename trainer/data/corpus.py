"""The prepared tokens as a run reads them, row by row, through memory maps."""

from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer import stages as stages_of
from trainer.checkpoint import metadata
from trainer.config import TrainConfig
from trainer.data.config import SourceConfig
from trainer.data.encode import SPLITS
from trainer.data.indexed import Indexed
from trainer.data.order import Order, Row, RowOrder, StagedOrder, StoredOrder
from trainer.data.prepare import manifest_of, require_same_data
from trainer.schema import ConfigError

Tokens = NDArray[Any]

OPEN = 64
"""Pairs of files that are open at a time."""


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
        self.row_size = config.data.row_size
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
        for source in self.sources:
            for split in SPLITS:
                self._check_pair(source, split, described)
        tokens = {split: [described[source.name][split]["tokens"] for source in self.sources] for split in SPLITS}
        # Few pairs are open at a time: each takes file descriptors, and there may be thousands of sources.
        self._open = lru_cache(maxsize=OPEN)(lambda name: Indexed(self.folder / name))
        self._rows = [count // self.row_size for count in tokens["train"]]
        self._weights = np.array([_weight(*pair) for pair in zip(self.sources, self._rows, strict=True)])
        for source, count in zip(self.sources, self._rows, strict=True):
            if not count:
                raise ConfigError(
                    f"The source {source.name} has less than one row of {self.row_size} training tokens; give it more "
                    "text (a higher max_bytes), or take it out."
                )
        self._weights /= self._weights.sum()
        for source, count, wanted in zip(self.sources, tokens["held_out"], self._evaluation_rows, strict=True):
            if count < wanted * self.row_size:
                fix = "lower it, or raise data.held_out"
                if count < self.row_size:
                    fix = f"one row is {self.row_size}: give the source more text, or raise data.held_out"
                raise ConfigError(
                    f"training.evaluation_tokens asks for {wanted * self.row_size} held-out tokens of {source.name} "
                    f"and there are {count}; {fix}."
                )
        names, usual, seed = [source.name for source in self.sources], self._weights.tolist(), config.training.seed
        self.order: RowOrder = Order(usual, self._rows, seed)
        self._shares = self._weights
        if config.stages:
            weights = [stages_of.weights_in(stage, names, usual) for stage in config.stages]
            ends = [end * config.training.batch for end in config.stage_ends]
            self.order = StagedOrder(weights, ends, self._rows, seed)
            self._shares = np.array(stages_of.shares(config.stages, names, usual))
        if config.data.order == "stored":
            # Packed rows were held out from the end of their file, whose order goes on with them.
            kept_out = [
                count // self.row_size if "row" in described[source.name] else 0
                for source, count in zip(self.sources, tokens["held_out"], strict=True)
            ]
            self.order = StoredOrder([rows + more for rows, more in zip(self._rows, kept_out, strict=True)])

    @property
    def held_out_from(self) -> int | None:
        """The first step, counted from 1, that trains on rows that are held out: where packed rows are read as they are
        stored to the end of their file. None where the run has no such step."""
        settings = self.config.training
        if not isinstance(self.order, StoredOrder):
            return None
        place = self.order.first_beyond(self._rows)
        return place // settings.batch + 1 if place < settings.steps * settings.batch else None

    def readings(self) -> list[float]:
        """How often the run will read each row of each source, on average. In the stored order every source has epochs
        1 or is alone, so its weight is its share of the rows."""
        read = self.config.training.steps * self.config.training.batch * self._shares
        return [float(share / rows) for share, rows in zip(read, self._rows, strict=True)]

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
        return self._cut(*self._place(row, ""))

    def documents(self, row: Row) -> list[Span]:
        """The documents that the row has parts of, in order; a document includes its end-of-document token."""
        indexed, at = self._place(row, "")
        names, _ = self._place(row, ".names")
        first = at * self.row_size
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
        """The held-out rows [E, sequence_length + 1] that every evaluation reads, from each source by its weight in
        data.sources, whatever the stages read: the curve of the held-out loss goes on over their boundaries."""
        rows = [
            self._cut(self._pair(source, "held_out"), number)
            for source, count in enumerate(self._evaluation_rows)
            for number in range(count)
        ]
        return np.stack(rows)

    @property
    def evaluated(self) -> int:
        """How many losses of the evaluation's rows count."""
        return int(self.evaluation[:, 1:].size)

    def probe(self, rows: int, length: int) -> Tokens:
        """The first `length` tokens of some rows of the evaluation, [rows, length]."""
        return self.evaluation[:rows, :length].copy()

    @cached_property
    def unigram_entropy(self) -> float | None:
        """The cross-entropy, in nats a token, of the evaluation's targets under the unigram distribution of the
        training data: what a model reaches that knows only how frequent tokens are.

        Each source's counts are smoothed by adding one to every token (Laplace), and the sources mixed by weight.
        """
        return float(self._surprise[self.evaluation[:, 1:]].mean())

    @property
    def _surprise(self) -> NDArray[np.float64]:
        """The nats that each token costs under the unigram distribution of the training data, [vocabulary]."""
        frequencies: NDArray[np.float64] = np.zeros(self.config.vocabulary)
        for weight, source in zip(self._weights, self.sources, strict=True):
            found = np.load(self.folder / f"{source.name}.train.counts.npy")
            counts = np.ones(self.config.vocabulary)
            counts[: len(found)] += found[: len(counts)]
            frequencies += weight * counts / counts.sum()
        surprise: NDArray[np.float64] = -np.log(frequencies)
        return surprise

    @property
    def _evaluation_rows(self) -> list[int]:
        """The number of evaluation rows of each source: its share of evaluation_tokens, at least one."""
        total = self.config.training.evaluation_tokens // self.config.data.sequence_length
        return [max(1, round(total * weight)) for weight in self._weights]

    def _place(self, row: Row, suffix: str) -> tuple[Indexed, int]:
        """The pair of files of a row's split, or of its names with that suffix, and the row's number there."""
        beyond = row.number - self._rows[row.source]
        if beyond < 0:
            return self._pair(row.source, f"train{suffix}"), row.number
        return self._pair(row.source, f"held_out{suffix}"), beyond

    def _pair(self, source: int, kind: str) -> Indexed:
        return self._open(f"{self.sources[source].name}.{kind}")

    def _cut(self, indexed: Indexed, number: int) -> Tokens:
        tokens = indexed.read(number * self.row_size, self.row_size).astype(np.int64)
        if tokens.max() >= self.config.vocabulary:
            raise ConfigError(
                f"{indexed.prefix}.bin holds the token {tokens.max()} and the vocabulary has {self.config.vocabulary}; "
                "prepare the data with the tokenizer of the configuration."
            )
        return tokens

    def _check_pair(self, source: SourceConfig, split: str, described: Mapping[str, Any]) -> None:
        indexed = Indexed(self.folder / f"{source.name}.{split}")
        if indexed.count != described[source.name][split]["tokens"]:
            raise ConfigError(
                f"{indexed.prefix}.bin holds {indexed.count} tokens and manifest.json says "
                f"{described[source.name][split]['tokens']}; prepare the data again."
            )
        row = described[source.name].get("row", self.row_size)
        if row != self.row_size:
            raise ConfigError(
                f"The source {source.name} in {self.folder} holds packed rows of {row} tokens; set "
                f"data.sequence_length to {row * (self.config.data.sequence_length + 1) // self.row_size - 1}."
            )


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
