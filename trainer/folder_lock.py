"""The lock on the folder that a command writes: no two commands write one folder at once. Imports no torch."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NoReturn

from trainer.contract import OUTCOME_FILE, Status
from trainer.exits import fail
from trainer.schema import as_unicode


@contextlib.contextmanager
def locked(out: Path, host: int = 0, removes_outcome: bool = True) -> Iterator[None]:
    """Create the folder `out` and hold its lock within, or on several hosts that share it the lock of `host`.

    The outcome of an earlier run in the folder is removed where `removes_outcome`. Exits with Status.CONFIG and a
    sentence where another command holds the lock or the folder cannot be written.
    """
    _check_name(out)
    with contextlib.ExitStack() as stack:
        try:
            out.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((out / (f".lock.{host}" if host else ".lock")).open("w"))
            _hold(lock, out)
            if host == 0 and removes_outcome:
                (out / OUTCOME_FILE).unlink(missing_ok=True)
        except OSError as error:
            _refuse(out, error)
        yield


@contextlib.contextmanager
def locked_beside(out: Path) -> Iterator[None]:
    """Hold a lock beside the folder `out`, which is replaced as a whole within; nothing of the lock is left. Exits as
    `locked` does."""
    _check_name(out)
    path = out.absolute().with_name(f".{out.absolute().name}.lock")
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                lock = stack.enter_context(path.open("w"))
                _hold(lock, out)
                if _is_at(lock, path):
                    break
                # Whoever held the lock before has removed its file after it was opened here.
                lock.close()
            stack.callback(path.unlink, missing_ok=True)
        except OSError as error:
            _refuse(out, error)
        yield


def _check_name(out: Path) -> None:
    """Exit with Status.CONFIG and a sentence where the name of a folder to write is empty or not UTF-8."""
    if out == Path():
        fail(Status.CONFIG, "--out is empty or the folder you stand in; name a folder of the run's own.")
    try:
        str(out).encode()
    except UnicodeEncodeError:
        fail(Status.CONFIG, f"The name of the folder {as_unicode(str(out))} is not UTF-8; give --out another.")


def _is_at(lock: IO[str], path: Path) -> bool:
    """Whether the open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _hold(lock: IO[str], out: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fail(Status.CONFIG, f"Another trainer is at work in {out}; give --out another folder.")


def _refuse(out: Path, error: OSError) -> NoReturn:
    fail(Status.CONFIG, f"The folder {out} cannot be written ({error.strerror}); give --out another.")
