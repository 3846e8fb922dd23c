"""What a test sees of other processes, by way of /proc: who they are, what they were given, and how long they lived."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass
class Life:
    """A process as the watch saw it; times in seconds since the epoch."""

    pid: int
    attempt: int
    born: float
    seen: float


SMALL = """
like: demo
model: {layers: 1, hidden_size: 32, heads: 2}
data:
  sequence_length: 32
  tokenizer: {vocabulary: 320, train_bytes: 20000}
  sources: [{name: python-docs, builtin: python-docs, weight: 1, licence: PSF-2.0, max_bytes: 100000}]"""
"""The model and the data of a recipe that trains fast, to which a test adds its `training`."""


def command(pid: int) -> str:
    """A process's command line; empty where it is gone."""
    return _read(pid, "cmdline")


def environment(pid: int) -> str:
    """What a process was started with, a line a variable."""
    return _read(pid, "environ").replace("\0", "\n")


def pids() -> list[int]:
    """All processes of this machine."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def of_home(home: Path) -> dict[int, str]:
    """The processes that name an installation's home in their command line or environment."""
    found = {}
    for pid in pids():
        if pid != os.getpid() and (str(home) in command(pid) or f"STOA_HOME={home}" in environment(pid)):
            found[pid] = command(pid).replace("\0", " ")
    return found


def supervisor(home: Path, run: int, token: int) -> int | None:
    """The pid of an attempt's supervisor."""
    for pid, line in of_home(home).items():
        if f"broker.runners.supervisor {run} {token} " in f"{line.strip()} ":
            return pid
    return None


def trainers(folder: Path) -> list[int]:
    """The pids of the trainer and its ranks that write in an attempt's folder, the trainer first; not its shim."""
    lines = {pid: command(pid) for pid in pids()}
    named = {pid: line for pid, line in lines.items() if f"{folder}\0" in line or f'"{folder}"' in line}
    found = [pid for pid, line in named.items() if "runners/shim.py" not in line]
    return sorted(found, key=lambda pid: "trainer.distributed.rank" in command(pid))


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Let the ranks that write in an attempt's folder stand still meanwhile: they would train on for nobody."""
    ranks = [pid for pid in trainers(folder) if "trainer.distributed.rank" in command(pid)]
    try:
        for pid in ranks:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in ranks:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


class Watch:
    """Looks five times a second which trainer processes of a run live."""

    def __init__(self, runs: Path, run: int) -> None:
        self.lives: dict[int, Life] = {}
        self.longest_gap = 0.0
        self._folder = runs / str(run)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def span(self, attempt: int) -> tuple[float, float]:
        """When the first process of an attempt was born, and when the last one was still seen."""
        lives = [life for life in self.lives.values() if life.attempt == attempt]
        return min(life.born for life in lives), max(life.seen for life in lives)

    def _look(self) -> None:
        last = time.time()
        while not self._over.wait(0.2):
            now = time.time()
            self.longest_gap, last = max(self.longest_gap, now - last), now
            for folder in self._folder.glob("attempt-*"):
                for pid in trainers(folder):
                    self._note(pid, int(folder.name.removeprefix("attempt-")))

    def _note(self, pid: int, attempt: int) -> None:
        if pid not in self.lives:
            try:
                self.lives[pid] = Life(pid, attempt, psutil.Process(pid).create_time(), time.time())
            except psutil.NoSuchProcess:
                return
        self.lives[pid].seen = time.time()


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
    except OSError:
        return ""
