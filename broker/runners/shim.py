"""The keeper of a trainer: its parent on the host, which outlives a supervisor and lets it run as long as its lease.

`python shim.py FOLDER GRACE COMMAND…`: FOLDER/lease says until when, in seconds since the boot, and whoever
supervises writes it anew. A trainer whose lease has run out is asked to stop and ended after the grace: one that nobody
supervises is surely dead by then. How it ended is left in FOLDER/exit. Imports the standard library only.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

POLL_SECONDS = 0.05
STOPPED, FAILED = 75, 70
"""The numbers of `trainer.contract.Status`, said again: the shim runs isolated (`python -I -S`), where it starts in
milliseconds and no package of the environment can change what it does, and so can import nothing of this project."""
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def tied_to_parent() -> Callable[[], None]:
    """What a new process runs before its program, so that it gets SIGTERM when the thread that started it is gone."""
    parent = os.getpid()

    def tie() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(STOPPED)

    return tie


def since_boot() -> float:
    """Seconds since the boot, which no turning of the clock changes."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def write(path: Path, said: object) -> None:
    """Write a file that is whole whenever it is there."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(said))
    part.replace(path)


def keep(folder: Path, grace: float, command: list[str]) -> None:
    """Run the command to its end or its lease's, then end this process with all of its group."""
    asked: list[int] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, ask)
    lease = folder / "lease"
    until = float(json.loads(lease.read_text()))
    status = FAILED
    over_at: float | None = None
    try:
        trainer = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, preexec_fn=tied_to_parent())
        while trainer.poll() is None:
            now = since_boot()
            until = max(until, float(json.loads(lease.read_text())))
            if over_at is None and now > until:
                over_at = now
                asked.append(signal.SIGTERM)
            if asked:
                asked.clear()
                trainer.send_signal(signal.SIGTERM)
            if over_at is not None and now > over_at + grace:
                trainer.kill()
            time.sleep(POLL_SECONDS)
        status = trainer.returncode
    finally:
        try:
            write(folder / "exit", {"status": status, "at": since_boot()})
        finally:
            os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    keep(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
