"""Files that grow, in the store: logs and metrics as pieces of one MiB, of which only the last is ever written again.

A piece is found by the byte that one wants, so that no reader depends on a list of what is there.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the store imports what the command line need not wait for
    from broker.store import Store

PIECE = 2**20
CARRIER = "carrier"
"""The object about the carrier of an attempt: `beat` changes while it is at work, `done` says that all is there, and
`home` is the home folder of its host."""


class Growing:
    """A file here that grows, and what of it is in the store as `name`."""

    def __init__(self, store: "Store", path: Path, name: str) -> None:
        self.store, self.path, self.name = store, path, name
        self.size = -1

    def carry(self, until: int | None = None) -> bool:
        """Put there what the file has gained, of its first `until` bytes where that is given; whether it had gained
        anything. Raises StoreError and OSError."""
        there = self.path.stat().st_size if self.path.exists() else 0
        until = there if until is None else min(until, there)
        if until <= max(self.size, 0):
            return False
        if self.size < 0:  # an earlier carrier may have put some of it there
            self.size = max(_last(self.store, self.name), 0) * PIECE
        with self.path.open("rb") as file:
            number = self.size // PIECE
            file.seek(number * PIECE)
            while piece := file.read(max(0, min(PIECE, until - number * PIECE))):
                self.store.write(_piece(self.name, number), piece)
                self.size = number * PIECE + len(piece)
                number += 1
        return True


def read_from(store: "Store", name: str, offset: int) -> bytes:
    """The bytes of a growing file from `offset` on, of at most one piece; empty where it has not grown so far. Raises
    StoreError."""
    piece = store.read(_piece(name, offset // PIECE))
    return b"" if piece is None else piece[offset % PIECE :]


def fetch(store: "Store", folder: str, names: Sequence[str], target: Path) -> None:
    """Append to growing files of these names, in the folder `target`, what those in a folder of the store have more.

    Raises StoreError, and OSError where no room is left here.
    """
    for name in names:
        path = target / name
        size = path.stat().st_size if path.exists() else 0
        while data := read_from(store, f"{folder}/{name}", size):
            with path.open("r+b" if path.exists() else "xb") as file:
                file.seek(size)  # over what a full disk has cut short
                file.write(data)
            size += len(data)


def tail(store: "Store", name: str, most: int) -> bytes | None:
    """The last bytes of a growing file, at most `most` and at most a piece; None where there is none. Raises
    StoreError."""
    last = _last(store, name)
    if last < 0:
        return None
    data = store.read(_piece(name, last)) or b""
    if len(data) < most and last > 0:
        data = (store.read(_piece(name, last - 1)) or b"") + data
    return data[-most:]


def home(store: "Store", attempt: str) -> str:
    """The home folder of the host that carried an attempt, whose paths its log may name; empty where it is not known.
    Raises StoreError."""
    said = store.read(f"{attempt}/{CARRIER}")
    return "" if said is None else str(json.loads(said).get("home", ""))


def _last(store: "Store", name: str) -> int:
    """The number of the last piece that the store lists; -1 where it lists none."""
    return max((int(piece) for piece in store.names(name) if piece.isdecimal()), default=-1)


def _piece(name: str, number: int) -> str:
    return f"{name}/{number:08}"
