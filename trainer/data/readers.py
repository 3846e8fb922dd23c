"""Reading the sources: each yields its documents in a fixed order, one at a time."""

import glob
import gzip
import hashlib
import json
import os
import sysconfig
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray

from trainer.data.config import Builtin, DataConfig, SourceConfig
from trainer.data.indexed import Indexed, paths_of
from trainer.schema import ConfigError

_CHUNK = 1 << 20
_LINES = (".jsonl", ".json", ".gz", ".zst")


class Document(NamedTuple):
    """A document. Its name is unique over all sources; one of a `tokens` source has `tokens` [N] and no text."""

    name: str
    text: str
    tokens: NDArray[Any] | None = None

    @property
    def size(self) -> int:
        """The bytes of the text in UTF-8, or of the tokens."""
        return len(self.text.encode()) if self.tokens is None else self.tokens.nbytes


def read(source: SourceConfig, data: DataConfig) -> Iterator[Document]:
    """The source's documents, until `max_bytes` is reached. Raises ConfigError if it has no text or cannot be read."""
    size = 0
    for document in _documents(source, Path(data.root or ".")):
        yield document
        size += document.size
        if source.max_bytes is not None and size >= source.max_bytes:
            break
    if not size:
        raise ConfigError(f"The source {source.name} is empty; take it out of data.sources or name another place.")


def files_of(source: SourceConfig, root: Path) -> list[Path]:
    """The local files of a source in the order they are read in. Raises ConfigError if its path has no file."""
    try:
        return _files_of(source, root)
    except OSError as error:
        raise ConfigError(f"The place of the source {source.name} cannot be read: {error.strerror}.") from error


def _files_of(source: SourceConfig, root: Path) -> list[Path]:
    if source.tokens is not None:
        return list(paths_of(root / source.tokens))
    if source.path is None:
        local = root / (source.dataset or "")
        return [path for path in sorted(local.rglob("*")) if path.is_file()] if source.dataset else []
    path = root / source.path
    if path.is_file():
        return [path]
    if path.is_dir():
        inside = sorted(path.rglob("*"))
        files = [file for file in inside if file.is_file() and not file.name.startswith(".")]
    else:
        files = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
    if not files:
        raise ConfigError(f"There is no file at {path}, the path of the source {source.name}; correct it or data.root.")
    return files


def _documents(source: SourceConfig, root: Path) -> Iterator[Document]:
    if source.builtin is not None:
        return BUILTINS[source.builtin](source.name)
    if source.path is not None and (root / source.path).is_dir():
        return _texts(source, root)
    if source.path is not None:
        return _lines(source, root)
    if source.dataset is not None:
        return _dataset(source, root)
    return _tokens(source, root)


def _python_docs(source: str) -> Iterator[Document]:
    """The topics of the language reference, as `help()` shows them."""
    try:
        from pydoc_data import topics
    except ImportError:
        return
    for name, text in sorted(topics.topics.items()):
        yield Document(f"{source}/{name}", text)


