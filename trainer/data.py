"""Text to tokens: the tokenizer and one array of token ids a source and split, built once and then memory-mapped."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from trainer import sources, tokenizer
from trainer.config import ConfigError, TrainConfig
from trainer.order import Order, Row
from trainer.sources import Document

Tokens = NDArray[Any]


def prepare(config: TrainConfig, folder: Path, checkpoint: Path | None, progress: Callable[[str], None]) -> None:
    """Build `folder`, unless it stands already for the same settings; whole once it is there.

    With a checkpoint, its tokenizer is taken. Raises ConfigError if a source has no text.
    """
    fingerprint = _fingerprint(config)
    manifest = folder / "manifest.json"
    if manifest.exists() and json.loads(manifest.read_text(encoding="utf-8"))["fingerprint"] == fingerprint:
        return
    building = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)

    progress("reading the sources")
    documents = {source.name: sources.read(source) for source in config.data.sources}
    if checkpoint:
        bpe = tokenizer.load(checkpoint)
    else:
        texts = _first_bytes(documents, config)
        progress(f"training the tokenizer on {sum(len(text.encode()) for text in texts):,} bytes")
        bpe = tokenizer.train(texts, config.data.tokenizer.vocabulary)
    tokenizer.save(bpe, building, config.data.sequence_length)
    described = []
    for source in config.data.sources:
        progress(f"encoding {source.name}")
        split: dict[str, list[Document]] = {"train": [], "held_out": []}
        for document in documents[source.name]:
            split["held_out" if _is_held_out(document.name, config.data.held_out) else "train"].append(document)
        counts = {
            part: _encode(bpe, kept, building / f"{source.name}.{part}.bin", _kind(config))
            for part, kept in split.items()
        }
        described.append({**source.model_dump(exclude={"max_bytes"}), **counts})
    content = {"fingerprint": fingerprint, "python": python_version(), "sources": described}
    (building / "manifest.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)


class Corpus:
    """The prepared tokens. Rows hold sequence_length + 1 tokens, so that each gives inputs and targets.

    Raises ConfigError if a source holds too few tokens for what the configuration asks.
    """

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        self.config = config
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self.row_size = config.data.sequence_length + 1
        names = [source.name for source in config.data.sources]
        self._train = [_open(folder / f"{name}.train.bin", _kind(config)) for name in names]
        self._held_out = [_open(folder / f"{name}.held_out.bin", _kind(config)) for name in names]
        weights = np.array([source.weight for source in config.data.sources])
        self._weights = weights / weights.sum()
        for name, tokens, held_out, wanted in zip(
            names, self._train, self._held_out, self._evaluation_rows, strict=True
        ):
            if len(tokens) < self.row_size:
                raise ConfigError(
                    f"The source {name} holds {len(tokens)} training tokens, less than one row; raise its max_bytes."
                )
            if len(held_out) < wanted * self.row_size:
                raise ConfigError(
                    f"training.evaluation_tokens asks for {wanted * self.row_size} held-out tokens of {name} and there "
                    f"are {len(held_out)}; lower it, or raise data.held_out."
                )
        rows = [len(tokens) // self.row_size for tokens in self._train]
        self.order = Order(self._weights, rows, config.training.seed, config.training.batch * config.training.steps)

    def batch(self, step: int, rank: int, ranks: int, micro: int) -> Tokens:
        """Rows [micro_batch, sequence_length + 1] of micro-batch `micro` on `rank`, for the step after `step`."""
        size = self.config.training.micro_batch
        first = step * self.config.training.batch + (micro * ranks + rank) * size
        return np.stack([self._row(self._train, self.order[i]) for i in range(first, first + size)])

    @cached_property
    def evaluation(self) -> Tokens:
        """The held-out rows [E, sequence_length + 1] that every evaluation reads, sources mixed by weight."""
        wanted = enumerate(self._evaluation_rows)
        return np.stack([self._row(self._held_out, Row(s, i)) for s, count in wanted for i in range(count)])

    @property
    def unigram_entropy(self) -> float:
        """Cross-entropy, in nats a token, of the evaluation's targets under the unigram frequencies of training.

        The counts of each source get one added to every token of the vocabulary, and are mixed by weight.
        """
        size = self.config.vocabulary
        counts = [np.bincount(tokens, minlength=size) + 1.0 for tokens in self._train]
        frequencies = sum(weight * count / count.sum() for weight, count in zip(self._weights, counts, strict=True))
        return float(-np.log(frequencies)[self.evaluation[:, 1:]].mean())

    @property
    def _evaluation_rows(self) -> list[int]:
        """Rows of each source in the evaluation: its share of evaluation_tokens, one at least."""
        total = self.config.training.evaluation_tokens // self.config.data.sequence_length
        return [max(1, round(total * weight)) for weight in self._weights]

    def _row(self, arrays: list[Tokens], row: Row) -> Tokens:
        start = row.number * self.row_size
        return arrays[row.source][start : start + self.row_size].astype(np.int64)


def _fingerprint(config: TrainConfig) -> str:
    """What the prepared folder depends on."""
    settings = config.data.model_dump(exclude={"sequence_length"}) | {"python": python_version()}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _kind(config: TrainConfig) -> str:
    """The smallest unsigned integer that holds every token id, little-endian."""
    return "<u2" if config.vocabulary <= 2**16 else "<u4"


def _is_held_out(name: str, share: float) -> bool:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) < share * 2**64


def _first_bytes(documents: dict[Any, list[Document]], config: TrainConfig) -> list[str]:
    """Training documents for the tokenizer: each source gives its weight's share of train_bytes."""
    whole = sum(source.weight for source in config.data.sources)
    texts = []
    for source in config.data.sources:
        left = config.data.tokenizer.train_bytes * source.weight / whole
        for name, text in documents[source.name]:
            if left <= 0:
                break
            if not _is_held_out(name, config.data.held_out):
                texts.append(text)
                left -= len(text.encode())
    return texts


def _encode(bpe: Tokenizer, documents: list[Document], path: Path, kind: str) -> dict[str, Any]:
    """Write the documents' tokens, each document followed by its end, and describe them."""
    end = tokenizer.end_of_document(bpe)
    # A document that quotes the end-of-document token does not end there.
    bpe.encode_special_tokens = True
    encodings = bpe.encode_batch([document.text for document in documents], add_special_tokens=False)
    ids = np.array([token for encoding in encodings for token in (*encoding.ids, end)], dtype=kind)
    with path.open("wb") as file:
        file.write(ids.tobytes())
        file.flush()
        os.fsync(file.fileno())
    return {"documents": len(documents), "tokens": len(ids), "sha256": hashlib.sha256(ids.tobytes()).hexdigest()}


def _open(path: Path, kind: str) -> Tokens:
    return np.memmap(path, dtype=kind, mode="r") if path.stat().st_size else np.empty(0, dtype=kind)
