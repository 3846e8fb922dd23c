"""One preparation of data: what is decided over all sources, and the writing of their tokens."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from platform import python_version
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from trainer import files
from trainer.data import packed, readers, tokenizer
from trainer.data.config import DataConfig, DedupeConfig, SourceConfig
from trainer.data.encode import SPLITS, Encoded, Encoder, is_held_out, is_kept_out, split_end
from trainer.data.indexed import Indexed, Writer, token_type
from trainer.data.readers import Document, Say
from trainer.data.workers import Workers, batches
from trainer.schema import ConfigError

FEW = 1000
"""Documents of a source that are looked at to find out whether some can be held out whole."""
COPIED = 1 << 24
"""Numbers that are copied at once where parts are joined."""

Advance = Callable[[int], None]


class SourceWriter:
    """The files of a source, or of a part of one, in a folder. A context manager; leaving it without an error completes
    them."""

    def __init__(self, folder: Path, source: SourceConfig, data: DataConfig) -> None:
        self._counts_path = folder / f"{source.name}.train.counts.npy"
        self._counts = np.zeros(data.tokenizer.vocabulary, dtype=np.int64)
        self._text_bytes = dict.fromkeys(SPLITS, 0)
        self._stack = ExitStack()
        dtype = token_type(data.tokenizer.vocabulary)
        self._tokens = {
            split: self._stack.enter_context(Writer(folder / f"{source.name}.{split}", dtype)) for split in SPLITS
        }
        self._names = {
            split: self._stack.enter_context(Writer(folder / f"{source.name}.{split}.names", "u1")) for split in SPLITS
        }

    def add(self, results: Mapping[str, Encoded]) -> int:
        """Add a batch of documents, by split; returns its bytes of text."""
        for split, encoded in results.items():
            self._tokens[split].add(encoded.tokens, encoded.sizes)
            joined = np.frombuffer(b"".join(encoded.names), dtype=np.uint8)
            self._names[split].add(joined, np.array([len(name) for name in encoded.names], dtype=np.int32))
            self._text_bytes[split] += encoded.text_bytes
        self._counts += np.bincount(results["train"].tokens, minlength=len(self._counts))
        return sum(encoded.text_bytes for encoded in results.values())

    def add_part(self, folder: Path, source: SourceConfig, described: Mapping[str, Any]) -> None:
        """Add what another writer has written of the source in `folder` and described."""
        for split in SPLITS:
            for writer, suffix in ((self._tokens[split], ""), (self._names[split], ".names")):
                part = Indexed(folder / f"{source.name}.{split}{suffix}")
                for start in range(0, part.count, COPIED):
                    writer.add(part.read(start, min(COPIED, part.count - start)), np.empty(0, np.int32))
                for start in range(0, part.sequence_count, COPIED):
                    writer.add(np.empty(0, writer.dtype), np.asarray(part.sizes[start : start + COPIED]))
            self._text_bytes[split] += described[split]["bytes"]
        self._counts += np.load(folder / f"{source.name}.train.counts.npy")

    @property
    def described(self) -> dict[str, dict[str, Any]]:
        """Of each split the documents, the tokens, the bytes of text, and the SHA-256 of the tokens."""
        return {
            split: {
                "documents": writer.sequences,
                "tokens": writer.tokens,
                "bytes": self._text_bytes[split],
                "sha256": writer.sha256,
            }
            for split, writer in self._tokens.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(error, value, trace)
        if error is None:
            np.save(self._counts_path, self._counts)


class Build:
    """One preparation of data in `folder`. Calling it does all of it in this process and its workers."""

    def __init__(self, data: DataConfig, folder: Path, progress: Say, workers: int, advance: Advance) -> None:
        self._data, self._folder, self._progress = data, folder, progress
        self._workers, self._advance = workers, advance
        # By source: of each of its parts, which documents are near-duplicates.
        self._removed: dict[str, list[NDArray[np.bool_]]] = {}
        self._packed: set[str] = set()
        self._cut_at_ends: set[str] = set()

    def __call__(self, checkpoint: Path | None, mark: str) -> None:
        """Fill the folder."""
        bpe = self.decide(checkpoint)
        with self.encoders(bpe) as pool:
            self.complete(bpe, mark, lambda source: self.encode(source, pool, self._folder))

    def decide(self, checkpoint: Path | None) -> Tokenizer:
        """Find out what depends on all sources, and write the tokenizer, which is that of the checkpoint if there is
        one."""
        data = self._data
        given = tokenizer.load(checkpoint) if checkpoint else tokenizer_file(data) if data.tokenizer.file else None
        for each in data.sources:
            self._look_at(each, given)
        if data.dedupe:
            self._progress("looking for near-duplicates")
            self._find_duplicates(data.dedupe, given)
        bpe = given or self._train_tokenizer()
        self.write_tokenizer(bpe, checkpoint)
        return bpe

    def write_tokenizer(self, bpe: Tokenizer, checkpoint: Path | None) -> None:
        """Write the tokenizer, with what belongs to that of the checkpoint or of the configuration."""
        data = self._data
        file = data.root_folder / (data.tokenizer.file or "")
        origin = checkpoint or (file.parent if file.name == "tokenizer.json" else None)
        tokenizer.save(bpe, self._folder, data.sequence_length, data.tokenizer.end_of_document, origin)

    def write_decisions(self, path: Path) -> None:
        """Write what `decide` found out, besides the tokenizer, for other hosts."""
        removed = {name: [np.flatnonzero(part).tolist() for part in parts] for name, parts in self._removed.items()}
        counts = {name: [len(part) for part in parts] for name, parts in self._removed.items()}
        found = {"packed": sorted(self._packed), "cut_at_ends": sorted(self._cut_at_ends)}
        files.write_atomically(path, json.dumps(found | {"removed": removed, "documents": counts}))

    def read_decisions(self, path: Path) -> None:
        """Read what `write_decisions` wrote."""
        found = json.loads(path.read_text(encoding="utf-8"))
        self._packed, self._cut_at_ends = set(found["packed"]), set(found["cut_at_ends"])
        for name, counts in found["documents"].items():
            self._removed[name] = [np.zeros(count, dtype=bool) for count in counts]
            for part, numbers in zip(self._removed[name], found["removed"][name], strict=True):
                part[numbers] = True

    def encoders(self, bpe: Tokenizer) -> Workers[dict[str, Encoded]]:
        """The processes that encode documents."""
        return Workers(self._workers, Encoder, bpe.to_str(), self._data)

    def encode(
        self,
        source: SourceConfig,
        pool: Workers[dict[str, Encoded]],
        folder: Path,
        part: int | None = None,
        share: float | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Write the files of a source, or of the part of that number, into a folder; returns how they are described.

        `share` is what this host has done of its parts before, by their bytes, where it has several.
        """
        file = "" if part is None else f", file {part + 1}"
        alone = f"encoding {source.name}{file}{f', {share:.0%} done' if share else ''}"
        self._progress(readers.encoding(source, self._data) if share is None else alone)
        with SourceWriter(folder, source, self._data) as writer:
            for results in pool.map(batches(self._read(source, self._progress, part))):
                self._advance(writer.add(results))
        return writer.described

    def complete(self, bpe: Tokenizer, mark: str, write: Callable[[SourceConfig], dict[str, Any]]) -> None:
        """Have `write` write the files of each source and describe them, and write the manifest."""
        data = self._data
        sources = [self._entry(source, write(source)) for source in data.sources]
        if sources[0]["epochs"] is not None:
            whole = sum(source["epochs"] * source["train"]["tokens"] for source in sources)
            for source in sources:
                source["weight"] = round(source["epochs"] * source["train"]["tokens"] / whole, 6)
        content = {
            "fingerprint": mark,
            "python": python_version(),
            "tokenizer": {
                "sha256": tokenizer.digest(bpe),
                "vocabulary": tokenizer.size(bpe),
                "end_of_document": data.tokenizer.end_of_document,
            },
            "held_out": data.held_out,
            "dedupe": data.dedupe and data.dedupe.model_dump(),
            "sources": sources,
            "files": files.checksums(self._folder, self._folder.iterdir()),
        }
        (self._folder / "manifest.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for path in self._folder.iterdir():
            files.sync(path)

    def _entry(self, source: SourceConfig, described: dict[str, Any]) -> dict[str, Any]:
        """A source's entry of the manifest."""
        known = source.model_dump(mode="json", exclude={"name", "licence", "weight", "epochs"}, exclude_defaults=True)
        # A corpus lies elsewhere on each pool, and its name tells readers more.
        place = {"corpus": source.corpus} if source.corpus else known
        removed = self._removed.get(source.name)
        return {
            "name": source.name,
            "licence": source.licence,
            "weight": source.weight,
            "epochs": source.epochs,
            "place": place,
            **described,
            **({"row": self._data.sequence_length + 1} if source.name in self._packed else {}),
            "near_duplicates_removed": None if removed is None else int(sum(part.sum() for part in removed)),
        }

    def _look_at(self, source: SourceConfig, given: Tokenizer | None) -> None:
        """Find out whether a source is packed data, or has too few documents to hold whole ones out."""
        data = self._data
        if source.tokens is not None and given is not None:
            indexed = Indexed(data.root_folder / source.tokens)
            end = tokenizer.end_of_document(given, data.tokenizer.end_of_document)
            if packed.is_packed(source, indexed, end, data.packed, data.sequence_length):
                if data.dedupe:
                    raise ConfigError(
                        f"The source {source.name} holds packed rows, which data.dedupe would take out; take out "
                        "data.dedupe, or set data.packed to false to read it as documents."
                    )
                self._packed.add(source.name)
                length = data.sequence_length + 1
                self._progress(f"{source.name} holds packed rows of {length:,} tokens, which are read as rows")
                return
        if source.dataset is None and self._has_few_documents(source):
            self._cut_at_ends.add(source.name)
            self._progress(f"{source.name} has too few documents to hold some out: the end of each is held out")

    def _has_few_documents(self, source: SourceConfig) -> bool:
        """Whether the documents of a source, which are FEW at most, leave less than a row to train on or to hold
        out."""
        least, sizes = self._data.sequence_length + 1, {True: 0, False: 0}
        for number, document in enumerate(readers.read(source, self._data)):
            # A token has at least a byte.
            size = document.size if document.tokens is None else len(document.tokens)
            sizes[is_held_out(document.name, self._data.held_out)] += size
            if min(sizes.values()) >= least or number >= FEW:
                return False
        return sum(sizes.values()) >= 2 * least

    def _read(
        self, source: SourceConfig, say: Say = lambda message: None, part: int | None = None
    ) -> Iterator[Document]:
        """The documents of a source or of the part of that number, without near-duplicates, each in two where its end
        is held out."""
        for document in self._kept(source, say, part):
            if source.name in self._cut_at_ends:
                yield from split_end(document, self._data.held_out)
            else:
                yield document

    def _kept(self, source: SourceConfig, say: Say, part: int | None) -> Iterator[Document]:
        """The documents without near-duplicates. Raises ConfigError if the source has changed meanwhile."""
        if source.name in self._packed:
            indexed = Indexed(self._data.root_folder / str(source.tokens))
            yield from packed.rows(source, indexed, self._data.held_out)
            return
        parts = self._removed.get(source.name)
        removed = None if parts is None else np.concatenate(parts) if part is None else parts[part]
        path = None if part is None else readers.parts_of(source, self._data)[part]
        number = -1
        for number, document in enumerate(readers.read(source, self._data, say, path)):
            if removed is None:
                yield document
            elif number >= len(removed):
                _changed(source)
            elif not removed[number]:
                yield document
        if removed is not None and number + 1 != len(removed):
            _changed(source)

    def _find_duplicates(self, config: DedupeConfig, given: Tokenizer | None) -> None:
        from trainer.data import dedupe  # it brings SciPy along, which no rank that finds its data prepared needs

        counts: list[int] = []
        parts = [(source, part) for source in self._data.sources for part in readers.parts_of(source, self._data)]

        def documents() -> Iterator[Document]:
            for source, part in parts:
                counts.append(0)
                for document in readers.read(source, self._data, part=part):
                    counts[-1] += 1
                    yield document

        removed = dedupe.duplicates(
            config,
            documents(),
            lambda name: is_held_out(name, self._data.held_out),
            self._folder / ".signatures",
            given and given.to_str(),
            self._workers,
            self._advance,
        )
        for (source, _), found in zip(parts, np.split(removed, np.cumsum(counts)[:-1]), strict=True):
            self._removed.setdefault(source.name, []).append(found)

    def _train_tokenizer(self) -> Tokenizer:
        """Train the tokenizer on the first training documents of each source, up to its share of `train_bytes`."""
        settings = self._data.tokenizer
        whole = sum(source.share for source in self._data.sources)

        def texts() -> Iterator[str]:
            for source in self._data.sources:
                left = settings.train_bytes * source.share / whole
                for document in self._read(source):
                    if left <= 0:
                        break
                    if not is_kept_out(document, self._data.held_out):
                        yield document.text
                        left -= document.size

        self._progress(f"training the tokenizer on {settings.train_bytes:,} bytes")
        return tokenizer.train(texts(), settings.vocabulary)


def tokenizer_file(data: DataConfig) -> Tokenizer:
    """The tokenizer that the configuration names, checked against it. Raises ConfigError."""
    return tokenizer.load_checked(data.root_folder / str(data.tokenizer.file), data.tokenizer)


def _changed(source: SourceConfig) -> NoReturn:
    raise ConfigError(f"The source {source.name} changed while it was read; prepare the data again when it is at rest.")
