"""Copies of corpora, prepared data and tokenizers: in the object store, and where a host has fetched them from there.

A copy is called NAME-HASH, by the hash of its files, so that a corpus that has changed never mixes with what it was. It
lies below `corpora/` in the store, and under the same name on a host.
"""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich import filesize

from broker.store import Advance, DamagedError, Manifest, Store, described, ignored, staging_of

FOLDER = "corpora"
HASH_DIGITS = 12
MAGIC = frozenset("*?[")
Hold = Callable[[str], None]
"""Is told what is waited for, and returns when it is time to look again."""


class NoRoomError(OSError):
    """The disk has no room for a copy; the text is one sentence."""


def copy_name(corpus: str, sha256: str) -> str:
    """What a copy of a corpus is called, whose files have a hash."""
    return f"{corpus}-{sha256[:HASH_DIGITS]}"


def folder(copy: str) -> str:
    """The folder of a copy in the store."""
    return f"{FOLDER}/{copy}"


def place(path: str) -> tuple[Path, str]:
    """The folder that the files of a corpus are named in, and the rest of its `path`, which is the same in a copy.

    That is the last part of the path, or all from the first one that may be a pattern. So the trainer finds the same
    files in the same order in a copy, and calls the documents by the same names.
    """
    parts = Path(path).parts
    first = next((number for number, part in enumerate(parts) if MAGIC & set(part)), len(parts) - 1)
    return Path(*parts[:first]), Path(*parts[first:]).as_posix()


def digest(files: Manifest) -> str:
    """The SHA-256 of the names, sizes and contents of files."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def described_files(files: Mapping[str, Path], advance: Advance) -> Manifest:
    """Each file with its size and hash, for which it is read to its end."""
    found: Manifest = {}
    for name, path in files.items():
        found[name] = described(path)
        advance(found[name]["size"])
    return found


def look(store: Store, copy: str) -> Manifest:
    """The files of a copy in the store. Raises DamagedError where it is not whole, or not what its name says."""
    files = store.manifest(folder(copy))
    if files is None:
        raise DamagedError(f"The store has lost {folder(copy)}.")
    if copy.rpartition("-")[2] != digest(files)[:HASH_DIGITS]:
        raise DamagedError(f"The store has other files as {folder(copy)} than were put there.")
    return files


def fetch(
    store: Store, copy: str, home: Path, hold: Hold, *, owner: str = "", floor: int = 0, advance: Advance = ignored
) -> Path:
    """Fetch a copy into a host's folder `home` of copies, unless it is there; its folder.

    One process at a time fetches it, an `owner` that others are told of while they wait; what it has fetched when it is
    cut off, the next one need not fetch again. `floor` bytes of the disk stay free. Raises NoRoomError, DamagedError
    where the store has lost or damaged a part, and StoreError.
    """
    target = home / copy
    if target.is_dir():
        return target
    files = look(store, copy)
    home.mkdir(parents=True, exist_ok=True)
    with alone(home / f".{copy}.lock", owner, hold):
        if not target.is_dir():
            _clear(staging_of(target), files)
            _check_room(staging_of(target), files, copy, floor)
            store.pull(folder(copy), target, advance)
    return target


@contextmanager
def alone(path: Path, owner: str, hold: Hold) -> Iterator[None]:
    """Hold the lock at `path`, which names its owner."""
    with path.open("a+") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                lock.seek(0)
                hold(lock.read())
        lock.truncate(0)
        lock.write(owner)
        lock.flush()
        yield


def _clear(staging: Path, files: Manifest) -> None:
    """Remove what somebody who was cut off has fetched of a file that is not whole."""
    for path in staging.rglob("*"):
        if path.is_file() and path.relative_to(staging).as_posix() not in files:
            path.unlink()


def _check_room(staging: Path, files: Manifest, copy: str, floor: int) -> None:
    here = sum(each["size"] for name, each in files.items() if (staging / name).is_file())
    needed = sum(each["size"] for each in files.values()) - here
    free = max(0, shutil.disk_usage(staging.parent).free - floor)
    if needed > free:
        raise NoRoomError(
            f"{copy.rpartition('-')[0]} needs {filesize.decimal(needed)} of the disk here, of which "
            f"{filesize.decimal(free)} may be used"
        )
