"""The files of sources as bytes: their kind, by their first bytes, and their lines or columns, decompressed in bounded
memory."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from trainer.schema import ConfigError

LINES = (".jsonl", ".json", ".ndjson")
"""Suffixes of files of JSON lines."""
COMPRESSED = {".gz": "gzip", ".zst": "zstandard", ".bz2": "bzip2", ".xz": "xz"}
LONGEST_LINE = 64 << 20
"""Bytes of the longest line that is read: it is in memory whole."""
LARGEST_WINDOW = 1 << 31
"""Bytes that a frame of zstandard may look back, the most that the format's own program writes (`--long=31`)."""

_CHUNK = 1 << 20
_FRAME_PART = 1 << 10
"""Compressed bytes of zstandard that are decompressed at once, to 32 MiB at most: a block of 128 KiB takes 4 bytes."""
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PAR1": "parquet",
}
_UNREAD = {
    b"version https://git-lfs.github.com/spec/v1": "a pointer of Git LFS and not the file itself; run git lfs pull",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it",
    b"Rar!\x1a": "a RAR archive; unpack it",
    b"\x04\x22\x4d\x18": "compressed by lz4; decompress it, or compress it by zstandard",
    b"ARROW1": "an Arrow file; name its folder as a dataset, or write Parquet",
    b"Obj\x01": "an Avro file; write JSONL or Parquet",
    b"SQLite format 3\x00": "an SQLite database; write JSONL or Parquet",
    b"%PDF-": "a PDF; convert it to text",
    b"\x89HDF": "an HDF5 file; write JSONL or Parquet",
    b"\xff\xfe": "UTF-16 text; convert it to UTF-8",
    b"\xfe\xff": "UTF-16 text; convert it to UTF-8",
}


def kind_of(path: Path) -> str | None:
    """The kind of a file that is no plain text: gzip, zstandard, bzip2, xz or parquet. None for all others.

    Raises ConfigError for a kind that is not read, which the sentence names, and for a file that cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise unreadable(path, error) from error
    _refuse_unread(path, head)
    found = [kind for magic, kind in _MAGIC.items() if head.startswith(magic)]
    return found[0] if found else COMPRESSED.get(path.suffix.lower()) if head else None


def is_text(path: Path) -> bool:
    """Whether a file of a folder is a text by its content and its suffix. Raises what `kind_of` does."""
    return kind_of(path) is None and path.suffix.lower() not in (*LINES, *COMPRESSED, ".parquet")


def lines(path: Path, kind: str | None) -> Iterator[bytes]:
    """The lines of a file of a kind, decompressed, in time linear in its size even for very long lines.

    Raises ConfigError where the file is cut short or damaged, or a line is longer than LONGEST_LINE.
    """
    pending: list[bytes] = []
    size = 0
    for number, chunk in enumerate(_chunks(path, kind)):
        if number == 0:
            _refuse_unread(path, chunk)
        first, *others = chunk.split(b"\n")
        pending.append(first)
        size += len(first)
        if size > LONGEST_LINE:
            raise ConfigError(
                f"{path} has a line of more than {LONGEST_LINE >> 20} MiB, which no document may be; split it."
            )
        for line in others:
            yield b"".join(pending)
            pending, size = [line], len(line)
    yield b"".join(pending)


def parquet(path: Path, column: str) -> Iterator[Any]:
    """The values of a column of a Parquet file, row by row. Raises ConfigError if it is damaged or has no such
    column."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise ConfigError(
                    f"{path} has no column {column!r} (its columns are {', '.join(names)[:200]}); set text_key to the "
                    "column that holds the text."
                )
            for batch in file.iter_batches(batch_size=256, columns=[column]):
                yield from batch.column(0).to_pylist()
    except OSError as error:
        raise unreadable(path, error) from error
    except pyarrow.ArrowException:
        raise damaged(path) from None


def unreadable(path: Path, error: OSError) -> ConfigError:
    """The error for a file that cannot be read."""
    reason = error.strerror or str(error).partition("\n")[0]
    return ConfigError(f"{path} cannot be read ({reason}); correct it or take it out.")


def damaged(path: Path) -> ConfigError:
    """The error for a file that is cut short or damaged."""
    return ConfigError(f"{path} is truncated or damaged; fetch it again.")


def _refuse_unread(path: Path, head: bytes) -> None:
    for magic, words in _UNREAD.items():
        if head.startswith(magic):
            raise ConfigError(f"{path} is {words}.")
    if head[257:262] == b"ustar":
        raise ConfigError(f"{path} is a tar archive; unpack it.")


def _chunks(path: Path, kind: str | None) -> Iterator[bytes]:
    try:
        with _opened(path, kind) as file:
            if kind == "zstandard":
                yield from _zstandard(file)
            else:
                while chunk := file.read(_CHUNK):
                    yield chunk
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, zstandard.ZstdError):
        raise damaged(path) from None
    except OSError as error:
        # The library for bzip2 raises it, without a number, for damage.
        raise damaged(path) if error.errno is None else unreadable(path, error) from None


def _opened(path: Path, kind: str | None) -> IO[bytes]:
    openers: dict[str | None, Any] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
    return cast(IO[bytes], openers.get(kind, open)(path, "rb"))


def _zstandard(file: IO[bytes]) -> Iterator[bytes]:
    """The decompressed bytes of all frames of a file. Raises EOFError at a truncated frame, which the library's own
    reader takes for the end of the file."""
    frame = None
    while read := file.read(_CHUNK):
        for start in range(0, len(read), _FRAME_PART):
            chunk = read[start : start + _FRAME_PART]
            while chunk:
                frame = frame or zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).decompressobj()
                yield frame.decompress(chunk)
                chunk = frame.unused_data
                if frame.eof:
                    frame = None
    if frame is not None:
        raise EOFError
