"""Reading the sources: each yields its documents in a fixed order, one at a time."""

import glob
import hashlib
import json
import os
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.data import raw_files
from trainer.data.config import Builtin, DataConfig, SourceConfig
from trainer.data.indexed import Indexed, paths_of
from trainer.schema import ConfigError, as_unicode

BOM = "\ufeff"

Say = Callable[[str], None]


class Document(NamedTuple):
    """A document. Its name is unique over all sources; one of a `tokens` source has `tokens` [N] and no text.

    `held_out` is whether it is kept for evaluation, None where its name decides; `is_row` whether it is a row of packed
    data, which gets no end-of-document token.
    """

    name: str
    text: str
    tokens: NDArray[Any] | None = None
    held_out: bool | None = None
    is_row: bool = False

    @property
    def size(self) -> int:
        """The bytes of the text in UTF-8, or of the tokens."""
        return len(self.text.encode()) if self.tokens is None else self.tokens.nbytes


def parts_of(source: SourceConfig, data: DataConfig) -> list[Path | None]:
    """The files of a source that can be read one by one, in order; [None] where it is read as a whole."""
    root = data.root_folder
    if source.path is None or source.max_bytes is not None or (root / source.path).is_dir():
        return [None]
    return [*files_of(source, root)]


def read(
    source: SourceConfig, data: DataConfig, say: Say = lambda message: None, part: Path | None = None
) -> Iterator[Document]:
    """The source's documents, until `max_bytes` is reached, or those of one of its `parts_of`, which may be none. `say`
    is told what is left out. Raises ConfigError if the source has no text or cannot be read."""
    size = without_text = 0
    root = data.root_folder
    if hidden := _hidden_in(source, root):
        names = f"{len(hidden)} hidden files and folders" if len(hidden) > 1 else "a hidden file or folder"
        say(f"left out of {source.name}: {names} ({', '.join(hidden[:3])}{', …' if len(hidden) > 3 else ''})")
    for document in _documents(source, root) if part is None else _lines(source, root, [part]):
        if document is None:
            without_text += 1
            continue
        # A byte-order mark belongs to a file, not to its text.
        yield document._replace(text=document.text.removeprefix(BOM))
        size += document.size
        if source.max_bytes is not None and size >= source.max_bytes:
            break
    if without_text:
        documents = "document" if without_text == 1 else "documents"
        say(f"left out of {source.name}: {without_text:,} {documents} whose {source.text_key} is null")
    if not size and part is None:
        raise empty(source)


def size_of(source: SourceConfig, data: DataConfig) -> int | None:
    """The bytes of a source's files, at most its `max_bytes`; None where it has no files. Raises ConfigError."""
    sizes = [path.stat().st_size for path in files_of(source, data.root_folder) if path.is_file()]
    most = sum(sizes) if source.max_bytes is None else min(sum(sizes), source.max_bytes)
    return most if sizes else None


def encoding(source: SourceConfig, data: DataConfig) -> str:
    """The words that say which source is being encoded, of how many, and the share of their bytes that lies behind,
    where all of them have files. Raises ConfigError."""
    if len(data.sources) == 1:
        return f"encoding {source.name}"
    number, sizes = data.sources.index(source), [size_of(each, data) for each in data.sources]
    known = [size for size in sizes if size is not None]
    share = sum(known[:number]) / sum(known) if len(known) == len(sizes) and any(known) else 0
    done = f", {share:.0%} done" if share else ""
    return f"encoding {source.name}, source {number + 1} of {len(sizes)}{done}"


def empty(source: SourceConfig) -> ConfigError:
    """The error for a source without text."""
    return ConfigError(f"The source {source.name} is empty; take it out of data.sources or name another place.")


def files_of(source: SourceConfig, root: Path) -> list[Path]:
    """The local files of a source in the order they are read in. Raises ConfigError if its path has no file."""
    try:
        files = _files_of(source, root)
    except OSError as error:
        raise ConfigError(f"The place of the source {source.name} cannot be read: {error.strerror}.") from error
    if source.path is None or files:
        return files
    if source.corpus is not None:  # members read this, and know corpora by their names
        raise ConfigError(
            f"The corpus {source.corpus} is no longer where its pool has it: an operator says where it lies with "
            "`stoa corpus add`."
        )
    place = root / source.path
    raise ConfigError(f"There is no file at {place}, the path of the source {source.name}; correct it or data.root.")


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
        return [file for file in inside if file.is_file() and not _is_hidden(file.relative_to(path))]
    return _glob(source.path, root) or _glob(source.path.replace("[", "[[]"), root)


