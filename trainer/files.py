"""Files that survive a crash: written atomically, synced to disk, appended in whole lines, and checked by checksums."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash


def write_atomically(path: Path, text: str) -> None:
    """Write a UTF-8 file so that a reader sees the whole new content or none of it. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def append_json_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append `record` as one line of JSON in a single write, so that a reader never sees half a line. Raises OSError,
    and ValueError for a number that is not finite."""
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Wait until a file or a folder is on disk (fsync). Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path) -> str:
    """The file's XXH3-128, which is as fast as the disk. It shows damage, not tampering. Raises OSError."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return f"xxh3:{state.hexdigest()}"


def checksums(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """The checksums of files by their names relative to the folder. Raises OSError."""
    return {path.relative_to(folder).as_posix(): checksum(path) for path in sorted(paths)}


def find_damage(folder: Path, expected: Mapping[str, str], largest: float = float("inf")) -> str | None:
    """A clause about the first file that is missing or has another checksum than `expected` says, None if all fit.

    Files of more than `largest` bytes are only looked for, not read.
    """
    for name, checksum_written in expected.items():
        path = folder / name
        try:
            if path.stat().st_size <= largest and checksum(path) != checksum_written:
                return f"{name} is not what was written"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None
