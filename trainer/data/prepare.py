"""Preparing data: from the sources to a folder with a tokenizer and every document as tokens, train and held out.

The folder has `manifest.json`, `tokenizer.json`, and for each source and split `SOURCE.SPLIT.bin/.idx` (the tokens,
each document followed by the end-of-document token), `SOURCE.SPLIT.names.bin/.idx` (the documents' names as UTF-8 bytes
in the same format) and, for train, `SOURCE.train.counts.npy` (how often each token occurs). Rows of packed data are
written as they are, without that token; the manifest says of what length, as `row`.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from platform import python_version
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from trainer import files
from trainer.checkpoint import metadata
from trainer.config import TrainConfig
from trainer.contract import DATA_FOLDER
from trainer.data import packed, readers, tokenizer
from trainer.data.config import PLACES, DataConfig, DedupeConfig, SourceConfig
from trainer.data.encode import SPLITS, Encoded, Encoder, is_held_out, is_kept_out, split_end
from trainer.data.indexed import Indexed, Writer, token_type
from trainer.data.readers import Document
from trainer.data.workers import Workers, batches
from trainer.schema import ConfigError

FORMAT = 2
CHECKED_BYTES = 1 << 30
"""Larger files are not read again at each start of a run to verify them: that would take too long."""

FEW = 1000
"""Documents of a source that are looked at to find out whether some can be held out whole."""

Say = Callable[[str], None]
Advance = Callable[[int], None]


def folder_of(config: TrainConfig, out: Path) -> Path:
    """The prepared data folder of the run in `out`: the configured one, or the run's own."""
    return Path(config.data.prepared) if config.data.prepared else out / DATA_FOLDER


def ensure(config: TrainConfig, out: Path, checkpoint: Path | None, progress: Say, is_fork: bool = False) -> Path:
    """The prepared data folder of the run in `out`, verified; the run's own is prepared where that is not done yet.

    `checkpoint` is what the run starts from, `is_fork` whether it forks it. Raises ConfigError if a source cannot be
    read, if the folder's tokenizer is not that of the configuration and of the checkpoint, or, unless the run is a
    fork, if the text is not what the checkpoint was trained on.
    """
    folder = folder_of(config, out)
    if not config.data.prepared:
        resumed = metadata.read(checkpoint) if checkpoint and not is_fork else None
        prepare(config.data, folder, checkpoint, progress, resumed=resumed)
    _check_tokenizer(config.data, folder, checkpoint)
    verify(folder)
    return folder


