"""Files that grow, carried through the store: their bytes from one place on are an object named by that place.

The writer sends what is new, and the reader asks for the object that begins where its own copy ends. So neither has to
list a store, which may answer with what was there a while ago, and each may be restarted at any moment.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the store imports what the command line need not wait for
    from broker.store import Store

MOST_BYTES = 4 * 2**20


class Sender:
    """Sends what is new in the files of a folder."""

    def __init__(self, store: "Store", source: Path, folder: str) -> None:
        self._store, self._source, self._folder = store, source, folder
        self._sent: dict[str, int] = {}

    def send(self, name: str, until: int | None = None) -> None:
        """Send a file's new bytes, those before `until` where it is given. Raises StoreError; nothing is lost by it."""
        path, start = self._source / name, self._sent.get(name, 0)
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(start)
            while data := file.read(MOST_BYTES if until is None else max(0, min(MOST_BYTES, until - start))):
                self._store.write(_place(self._folder, name, start), data)
                start += len(data)
                self._sent[name] = start


def fetch(store: "Store", folder: str, names: Sequence[str], target: Path) -> None:
    """Append to the files in `target` what was sent since. Raises StoreError, and OSError where no room is left."""
    for name in names:
        path = target / name
        size = path.stat().st_size if path.exists() else 0
        while data := store.read(_place(folder, name, size)):
            with path.open("r+b" if path.exists() else "xb") as file:
                file.seek(size)  # over what a full disk has cut short
                file.write(data)
            size += len(data)


def _place(folder: str, name: str, start: int) -> str:
    return f"{folder}/live/{name}/{start}"
