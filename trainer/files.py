"""Files that last: on disk before anything counts on them, and known again by their hashes."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import xxhash


def sync(path: Path) -> None:
    """Wait until a file or a folder is on disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path) -> str:
    """The file's XXH3, which is as fast as the disk and shows damage, not malice. Raises OSError."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return f"xxh3:{state.hexdigest()}"


def digests(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Hashes by the files' names in the folder."""
    return {path.relative_to(folder).as_posix(): digest(path) for path in sorted(paths)}


def damage(folder: Path, written: Mapping[str, str], largest: float = float("inf")) -> str | None:
    """A clause about the first file that is missing or not what was written; larger ones are passed over."""
    for name, expected in written.items():
        path = folder / name
        try:
            if path.stat().st_size <= largest and digest(path) != expected:
                return f"{name} is not what was written"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None
