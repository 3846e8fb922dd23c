"""The lock on the folder that a command writes: no two trainers write one folder at once. Imports no torch."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from trainer.contract import OUTCOME_FILE, Status
from trainer.exits import fail


@contextlib.contextmanager
def locked(out: Path, host: int = 0) -> Iterator[None]:
    """Create the folder `out` and hold its lock within, or on several hosts that share it the lock of `host`.

    The outcome of an earlier run in the folder is removed. Exits with Status.CONFIG and a sentence where another
    trainer holds the lock or the folder cannot be written.
    """
    if out == Path():
        fail(Status.CONFIG, "--out is empty or the folder you stand in; name a folder of the run's own.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / (f".lock.{host}" if host else ".lock")).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fail(Status.CONFIG, f"Another trainer is at work in {out}; give --out another folder.")
            if host == 0:
                (out / OUTCOME_FILE).unlink(missing_ok=True)
            yield
    except OSError as error:
        fail(Status.CONFIG, f"The folder {out} cannot be written ({error.strerror}); give --out another.")
