"""What a host keeps in its home folder: an id of its own, and the lock of the one worker that is at work there."""

import fcntl
import os
import re
import secrets
from pathlib import Path

from projects.errors import ConflictError, InvalidError

ID_FILE = "host-id"
LOCK_FILE = ".worker.lock"


def hold(home: Path) -> str:
    """Hold a home for the worker of this process until the process ends, and return the id of the host, which is made
    once.

    Raises ConflictError where another worker holds the home, and InvalidError where it cannot be held or has no id that
    can be read.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / LOCK_FILE).open("a")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConflictError(
            f"Another worker is at work in {home}; stop it first, or give this one a home of its own (STOA_HOME)."
        ) from error
    except OSError as error:
        raise InvalidError(
            f"{home} cannot be held for a worker ({error.strerror}); set STOA_HOME to a folder that it may write and "
            "lock."
        ) from error
    # Processes that the worker forks may outlive it, and must not hold the home for it.
    os.register_at_fork(after_in_child=lock.close)
    if not (home / ID_FILE).exists():
        _write(home / ID_FILE, secrets.token_hex(16))
    return kept_id(home)


def kept_id(home: Path) -> str:
    """The id of the host whose home this is; empty where no worker was at work here. Raises InvalidError."""
    path = home / ID_FILE
    try:
        said = path.read_text(errors="replace").strip()
    except FileNotFoundError:
        return ""
    if not re.fullmatch(r"[0-9a-f]{32}", said):
        raise InvalidError(f"{path} does not hold the id of a host; restore it, or remove it to be a new host.")
    return said


def _write(path: Path, said: str) -> None:
    """Write a file that appears whole."""
    written = path.with_suffix(".new")
    with written.open("w") as file:
        file.write(f"{said}\n")
        file.flush()
        os.fsync(file.fileno())
    written.replace(path)
