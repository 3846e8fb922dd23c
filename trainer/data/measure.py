"""Measuring a corpus, prepared data or a tokenizer where it lies: what a lab registers of it. Imports no torch."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from trainer.contract import CorpusKind, Measured, measured_data
from trainer.data import instructions, prepare, readers, tokenizer
from trainer.data.config import DataConfig, Kind, SourceConfig, TokenizerConfig
from trainer.data.indexed import Indexed
from trainer.data.prepare import Advance
from trainer.data.readers import Say
from trainer.schema import ConfigError

EXAMPLES: Mapping[CorpusKind, Kind] = {
    CorpusKind.INSTRUCTIONS: "instructions",
    CorpusKind.PREFERENCES: "preferences",
}
"""The kinds of data whose lines are examples."""


def files_at(kind: CorpusKind, place: Path) -> list[Path]:
    """The files that are read of what lies at an absolute place; raises ConfigError where one is not there."""
    found = _files(kind, place)
    for path in found or [place]:
        if not path.is_file():
            raise ConfigError(f"There is no file at {path}; name another place.")
    return found


def measure(
    kind: CorpusKind, place: Path, text_key: str, bpe: Path | None, say: Say, advance: Advance
) -> tuple[Measured, list[Path]]:
    """What lies at an absolute place, read to its end, and its files. `bpe` is a tokenizer.json to count tokens with.

    Raises ConfigError where the place cannot be read, is empty, or holds something else.
    """
    match kind:
        case CorpusKind.PREPARED:
            prepare.verify(place)
            return measured_data(place), _files(kind, place)
        case CorpusKind.TOKENIZER:
            files, found = [place], {"vocabulary": tokenizer.size(_tokenizer(place))}
        case _:
            files = _files(kind, place)
            source = _as_source(kind, place, text_key)
            if kind in EXAMPLES:
                found = _examples(source, EXAMPLES[kind], advance)
            else:
                found = _source(source, None if bpe is None else _tokenizer(bpe), say, advance)
    size = sum(path.stat().st_size for path in files)
    return Measured.model_validate({"files": len(files), "bytes": size, **found}), files


def _files(kind: CorpusKind, place: Path) -> list[Path]:
    match kind:
        case CorpusKind.PREPARED:
            return sorted(path for path in place.rglob("*") if path.is_file())
        case CorpusKind.TOKENIZER:
            return [place]
        case _:
            if kind == CorpusKind.DATASET and not place.is_dir():
                raise ConfigError(f"There is no folder at {place}; give the folder of a dataset of Hugging Face.")
            return readers.files_of(_as_source(kind, place), Path())


def _as_source(kind: CorpusKind, place: Path, text_key: str = "text") -> SourceConfig:
    key = "path" if kind == CorpusKind.TEXT or kind in EXAMPLES else kind.value
    fields = {"name": "corpus", "licence": "LicenseRef-None", "epochs": 1, "text_key": text_key, key: str(place)}
    return SourceConfig.model_validate(fields)


def _source(source: SourceConfig, bpe: Tokenizer | None, say: Say, advance: Advance) -> dict[str, Any]:
    if source.tokens is not None:
        sizes = Indexed(Path(source.tokens)).sizes
        if not len(sizes):
            raise ConfigError(f"{source.tokens}.bin is empty; name another pair.")
        return {"documents": len(sizes), "tokens": int(sizes.sum())}
    data = DataConfig(sequence_length=8, tokenizer=TokenizerConfig(vocabulary=320), sources=[source])
    documents = text_bytes = tokens = 0
    for document in readers.read(source, data, say):
        documents += 1
        text_bytes += document.size
        tokens += len(bpe.encode(document.text, add_special_tokens=False)) + 1 if bpe else 0
        advance(document.size)
    return {"documents": documents, "text_bytes": text_bytes, "tokens": tokens if bpe else None}


def _examples(source: SourceConfig, kind: Kind, advance: Advance) -> dict[str, Any]:
    data = DataConfig(kind=kind, sequence_length=8, tokenizer=TokenizerConfig(vocabulary=320), sources=[source])
    lines = text_bytes = 0
    for _, examples in instructions.read(source, data):
        size = sum(len(part.text.encode()) for example in examples for part in example)
        lines, text_bytes = lines + 1, text_bytes + size
        advance(size)
    if not lines:
        raise readers.empty(source)
    return {"documents": lines, "text_bytes": text_bytes}


def _tokenizer(file: Path) -> Tokenizer:
    return tokenizer.read(file, "give the path of a tokenizer.json")


def check_manifest(files: Sequence[Path], manifest: Path, advance: Advance) -> str:
    """Read the files against a manifest as `sha256sum` writes it, whose names are relative to the files' common folder
    or to the manifest's own; returns the SHA-256 of the manifest.

    Raises ConfigError for a file that differs, is not listed, or is listed and not there.
    """
    try:
        text = manifest.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"The manifest {manifest} cannot be read: {reason}.") from error
    listed: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line.strip())
        if match is None and line.strip():
            raise ConfigError(f"{manifest} line {number} is not “SHA256  FILE”, as sha256sum writes it.")
        if match is not None:
            listed[os.path.normpath(match[2])] = match[1]
    inner, outer = (
        {os.path.relpath(path, base): path for path in files}
        for base in (os.path.commonpath([path.parent for path in files]), manifest.parent)
    )
    found = outer if outer.keys() & listed.keys() else inner
    if unlisted := found.keys() - listed.keys():
        raise ConfigError(f"{manifest} does not list {min(unlisted)}; write the manifest again.")
    if missing := listed.keys() - found.keys():
        raise ConfigError(f"{manifest} lists {min(missing)}, which is not among the files of the corpus.")
    for name, path in found.items():
        if _sha256(path, advance) != listed[name]:
            raise ConfigError(f"{path} is not the file that {manifest} lists: its SHA-256 differs; fetch it again.")
    return hashlib.sha256(text.encode()).hexdigest()


def _sha256(path: Path, advance: Advance) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                advance(len(block))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    return digest.hexdigest()
