"""The catalogue of text: each source yields its named documents in a fixed order."""

import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from trainer.config import ConfigError, SourceConfig, SourceName


class Document(NamedTuple):
    """The name is unique over all sources."""

    name: str
    text: str


def read(source: SourceConfig) -> list[Document]:
    """The source's documents until `max_bytes` is reached. Raises ConfigError if there is none."""
    documents, size = [], 0
    for document in READERS[source.name]():
        documents.append(document)
        size += len(document.text.encode())
        if size >= source.max_bytes:
            break
    if not documents:
        raise ConfigError(f"This Python carries no text for the source {source.name}; take it out of data.sources.")
    return documents


def _python_docs() -> Iterator[Document]:
    """The language reference's topics, as `help()` shows them."""
    try:
        from pydoc_data import topics
    except ImportError:
        return
    for name, text in sorted(topics.topics.items()):
        yield Document(f"python-docs/{name}", text)


def _python_stdlib() -> Iterator[Document]:
    """The standard library's modules without its tests, by the hash of the name, so that a cap takes a fair spread."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    names = []
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if name not in skipped]
        names += [(Path(folder) / file).relative_to(root).as_posix() for file in files if file.endswith(".py")]
    for name in sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest()):
        yield Document(f"python-stdlib/{name}", (root / name).read_text(encoding="utf-8", errors="replace"))


READERS: Mapping[SourceName, Callable[[], Iterator[Document]]] = {
    "python-docs": _python_docs,
    "python-stdlib": _python_stdlib,
}