def _python_stdlib(source: str) -> Iterator[Document]:
    """The modules of the standard library without its tests, in the order of the hashes of their names: `max_bytes`
    then takes a fair sample."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    names = []
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if name not in skipped]
        names += [(Path(folder) / file).relative_to(root).as_posix() for file in files if file.endswith(".py")]
    for name in sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest()):
        yield Document(f"{source}/{name}", (root / name).read_text(encoding="utf-8", errors="replace"))


BUILTINS: Mapping[Builtin, Callable[[str], Iterator[Document]]] = {
    "python-docs": _python_docs,
    "python-stdlib": _python_stdlib,
}


def _texts(source: SourceConfig, root: Path) -> Iterator[Document]:
    """Each file of a folder is a document."""
    folder = root / str(source.path)
    for path in files_of(source, root):
        if path.suffix in _LINES:
            raise ConfigError(
                f"{path} is no text file; for JSONL give the source {source.name} a path such as "
                f"{folder}/*{path.suffix}."
            )
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"{path} is not UTF-8 text; take it out of the folder or convert it.") from None
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error.strerror}); correct it or take it out.") from error
        yield Document(f"{source.name}/{path.relative_to(folder).as_posix()}", text)


def _lines(source: SourceConfig, root: Path) -> Iterator[Document]:
    """Each line of the JSONL files is a document, named by its file and the number of its line, from 1."""
    paths = files_of(source, root)
    base = os.path.commonpath([path.parent for path in paths])
    for path in paths:
        name = f"{source.name}/{path.relative_to(base).as_posix()}"
        for number, line in enumerate(_split(path), start=1):
            if line.strip():
                yield Document(f"{name}:{number}", _text_of(line, source.text_key, f"{path} line {number}"))


def _text_of(line: bytes, key: str, location: str) -> str:
    """The text under `key` in a line of JSON. Raises ConfigError, which names the `location` of the line."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise ConfigError(f"{location} is not valid JSON; mend it or take it out.") from None
    if not isinstance(value, dict) or not isinstance(value.get(key), str):
        keys = f"has the keys {', '.join(map(str, value))[:200]}" if isinstance(value, dict) else "is no JSON object"
        raise ConfigError(
            f"{location} has no text under {key!r} (it {keys}); set text_key to the key that holds the text."
        )
    # JSON can escape half of a surrogate pair, which is not Unicode text.
    return str(value[key]).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _split(path: Path) -> Iterator[bytes]:
    """The lines of a file, decompressed, in time linear in its size even for very long lines."""
    pending: list[bytes] = []
    for chunk in _chunks(path):
        first, *others = chunk.split(b"\n")
        pending.append(first)
        for line in others:
            yield b"".join(pending)
            pending = [line]
    yield b"".join(pending)


def _chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, decompressed by its suffix. Raises ConfigError where the file is cut short or damaged."""
    try:
        if path.suffix == ".zst":
            yield from _zstandard(path)
        else:
            with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    yield chunk
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError):
        raise ConfigError(f"{path} is truncated or damaged; fetch it again.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); correct it or take it out.") from error


def _zstandard(path: Path) -> Iterator[bytes]:
    """The decompressed bytes of all frames of a file. Raises EOFError at a truncated frame, which the library's own
    reader takes for the end of the file."""
    frame = None
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            while chunk:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(chunk)
                chunk = frame.unused_data
                if frame.eof:
                    frame = None
    if frame is not None:
        raise EOFError


def _dataset(source: SourceConfig, root: Path) -> Iterator[Document]:
    """Each row of a dataset of Hugging Face is a document, read as a stream and named by its split and number."""
    import datasets

    folder = root / str(source.dataset)
    split = source.split or "train"
    try:
        if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
            saved = datasets.load_from_disk(str(folder))
            if isinstance(saved, datasets.DatasetDict) and split not in saved:
                raise ValueError(f"Bad split: {split}. Available splits: {list(saved)}")
            rows = saved[split] if isinstance(saved, datasets.DatasetDict) else saved
        else:
            path = str(folder) if folder.exists() else str(source.dataset)
            rows = datasets.load_dataset(path, source.subset, split=split, revision=source.revision, streaming=True)
        for number, row in enumerate(rows):
            text = row.get(source.text_key)
            if not isinstance(text, str):
                raise ConfigError(
                    f"Row {number} of the dataset {source.dataset} has no text in {source.text_key!r} (its columns are "
                    f"{', '.join(row)}); set text_key to the column that holds the text."
                )
            yield Document(f"{source.name}/{split}:{number}", text)
    except ConfigError:
        raise
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"The dataset {source.dataset} of the source {source.name} cannot be read ({reason}); correct its id, "
            "subset, split or revision, or fetch it beforehand."
        ) from error


def _tokens(source: SourceConfig, root: Path) -> Iterator[Document]:
    """Each document of a .bin/.idx pair, named by its number."""
    indexed = Indexed(root / str(source.tokens))
    if not np.issubdtype(indexed.dtype, np.integer):
        raise ConfigError(f"{root / str(source.tokens)}.idx says that it holds {indexed.dtype} and not tokens.")
    for number, tokens in enumerate(indexed.documents()):
        yield Document(f"{source.name}/{number}", "", tokens)