def _glob(pattern: str, root: Path) -> list[Path]:
    """The files of a pattern below `root`, whose own name is no pattern."""
    found = sorted(root / name for name in glob.glob(pattern, root_dir=root, recursive=True))
    return [path for path in found if path.is_file()]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _hidden_in(source: SourceConfig, root: Path) -> list[str]:
    """The hidden files and folders in the folder of a source, the outermost of each branch."""
    if source.path is None or not (folder := root / source.path).is_dir():
        return []
    found = []
    for inside, folders, files in os.walk(folder):
        found += [
            as_unicode(Path(inside, name).relative_to(folder).as_posix())
            for name in (*folders, *files)
            if name[0] == "."
        ]
        folders[:] = [name for name in folders if name[0] != "."]
    return sorted(found)


def _documents(source: SourceConfig, root: Path) -> Iterator[Document | None]:
    """The source's documents, None for each whose text is null."""
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
    """Each file of a folder is a document, its line ends as they are."""
    folder = root / str(source.path)
    for path in files_of(source, root):
        if not raw_files.is_text(path):
            raise ConfigError(
                f"{path} is no text file; for JSONL give the source {source.name} a path such as "
                f"{folder}/*{path.suffix}."
            )
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"{path} is not UTF-8 text; take it out of the folder or convert it.") from None
        except OSError as error:
            raise raw_files.unreadable(path, error) from error
        yield Document(f"{source.name}/{as_unicode(path.relative_to(folder).as_posix())}", text)


def _lines(source: SourceConfig, root: Path, only: Sequence[Path] | None = None) -> Iterator[Document | None]:
    """Each line of JSONL files and each row of Parquet files is a document, named by its file and the number of its
    line or row, from 1; of all files of the source, or of some `only`."""
    paths = files_of(source, root)
    base = os.path.commonpath([path.parent for path in paths])
    for path in paths if only is None else only:
        name = f"{source.name}/{as_unicode(path.relative_to(base).as_posix())}"
        kind = raw_files.kind_of(path)
        if kind == "parquet":
            for number, value in enumerate(raw_files.parquet(path, source.text_key), start=1):
                text = _checked({source.text_key: value}, source.text_key, f"{path} row {number}")
                yield None if text is None else Document(f"{name}:{number}", text)
            continue
        for number, line in enumerate(raw_files.lines(path, kind), start=1):
            if line.strip():
                text = _text_of(line, source.text_key, f"{path} line {number}")
                yield None if text is None else Document(f"{name}:{number}", text)


def _text_of(line: bytes, key: str, location: str) -> str | None:
    """The text under `key` in a line of JSON, None where it is null. Raises ConfigError, which names the `location` of
    the line."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise ConfigError(f"{location} is not valid JSON; mend it or take it out.") from None
    return _checked(value, key, location)


def _checked(value: Any, key: str, location: str) -> str | None:
    if not isinstance(value, dict):
        raise ConfigError(
            f"{location} has no text under {key!r} (it is no JSON object); give each line an object that has it."
        )
    if key not in value:
        raise ConfigError(
            f"{location} has no text under {key!r} (it has the keys {', '.join(map(str, value))[:200]}); set text_key "
            "to the key that holds the text."
        )
    text = value[key]
    if text is None:
        return None
    if not isinstance(text, str):
        raise ConfigError(
            f"{location} has {type(text).__name__} {str(text)[:40]!r} under {key!r}, which is no text; set text_key to "
            "the key that holds the text, or take the line out."
        )
    # JSON can escape half of a surrogate pair, which is not Unicode text.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _dataset(source: SourceConfig, root: Path) -> Iterator[Document | None]:
    """Each row of a dataset of Hugging Face is a document, read as a stream and named by its split and number."""
    import datasets

    folder = root / str(source.dataset)
    split = source.split or "train"
    if folder.exists() and glob.escape(str(folder)) != str(folder):
        raise ConfigError(
            f"The folder {folder} of the source {source.name} has brackets or stars in its name, which the datasets "
            "library takes for a pattern; rename it, or give its files as path and not as dataset."
        )
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
            if text is None and source.text_key in row:
                yield None
                continue
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
