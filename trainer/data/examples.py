"""The rows of instructions and preferences, as a run reads them: tokens, and beside them their marks."""

from functools import cached_property
from pathlib import Path

import numpy as np

from trainer.config import TrainConfig
from trainer.data.corpus import Corpus, Tokens
from trainer.data.indexed import Indexed
from trainer.data.order import Row


def open_corpus(config: TrainConfig, folder: Path, checkpoint: Path | None = None) -> Corpus:
    """The prepared data of a run, whatever their kind. Raises ConfigError."""
    kind = Corpus if config.data.kind == "text" else ExampleCorpus
    return kind(config, folder, checkpoint)


class ExampleCorpus(Corpus):
    """Rows [2, row_size] of tokens and of the marks that `trainer.data.instructions` describes."""

    def tokens(self, row: Row) -> Tokens:
        return self._marked(super().tokens(row), *self._place(row, ".marks"))

    @cached_property
    def evaluation(self) -> Tokens:
        rows = [
            self._marked(
                self._cut(self._pair(source, "held_out"), number), self._pair(source, "held_out.marks"), number
            )
            for source, count in enumerate(self._evaluation_rows)
            for number in range(count)
        ]
        return np.stack(rows)

    @property
    def evaluated(self) -> int:
        """See `Corpus.evaluated`; of preferences, each pair has one loss."""
        is_paired = self.config.data.kind == "preferences"
        return len(self.evaluation) if is_paired else int((self.evaluation[:, 1] % 2).sum())

    def probe(self, rows: int, length: int) -> Tokens:
        return self.evaluation[:rows, 0, :length].copy()

    @cached_property
    def unigram_entropy(self) -> float | None:
        """See `Corpus.unigram_entropy`, over what is trained on; None of preferences, whose loss is of pairs."""
        if self.config.data.kind == "preferences":
            return None
        return float(self._surprise[self.evaluation[:, 0][self.evaluation[:, 1] % 2 == 1]].mean())

    def _marked(self, tokens: Tokens, indexed: Indexed, number: int) -> Tokens:
        marks = indexed.read(number * self.row_size, self.row_size).astype(np.int64)
        return np.stack([tokens, marks])