def prepare(
    data: DataConfig,
    folder: Path,
    checkpoint: Path | None,
    progress: Say,
    workers: int = 1,
    advance: Advance = lambda size: None,
    resumed: Mapping[str, Any] | None = None,
) -> None:
    """Prepare data in `folder`, unless it was prepared from the same settings and files. The folder appears when it is
    whole.

    With a checkpoint its tokenizer is used, and with the metadata of a `resumed` checkpoint the data must be the same.
    The bytes written are the same for any number of workers. `progress` is told the name of each stage, `advance` the
    bytes of each batch. Raises ConfigError if a source cannot be read or has no text.
    """
    _check_found(data)
    mark = fingerprint(data)
    if is_prepared(folder, mark) and (checkpoint is None or _digest(folder) == _digest(checkpoint)):
        return
    if folder.exists() and not (folder / "manifest.json").is_file() and any(folder.iterdir()):
        raise ConfigError(f"{folder} holds something else than prepared data; give --out another folder.")
    building = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        _Build(data, building, progress, workers, advance)(checkpoint, mark)
        if resumed:
            require_same_data(manifest_of(building), resumed, folder)
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
        files.sync(folder.parent)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared data folder. Raises ConfigError if the folder is not one."""
    try:
        content: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        content["fingerprint"], content["tokenizer"]["sha256"], content["tokenizer"]["vocabulary"], content["files"]
        for source in content["sources"]:
            source["name"], source["licence"], [(source[split]["tokens"], source[split]["sha256"]) for split in SPLITS]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{folder} holds no prepared data; prepare it with `python -m trainer data prepare CONFIG --out {folder}`."
        ) from None
    return content


def verify(folder: Path, prefix: str = "", largest: float = CHECKED_BYTES) -> None:
    """Raise ConfigError unless the prepared files whose names begin with `prefix` have their checksums.

    Files of more than `largest` bytes are only looked for; `data inspect` reads them.
    """
    written = {name: hashed for name, hashed in manifest_of(folder)["files"].items() if name.startswith(prefix)}
    if found := files.find_damage(folder, written, largest):
        raise ConfigError(f"The data in {folder} are damaged: {found}; fetch that file again, or prepare them again.")


def require_same_data(manifest: Mapping[str, Any], resumed: Mapping[str, Any], folder: Path) -> None:
    """Raise ConfigError unless the data in `folder` are those that a checkpoint was trained on, by its metadata
    `resumed`. A checkpoint that was imported was trained on unknown data, and fits any."""
    then = resumed.get("data") or {}
    before = {source["name"]: source for source in then.get("sources", [])}
    if not before:
        return
    if manifest["tokenizer"]["sha256"] != then["tokenizer"]["sha256"]:
        raise ConfigError(
            f"The tokenizer of the data in {folder} is not the checkpoint's; prepare the data with the checkpoint's "
            "tokenizer.json."
        )
    for source in manifest["sources"]:
        theirs = before.get(source["name"], {})
        if any(source[split]["sha256"] != theirs.get(split, {}).get("sha256") for split in SPLITS):
            fix = "give the same files"
            if "builtin" in source["place"]:
                fix = f"resume on the Python that the checkpoint was made with, {then['python']}"
            raise ConfigError(f"The text of the source {source['name']} is not the checkpoint's; {fix}.")


def _check_found(data: DataConfig) -> None:
    """Raise ConfigError where a corpus or the tokenizer is known by its name alone."""
    for source in data.sources:
        if all(getattr(source, key) is None for key in PLACES):
            raise ConfigError(
                f"The source {source.name} is the corpus {source.corpus}, and where it lies is not said; give it a "
                "path, tokens or a dataset."
            )
    if data.tokenizer.name is not None and data.tokenizer.file is None:
        raise ConfigError(
            f"Where the tokenizer {data.tokenizer.name} lies is not said; give data.tokenizer.file, or take out its "
            "name for a tokenizer that is trained on the sources."
        )


def is_prepared(folder: Path, mark: str) -> bool:
    """Whether the folder was prepared from the settings and files of the fingerprint `mark`."""
    try:
        return bool(manifest_of(folder)["fingerprint"] == mark)
    except ConfigError:
        return False


def fingerprint(data: DataConfig) -> str:
    """A SHA-256 over what the prepared data depend on: settings, names, sizes and times of files, and for builtin text
    the version of Python. Raises ConfigError if a source has no file."""
    settings = data.model_dump(mode="json", exclude={"sequence_length", "prepared", "root", "order", "corpus"})
    for named, key in [(settings["tokenizer"], "name"), *((source, "corpus") for source in settings["sources"])]:
        del named[key]
    settings["format"] = FORMAT
    if data.packed is None:
        # Data that were prepared before there was such a key stay what they are.
        del settings["packed"]
    root = Path(data.root or ".")
    texts = [path for source in data.sources for path in readers.files_of(source, root) if path.is_file()]
    settings["files"] = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in texts]
    if data.tokenizer.file:
        settings["tokenizer_sha256"] = tokenizer.digest(_file_of(data))
    if any(source.builtin for source in data.sources):
        settings["python"] = python_version()
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


class _Build:
    """One preparation of data. Calling it fills the folder."""

    def __init__(self, data: DataConfig, folder: Path, progress: Say, workers: int, advance: Advance) -> None:
        self._data, self._folder, self._progress = data, folder, progress
        self._workers, self._advance = workers, advance
        self._removed: dict[str, NDArray[np.bool_]] = {}
        self._packed: set[str] = set()
        self._cut_at_ends: set[str] = set()

    def __call__(self, checkpoint: Path | None, mark: str) -> None:
        data = self._data
        given = tokenizer.load(checkpoint) if checkpoint else _file_of(data) if data.tokenizer.file else None
        for each in data.sources:
            self._look_at(each, given)
        if data.dedupe:
            self._progress("looking for near-duplicates")
            self._find_duplicates(data.dedupe, given)
        bpe = given or self._train_tokenizer()
        file = Path(data.root or ".") / (data.tokenizer.file or "")
        origin = checkpoint or (file.parent if file.name == "tokenizer.json" else None)
        tokenizer.save(bpe, self._folder, data.sequence_length, data.tokenizer.end_of_document, origin)
        with Workers(self._workers, Encoder, bpe.to_str(), data) as pool:
            sources = [self._write(source, pool) for source in data.sources]
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

    def _look_at(self, source: SourceConfig, given: Tokenizer | None) -> None:
        """Find out whether a source is packed data, or has too few documents to hold whole ones out."""
        data = self._data
        if source.tokens is not None and given is not None:
            indexed = Indexed(Path(data.root or ".") / source.tokens)
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

    def _read(self, source: SourceConfig, say: Say = lambda message: None) -> Iterator[Document]:
        """The source's documents without near-duplicates, each in two where its end is held out."""
        for document in self._kept(source, say):
            if source.name in self._cut_at_ends:
                yield from split_end(document, self._data.held_out)
            else:
                yield document

    def _kept(self, source: SourceConfig, say: Say) -> Iterator[Document]:
        """The source's documents without near-duplicates. Raises ConfigError if the source has changed meanwhile."""
        if source.name in self._packed:
            indexed = Indexed(Path(self._data.root or ".") / str(source.tokens))
            yield from packed.rows(source, indexed, self._data.held_out)
            return
        removed = self._removed.get(source.name)
        number = -1
        for number, document in enumerate(readers.read(source, self._data, say)):
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

        def documents() -> Iterator[Document]:
            for source in self._data.sources:
                counts.append(0)
                for document in readers.read(source, self._data):
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
        parts = np.split(removed, np.cumsum(counts)[:-1])
        self._removed = {source.name: part for source, part in zip(self._data.sources, parts, strict=True)}

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

    def _write(self, source: SourceConfig, pool: Workers[dict[str, Encoded]]) -> dict[str, Any]:
        """Write a source's files. Returns its entry of the manifest."""
        self._progress(f"encoding {source.name}")
        counts = np.zeros(self._data.tokenizer.vocabulary, dtype=np.int64)
        text_bytes = dict.fromkeys(SPLITS, 0)
        with ExitStack() as stack:
            prefixes = {split: self._folder / f"{source.name}.{split}" for split in SPLITS}
            dtype = token_type(self._data.tokenizer.vocabulary)
            tokens = {split: stack.enter_context(Writer(prefix, dtype)) for split, prefix in prefixes.items()}
            names = {
                split: stack.enter_context(Writer(prefix.with_name(f"{prefix.name}.names"), "u1"))
                for split, prefix in prefixes.items()
            }
            for results in pool.map(batches(self._read(source, self._progress))):
                for split, encoded in results.items():
                    tokens[split].add(encoded.tokens, encoded.sizes)
                    joined = np.frombuffer(b"".join(encoded.names), dtype=np.uint8)
                    names[split].add(joined, np.array([len(name) for name in encoded.names], dtype=np.int32))
                    text_bytes[split] += encoded.text_bytes
                counts += np.bincount(results["train"].tokens, minlength=len(counts))
                self._advance(sum(encoded.text_bytes for encoded in results.values()))
        np.save(self._folder / f"{source.name}.train.counts.npy", counts)
        described = {
            split: {
                "documents": writer.sequences,
                "tokens": writer.tokens,
                "bytes": text_bytes[split],
                "sha256": writer.sha256,
            }
            for split, writer in tokens.items()
        }
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
            "near_duplicates_removed": None if removed is None else int(removed.sum()),
        }


