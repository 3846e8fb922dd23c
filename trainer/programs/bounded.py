"""A program held within its bounds: no network and no other process of the host where namespaces can be made, its disk,
its processes and its output counted, and all of it ended with the process that runs it. Imports no torch.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

import psutil

from trainer.contract import Outcome, Status
from trainer.programs import inside

POLL_SECONDS = 0.5
MOST_PROCESSES = 1024
MOST_FILES = 200_000
FIRST_BYTES, LAST_BYTES = 8 * 2**20, 2 * 2**20
"""Of the output: the first bytes go to the log as they come, and the last ones at the end."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Bounds:
    """What a program may take: bytes on the disk, below `work`, which it alone writes; `hide` is kept from it."""

    work: Path
    disk: int
    hide: Sequence[Path] = ()


@cache
def namespaces() -> Sequence[str]:
    """The command that begins new namespaces of processes, network and mounts on this host; empty where it cannot."""
    alone = ["--pid", "--fork", "--kill-child", "--net", "--ipc", "--mount", "--mount-proc"]
    for user in ([], ["--user", "--map-root-user"]):
        command = ["unshare", *user, *alone]
        with suppress(OSError, subprocess.TimeoutExpired):
            tried = subprocess.run([*command, "true"], capture_output=True, timeout=60, check=False)
            if tried.returncode == 0:
                return command
    return ()


def run(
    command: Sequence[str],
    source: Path,
    environment: dict[str, str],
    bounds: Bounds,
    *,
    each_round: Callable[[], object],
    log: IO[bytes],
) -> Outcome:
    """Run a command in `source` until it ends, is asked to stop, or leaves its bounds; its outcome.

    `each_round` is called several times a second. Nothing that the command has started is left when this returns.
    Raises KeyboardInterrupt where `interruptible` does, once the command was asked to stop, or `each_round` raises.
    """
    around = namespaces()
    told = {
        "command": list(command),
        "source": str(source),
        "work": str(bounds.work),
        "hide": [str(path) for path in bounds.hide],
        "file_bytes": bounds.disk,
        "namespaces": bool(around),
    }
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    first = subprocess.Popen(
        [*around, sys.executable, "-I", "-S", inside.__file__, json.dumps(told)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    assert first.stdout is not None
    copy = _Copy(first.stdout, log)
    try:
        while first.poll() is None:
            each_round()
            if beyond := _beyond(bounds):
                return Outcome(status=Status.FAILED, reason=beyond)
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        _ask(first)
        raise
    finally:
        _end(first)
        copy.end()
    if beyond := _beyond(bounds):
        return Outcome(status=Status.FAILED, reason=beyond)
    return _ended(first.returncode, copy.last_line)


def _ended(status: int, last_line: str) -> Outcome:
    """The outcome of a program by its exit status."""
    if status == 0:
        return Outcome(status=Status.DONE)
    said = f"; the last line of its output is: {last_line}" if last_line else "; it printed nothing"
    number = -status if status < 0 else status - 128
    if number == signal.SIGXFSZ:
        return Outcome(status=Status.FAILED, reason="The program wrote a file larger than its bound of the disk.")
    if number in list(signal.Signals):
        return Outcome(status=Status.FAILED, reason=f"The program was ended by {signal.Signals(number).name}{said}")
    return Outcome(status=Status.FAILED, reason=f"The program ended with status {status}{said}")


def _beyond(bounds: Bounds) -> str:
    """The sentence for a bound that the program has left; empty within all."""
    size, files = _taken(bounds.work)
    if size > bounds.disk:
        return f"The program wrote more than its {bounds.disk / 2**30:g} GiB of the disk and was stopped."
    if files > MOST_FILES:
        return f"The program wrote more than {MOST_FILES:,} files and was stopped."
    if _processes() > MOST_PROCESSES:
        return f"The program started more than {MOST_PROCESSES:,} processes and was stopped."
    return ""


def _taken(folder: Path) -> tuple[int, int]:
    """The bytes that a folder takes on the disk, and its files; links are not followed."""
    size = files = 0
    waiting = [str(folder)]
    while waiting and files <= MOST_FILES:
        with suppress(OSError), os.scandir(waiting.pop()) as found:
            for entry in found:
                files += 1
                with suppress(OSError):
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
    return size, files


def _children() -> list[psutil.Process]:
    with suppress(psutil.Error):
        return psutil.Process().children(recursive=True)
    return []


def _processes() -> int:
    return len(_children())


def _ask(first: subprocess.Popen[bytes]) -> None:
    """Ask the program to stop, and wait until it has: whoever asked kills this process once that takes too long."""
    with suppress(psutil.Error):
        for each in psutil.Process(first.pid).children() if namespaces() else [psutil.Process(first.pid)]:
            each.terminate()
    first.wait()


def _end(first: subprocess.Popen[bytes]) -> None:
    """End all that the program has started; with a PID namespace the kernel does so at the end of its first process."""
    first.kill()
    first.wait()
    while left := _children():
        for each in left:
            with suppress(psutil.Error):
                each.kill()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


class _Copy:
    """Copies a program's output to its log: the first bytes as they come, and the last ones at the end."""

    def __init__(self, output: IO[bytes], log: IO[bytes]) -> None:
        self._output, self._log = output, log
        self._first = self._kept = self._left_out = 0
        self._last: deque[bytes] = deque()
        self._tail = b""
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._thread.start()

    @property
    def last_line(self) -> str:
        """The last line of the output that has a letter, bounded."""
        lines = self._tail.decode(errors="replace").replace("\r", "\n").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")

    def end(self) -> None:
        """Write what is kept of the end; the program has ended."""
        self._thread.join()
        self._output.close()
        if self._left_out:
            said = f"\n[{self._left_out:,} bytes of the output are left out here; the last {self._kept:,} follow]\n"
            self._log.write(said.encode())
        for part in self._last:
            self._log.write(part)
        self._log.flush()

    def _copy(self) -> None:
        while part := os.read(self._output.fileno(), 1 << 16):
            self._tail = (self._tail + part)[-4096:]
            if self._first + len(part) <= FIRST_BYTES:
                self._first += len(part)
                with suppress(OSError):
                    self._log.write(part)
                    self._log.flush()
                continue
            self._last.append(part)
            self._kept += len(part)
            while self._kept > LAST_BYTES:
                dropped = len(self._last.popleft())
                self._kept -= dropped
                self._left_out += dropped
