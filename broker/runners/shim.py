"""The shim between a supervisor and its trainer: the trainer's parent, which outlives the supervisor by the lease.

`python shim.py FOLDER GRACE MEMORY COMMAND…`: FOLDER/lease says until when the trainer may run, in seconds since the
boot; its supervisor renews it. When the lease has run out, the shim asks the trainer to stop and kills it after the
grace, so that a trainer without a supervisor is surely dead by then. No process of the trainer gets more than MEMORY
bytes of private memory; 0 is no bound. The shim leaves the trainer's exit status and time in FOLDER/exit. It imports
the standard library only.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

LEASE_FILE, EXIT_FILE = "lease", "exit"
"""The files of FOLDER, as above."""
POLL_SECONDS = 0.05
STOPPED, FAILED = 75, 70
"""The numbers of `trainer.contract.Status`, said again: the shim runs isolated (`python -I -S`), where it starts in
milliseconds and no package of the environment can change what it does, and so can import nothing of this project."""
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def tied_to_parent(memory: int = 0) -> Callable[[], None]:
    """What a child process runs before its program (a `preexec_fn`), to get SIGTERM when its parent thread ends, and
    at most `memory` bytes of private memory for itself and for each of its children."""
    parent = os.getpid()

    def tie() -> None:
        if memory:
            resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(STOPPED)

    return tie


def since_boot() -> float:
    """Seconds since the boot; setting the clock does not change them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def write(path: Path, said: object) -> None:
    """Write a JSON file, whole at any moment (a new file replaces the old one)."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(said))
    part.replace(path)


def run(folder: Path, grace: float, memory: int, command: list[str]) -> None:
    """Run the command until it ends or its lease does, then end this process with all of its group."""
    asked: list[int] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, ask)
    lease = folder / LEASE_FILE
    until = float(json.loads(lease.read_text()))
    status = FAILED
    over_at: float | None = None
    try:
        trainer = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, preexec_fn=tied_to_parent(memory))
        while trainer.poll() is None:
            now = since_boot()
            with contextlib.suppress(OSError, ValueError):  # a disk that fails for a moment is no end of the lease
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
            write(folder / EXIT_FILE, {"status": status, "at": since_boot()})
        finally:
            os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    run(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