def _file_of(data: DataConfig) -> Tokenizer:
    return tokenizer.load_checked(Path(data.root or ".") / str(data.tokenizer.file), data.tokenizer)


def _digest(folder: Path) -> str:
    return tokenizer.digest(tokenizer.load(folder))


def _check_tokenizer(data: DataConfig, folder: Path, checkpoint: Path | None) -> None:
    """Raise ConfigError unless the folder's tokenizer encoded its tokens and is that of the configuration and
    checkpoint."""
    made = manifest_of(folder)["tokenizer"]
    bpe = tokenizer.load_checked(folder / "tokenizer.json", data.tokenizer)
    if tokenizer.digest(bpe) != made["sha256"]:
        raise ConfigError(f"{folder / 'tokenizer.json'} is not the tokenizer that made the data; prepare them again.")
    if made["end_of_document"] != data.tokenizer.end_of_document:
        raise ConfigError(
            f"data.tokenizer.end_of_document is {data.tokenizer.end_of_document!r} and the data in {folder} end their "
            f"documents with {made['end_of_document']!r}; set it to that, or prepare the data again."
        )
    if data.tokenizer.file and tokenizer.digest(_file_of(data)) != made["sha256"]:
        raise ConfigError(
            f"data.tokenizer.file ({data.tokenizer.file}) is not the tokenizer that made the data in {folder}; take "
            "it out, or prepare the data again."
        )
    if checkpoint and _digest(checkpoint) != made["sha256"]:
        raise ConfigError(
            f"The checkpoint's tokenizer is not the one that made the data in {folder}; prepare the data with the "
            "checkpoint's tokenizer.json."
        )


def _changed(source: SourceConfig) -> NoReturn:
    raise ConfigError(f"The source {source.name} changed while it was read; prepare the data again when it is at rest.")
