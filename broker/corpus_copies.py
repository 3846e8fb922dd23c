"""Copies of corpora, prepared data and tokenizers: in the object store, and where a host has fetched them from there.

A copy is called NAME-HASH, by the hash of its files, so that a corpus that has changed never mixes with what it was. It
lies below `corpora/` in the store, and under the same name on a host.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from rich import filesize

from broker.store import PULLING, Advance, DamagedError, Manifest, Store, described, ignored, staging_of

FOLDER = "corpora"
LEAVING = ".leaving"
"""The end of the name of a copy that is being removed."""
REMOVER = "The worker"
"""Who holds the lock of a copy that may be removed."""
HASH_DIGITS = 12
MAGIC = frozenset("*?[")
Hold = Callable[[str], None]
"""Is told what is waited for, and returns when it is time to look again."""


class Copy(NamedTuple):
    """A copy on this host, whole or in part: its name, and when it was last used or needed, by this host's clock."""

    name: str
    used_at: datetime


class BusyError(Exception):
    """Another process fetches or removes a copy."""


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
    if use(home, copy, hold, owner=owner):
        return target
    files = look(store, copy)
    home.mkdir(parents=True, exist_ok=True)
    with alone(_lock(home, copy), owner, hold):
        if not target.is_dir():
            _clear(staging_of(target), files)
            _check_room(staging_of(target), files, copy, floor)
            store.pull(folder(copy), target, advance)
    return target


def use(home: Path, copy: str, hold: Hold, *, owner: str = "") -> bool:
    """Whether a whole copy is in a host's folder of copies; it counts as used now."""
    if not (home / copy).is_dir():
        return False
    with alone(_lock(home, copy), owner, hold):  # or it could be about to be removed
        return (home / copy).is_dir()


def here(home: Path) -> Sequence[Copy]:
    """The copies in a host's folder of copies, the one that is unused the longest first."""
    names = {path.name for path in home.glob("[!.]*") if path.is_dir()}
    names |= {path.name[1:].removesuffix(PULLING) for path in home.glob(f".*{PULLING}")}
    found = []
    for name in names:
        for place in (_lock(home, name), home / name, staging_of(home / name)):
            with suppress(FileNotFoundError):  # it may be removed meanwhile
                found.append(Copy(name, datetime.fromtimestamp(place.stat().st_mtime, UTC)))
                break
    return sorted(found, key=lambda copy: copy.used_at)


def size(home: Path, copy: str) -> int:
    """The bytes of a copy here, also of one that is not whole yet."""
    places = (home / copy, staging_of(home / copy))
    return sum(path.stat().st_size for place in places for path in place.rglob("*") if path.is_file())


def mark(home: Path, copy: str) -> None:
    """Count a copy as needed now."""
    _lock(home, copy).touch()


def remove(home: Path, copy: str, is_needed: Callable[[], bool] = lambda: False) -> bool:
    """Remove a copy from a host's folder of copies; False where it is needed, or another process fetches it.

    `is_needed` is asked while nobody can begin to use the copy. Who is killed meanwhile leaves a whole copy, or none
    and what `clear_removed` removes.
    """
    target, leaving = home / copy, home / f".{copy}{LEAVING}"
    try:
        with alone(_lock(home, copy), REMOVER, _busy):
            if is_needed():
                return False
            shutil.rmtree(staging_of(target), ignore_errors=True)
            shutil.rmtree(leaving, ignore_errors=True)
            if target.is_dir():
                target.rename(leaving)
    except BusyError:
        return False
    shutil.rmtree(leaving, ignore_errors=True)
    return True


def clear_removed(home: Path) -> None:
    """Finish the removals that were cut short."""
    for path in home.glob(f".*{LEAVING}"):
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def alone(path: Path, owner: str, hold: Hold) -> Iterator[None]:
    """Hold the lock at `path`, which names its owner, and whose date says when somebody last had it."""
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
        os.utime(lock.fileno())
        yield


def _lock(home: Path, copy: str) -> Path:
    return home / f".{copy}.lock"


def _busy(_owner: str) -> None:
    raise BusyError


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
